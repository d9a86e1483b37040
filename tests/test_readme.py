"""Commands in the documents: each runs, or is listed with what it needs and is real all the same.

A document's `sh` blocks are run in order in a copy of the repository, in forks of this process,
literally but for the frames and steps of SHORT; so are commands within sentences. Lines that NEEDS
lists are left out of the run and checked instead: files exist, options parse, plans resolve.
"""

import ast
import importlib
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import hyvideo.checks
import official_sizes as sizes
import wan.checks
from forked import Forked
from forked import script as forked_script
from hyvideo.config import CONFIGS as HUNYUAN_CONFIGS
from profiling_core.commands.main import build_parser
from profiling_core.errors import PlanError
from profiling_core.plan.presets import load_preset
from profiling_core.runtime.options import resolve_plan
from tree_paths import ROOT
from wan.configs import WAN_CONFIGS

DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "benchmarks/*.md",
        "patches/*.md",
        "integrations/*/*.md",
    )
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"
)
ENTRIES = {"generate.py": "Wan2.1", "sample_video.py": "HunyuanVideo"}

NEEDS = {  # the first pattern that a command holds says what it needs
    "the network": r"^make |pip install|^git clone|huggingface-cli|^source \.venv",
    "weights": r"--(task|model) ((t2v|i2v|flf2v|vace)-14B|HYVideo-T)|--video-size|VBench_full_info",
    "several processes, as tests/parallel starts them": r"^torchrun ",
    "GPUs": r"benchmarks\.speed\.gpu|pytest -m gpu|--device cuda",
    "a cluster": r"^ray ",
    "a browser": r"^profiling-dit app",
    "a checkout of an official repository": r"patches/patch\.py|run_tiny|cd \.\./Wan2\.1$",
    "ComfyUI": r"/custom_nodes/|COMFYUI=",
    "files of a run before it": r"examples/vbench\.py layout|batch out/vbench|out/14b|--request",
    "minutes to hours": r"benchmarks\.(compare|search|lib|speed)|"
    r"search\.prediction|miniatures\.(train|check)|tests/parallel/|pytest tests/plan|"
    r"examples/jobs\.jsonl|profiling-dit compare",
}
SHORT = {  # of a run, where the document does not say it: the run is the same, shorter
    "generate.py": ("--frame_num 5", "--sample_steps 20"),
    "sample_video.py": ("--video-length 5", "--infer-steps 20"),
    "profiling-dit check": ("--frame-num 5",),
}
MINIATURE = r"generate\.py|sample_video\.py|profiling-dit check"


def need(command: str) -> str | None:
    """What a command needs that a test has not; None: it is run."""
    found = (what for what, pattern in NEEDS.items() if re.search(pattern, command))
    return next(found, None)


def shortened(line: str) -> str:
    """The command with few frames and steps."""
    entry = next((name for name in SHORT if f"{name} " in line), None)
    options = SHORT[entry] if entry else ()
    return " ".join([line, *(option for option in options if option.split()[0] not in line)])


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


MENTION = re.compile(r"profiling-dit( \w+( \.\.\. .*)?)?|python [-\w.]+|python -m [\w.]+_core")


def blocks(document: str) -> list[list[str]]:
    """The commands of every code block, and of every sentence as a block of its own."""
    text = text_of(document)
    found = []
    for block in re.findall(r"^```sh\n(.*?)^```", text, flags=re.M | re.S):
        lines = (line.strip() for line in block.replace("\\\n", " ").splitlines())
        found.append([line for line in lines if line and line[0] != "#"])
    within = re.findall(r"`((?:python3?|make|torchrun|profiling-dit) [^`]+)`", text)
    within = (" ".join(command.split()) for command in within)
    return found + [[command] for command in within if not MENTION.fullmatch(command)]


def commands(document: str) -> list[str]:
    return [line for block in blocks(document) for line in block]


def runnable() -> dict[str, list[str]]:
    """The blocks of each document without the lines that need something, each block once."""
    found, seen = {}, set()
    for document in DOCUMENTS:
        for block in blocks(document):
            lines = [line for line in block if need(line) is None]
            script = "\n".join(line.split("  #")[0].rstrip() for line in lines)
            if script not in seen and any(not line.startswith("cd ") for line in lines):
                found.setdefault(document, []).append(script)
            seen.add(script)
    return found


SCRIPTS = runnable()
ALL = [(document, command) for document in DOCUMENTS for command in commands(document)]
RUN = [
    pytest.param(document, marks=pytest.mark.slow)
    if any(re.search(MINIATURE, script) for script in scripts)
    else document
    for document, scripts in SCRIPTS.items()
]


# -- running them


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository, without what git ignores in it."""
    left_out = (".git", ".venv", "out", "__pycache__", ".*_cache", "*.egg-info", "shared")
    target = tmp_path_factory.mktemp("readme") / "repository"
    return shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(*left_out))


@pytest.fixture
def shell(copied: Path) -> Iterator[Callable[[str], str]]:
    """Runs a script at the copy's root; the error of the first line that fails. out/ is empty."""
    shutil.rmtree(copied / "out", ignore_errors=True)
    (copied / "out").mkdir()  # as after `make demo`

    def run(script: str) -> str:
        place = copied
        for line in script.splitlines():
            program, *words = shlex.split(line)
            if program == "cd":
                place = (place / words[0]).resolve()
                continue
            argv = {"python": words, "profiling-dit": ["-m", "profiling_core", *words]}
            if program in argv:
                done = Forked(forked_script(*argv[program]), place)
                code, said = done.wait(), done.out[-2000:] + done.err[-4000:]
            else:
                shown = subprocess.run(line, shell=True, cwd=place, capture_output=True, text=True)
                code, said = shown.returncode, shown.stderr
            if code:
                return f"{line}\n{said}"
        return ""

    yield run


@pytest.mark.parametrize("document", RUN)
def test_commands_of_a_document_run_from_the_root(document, shell):
    for script in SCRIPTS[document]:
        assert not shell("\n".join(map(shortened, script.splitlines())))


def test_a_command_that_fails_is_found(shell):
    assert "no preset 'no-such-preset'" in shell("profiling-dit show no-such-preset\ncd Wan2.1")
    assert "FileNotFoundError" in shell("cd Wan2.1\npython absent.py\ncd ..")
    assert "absent.txt" in shell("head absent.txt")


def test_both_trees_are_run():
    run = "\n".join(script for scripts in SCRIPTS.values() for script in scripts)
    assert re.search(r"python generate\.py .*--delta_cache", run)
    assert re.search(r"python sample_video\.py .*--delta_cache", run)


@pytest.mark.parametrize("what", NEEDS)
def test_every_need_is_that_of_a_command(what):
    assert what in {need(command) for _, command in ALL}


# -- those that need something


def script(path: Path) -> ModuleType:
    """A script as a module; its own folder is on the path meanwhile, as when it is run."""
    spec = importlib.util.spec_from_file_location(f"readme_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def benchmark(name: str) -> ModuleType:
    """A benchmark's module, or a package's __main__."""
    module = importlib.import_module(name)
    return importlib.import_module(f"{name}.__main__") if hasattr(module, "__path__") else module


def check_entry(name: str, options: list[str], processes: int = 1) -> None:
    """A tree's command: its options parse, fit the processes, and its plan is the model's."""
    module = script(ROOT / ENTRIES[name] / name)
    args = module.build_parser().parse_args(options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", str(processes))
        module.check_processes(args)
    config = WAN_CONFIGS[args.task] if name == "generate.py" else HUNYUAN_CONFIGS[args.model]
    if args.delta_cache and not args.delta_cache.endswith(".json"):
        assert resolve_plan(args.delta_cache, config.plan_model).name == args.delta_cache


def check(command: str) -> None:
    """Raises, or exits, where a command is not real."""
    words = shlex.split(command, comments=True)
    while words and "=" in words[0] and not words[0].startswith("-"):
        words.pop(0)  # environment variables
    program, *rest = words
    python = program in ("python", "python3")
    if program == "make":
        makefile = (ROOT / "Makefile").read_text()
        targets = [word for word in rest if "=" not in word]
        assert all(re.search(rf"^{target}:", makefile, flags=re.M) for target in targets)
    elif program == "torchrun":
        if not any(word in ENTRIES for word in rest):
            assert (ROOT / rest[1]).is_file()
            return
        entry = next(word for word in rest if word in ENTRIES)
        launch = rest[: rest.index(entry)]
        given = dict(word.lstrip("-").split("=") for word in launch)
        processes = int(given.get("nnodes", 1)) * int(given["nproc_per_node"])
        check_entry(entry, rest[rest.index(entry) + 1 :], processes)
    elif python and rest and rest[0] in ENTRIES:
        check_entry(rest[0], rest[1:])
    elif program == "profiling-dit":
        build_parser().parse_args(rest)
    elif python and rest[:2] == ["-m", "pytest"]:
        given = zip(rest[2:], rest[1:], strict=False)  # words and those before them
        paths = [word for word, before in given if word[0] != "-" and before != "-m"]
        assert all((ROOT / path).exists() for path in paths)
    elif python and rest[:1] == ["-m"] and rest[1].startswith("benchmarks."):
        benchmark(rest[1]).build_parser().parse_args(rest[2:])
    elif python and rest[:1] == ["-m"] and rest[1].startswith("miniatures."):
        assert (ROOT / (rest[1].replace(".", "/") + ".py")).is_file()
    elif python and rest and rest[0].endswith(".py"):
        assert (ROOT / rest[0]).is_file()
    elif program == "pip":
        check_install(rest)
    else:
        assert program in ("cd", "git", "ln", "ray", "source", "huggingface-cli"), (
            f"unchecked {command}"
        )


def check_install(words: list[str]) -> None:
    """pip's files exist, and extras of this package are extras of it."""
    assert words[0] == "install"
    files = [word for word, before in zip(words[1:], words, strict=False) if before == "-r"]
    assert all((ROOT / file).is_file() for file in files)
    project = (ROOT / "pyproject.toml").read_text()
    for word in words[1:]:
        if match := re.fullmatch(r"\.\[(.+)\]", word):
            assert all(re.search(rf"^{x} = \[", project, flags=re.M) for x in match[1].split(","))


@pytest.mark.parametrize("command", sorted({c for _, c in ALL if need(c) is not None}))
def test_command_that_needs_something_is_real(command):
    check(command)


@pytest.mark.parametrize("plan", ["", "--delta_cache", "--delta_cache release"])
def test_commands_of_both_trees_are_checked(plan):
    check(f"python generate.py --task t2v-mini {plan}")
    check(
        'python sample_video.py --model HYVideo-mini --prompt "blue star moving left over red '
        f'checks" --flow-reverse --seed 42 --save-path ./results {plan}'
    )


@pytest.mark.parametrize(
    "command",
    [
        "python generate.py --task t2v-mini --delta_cache foreground",
        "python generate.py --task t2v-mini --flow-reverse",
        "python sample_video.py --model HYVideo-mini --delta_cache fastest",
        "python sample_video.py --task t2v-mini",
        "python -m benchmarks.speed.engine --trees wan2.1",
        "python -m benchmarks.absent",
        "profiling-dit plan --skips hold",
        "torchrun --nproc_per_node=4 generate.py --task t2v-mini --ulysses_size 3",
        "pip install -e .[coffee]",
        "make coffee",
        "ffmpeg -i clip.mp4",
    ],
)
def test_commands_that_are_not_real_are_found(command):
    with pytest.raises((AssertionError, ImportError, PlanError, SystemExit, ValueError)):
        check(command)


# -- the rest of the documents


def rows_of_what_fits(document: str) -> Iterator[list[str]]:
    """The rows of our trees under "denoising", each with its model and clip."""
    _, _, table = text_of(document).partition("| options | denoising |")
    name = ""
    for line in table.partition("\n\n")[0].splitlines()[2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        name = cells[0] or name
        if cells[1].endswith("/`"):
            yield [name, *cells[1:]]


def moments(name: str, dtype: str, options: str, plan: str | None) -> tuple[float, float]:
    """GB while a clip is denoised and decoded, by the trees' own counts."""
    model, _, clip = name.partition(", ")
    if model == "HunyuanVideo":
        latent = {"960x544": sizes.HUNYUAN_540P, "1280x720": sizes.HUNYUAN_720P}[clip]
        found = plan and load_preset("hunyuan-video-t2v-720p", plan)
        assert ("--use-fp8" in options) == (dtype == "fp8")
        load = hyvideo.checks.Load(
            "bf16",
            "fp16",
            dtype == "fp8",
            "--use-cpu-offload" in options,
            latent=latent,
            plan=found,
        )
        parts = sizes.HUNYUAN_ENCODERS, sizes.HUNYUAN_VAE, sizes.HUNYUAN
        needs = hyvideo.checks.device_needs(*parts, load)
    else:
        own = {"Wan2.1 14B": sizes.WAN_14B, "Wan2.1 1.3B": sizes.WAN_SMALL}[model]
        latent = {"832x480": sizes.WAN_480P, "1280x720": sizes.WAN_720P}[clip]
        assert ("--convert_model_dtype" in options) == (dtype == "bf16")
        load = wan.checks.Load(
            {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype],
            t5_cpu="--t5_cpu" in options,
            offload_model="--offload_model true" in options,
            latent=latent,
            plan=plan and load_preset(f"wan2.1-t2v-{model.split()[1]}", plan),
        )
        needs = wan.checks.device_needs(own, load)
    denoising, decoding = (sum(needs[m].values()) / 1e9 for m in ("denoising", "decoding"))
    return denoising, decoding


@pytest.mark.parametrize(("document", "rows"), [("README.md", 5), ("docs/usage.md", 11)])
def test_what_fits_where_is_computed_and_fits(document: str, rows: int) -> None:
    found = list(rows_of_what_fits(document))
    assert len(found) == rows
    for name, _, dtype, options, *written, card in found:
        bare, planned = (moments(name, dtype, options, plan) for plan in (None, "paper"))
        assert written == [f"{x:.1f}" for x in (*bare, planned[0] - bare[0])], name
        cards = [int(size) for size in re.findall(r"\d+", card)]
        assert max(bare) <= cards[0] and max(planned) <= cards[-1], f"{name}: {card}"
        balanced = moments(name, dtype, options, "balanced")
        assert balanced[0] - bare[0] < 0.035  # as the README says, rounded


def test_python_blocks_parse_and_their_imports_exist():
    for document in DOCUMENTS:
        for block in re.findall(r"^```python\n(.*?)^```", text_of(document), flags=re.M | re.S):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom):
                    module = importlib.import_module(node.module)
                    assert all(hasattr(module, alias.name) for alias in node.names), document


def test_links_lead_to_files_and_headings():
    for document in DOCUMENTS:
        folder = (ROOT / document).parent
        text = re.sub(r"```.*?```", "", text_of(document), flags=re.S)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if target.startswith(("http://", "https://")):
                continue
            path, _, anchor = target.partition("#")
            file = folder / path if path else ROOT / document
            assert file.exists(), f"{document}: {target}"
            if anchor:
                assert f'<a name="{anchor}">' in file.read_text(encoding="utf-8"), target


def test_every_picture_is_shown():
    shown = "\n".join(text_of(document) for document in DOCUMENTS)
    for picture in (ROOT / "docs").rglob("*.png"):
        assert picture.name in shown, picture


def test_a_reuse_step_is_read_in_six_modules():
    section = text_of("docs/structure.md").split("## One reuse step")[1].split("## ")[0]
    modules = re.findall(r"^\| `(\S+\.py)`", section, flags=re.M)
    assert 0 < len(modules) <= 6
    assert sum(len(text_of(module).splitlines()) for module in modules) <= 1200


def test_readme_is_one_page():
    lines = text_of("README.md").splitlines()
    assert len(lines) <= 150
