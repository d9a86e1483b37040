"""`compare`, `batch` and `check` on models that start from pictures, tiny random ones."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from profiling_core.commands.check import calls as check_calls
from profiling_core.commands.check import command as check_command
from profiling_core.commands.main import main
from profiling_core.plan import CachePlan
from wan.configs import CLIP_CHECKPOINT, MAX_AREA_CONFIGS, SIZE_CONFIGS, WAN_CONFIGS
from wan.sigmas import sigmas_fp32
from wan.vace import PIPELINES
from wan_toys import write_checkpoint

PROMPT, STEPS, AREA = "red circle moving right", 4, 48 * 32
SHIFTS = {"i2v": 3.0, "flf2v": 16.0, "vace": 16.0}
PAIR = {"image": "a.png", "last_image": "b.png"}
TAKEN = {"i2v": {"image": "a.png"}, "flf2v": PAIR}  # of PAIR, by the model's kind
REQUEST = {"size": "832*480", "frame_num": 5, "steps": STEPS}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    found = {kind: tmp_path_factory.mktemp(kind) for kind in TAKEN}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MAX_AREA_CONFIGS, "832*480", AREA)
        for kind, folder in found.items():
            write_checkpoint(folder, model_type=kind, text_len=512)
            config = WAN_CONFIGS[f"{kind}-14B"]
            sizes = {"sizes": ("832*480",), "default_size": "832*480"}
            patch.setitem(WAN_CONFIGS, f"{kind}-14B", replace(config, **sizes))
        yield found


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the pictures, from which nothing runs."""
    folder = tmp_path / "given"
    folder.mkdir()
    for seed, name in enumerate(("a.png", "b.png")):
        paint(folder / name, seed)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return folder


def paint(path: Path, seed: int) -> None:
    values = torch.rand(32, 48, 3, generator=torch.Generator().manual_seed(seed))
    Image.fromarray((values * 255).byte().numpy()).save(path)


def write_lines(path: Path, *lines: dict) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def plan_file(folder: Path, kind: str) -> str:
    computed = {branch: [0, 1, 3] for branch in ("cond", "uncond")}
    CachePlan.build(
        name="tiny",
        model={"family": "wan2.1", "name": "tiny", "block_lists": {"blocks": 3}, "width": 48},
        steps=STEPS,
        sigmas=sigmas_fp32("unipc", STEPS, SHIFTS[kind]),
        solver="unipc",
        shift=SHIFTS[kind],
        sites=[{"kind": "prediction", "compute_steps": computed, "skip": "hold"}],
        provenance={"made_by": "tests", "source": "by hand"},
    ).save(folder / "plan.json")
    return str(folder / "plan.json")


def compare_line(kind: str, folder: Path, given: Path, *lines: dict) -> list[str]:
    argv = ["compare", "--tree", "wan", "--out", "out", "--quiet", "--prompts"]
    argv.append(str(write_lines(given / "prompts.jsonl", *lines)))
    if kind == "t2v":
        return [*argv, "--model", "t2v-mini", "--plans", "fast"]
    argv += ["--model", f"{kind}-14B", "--ckpt-dir", str(folder), "--plans", plan_file(given, kind)]
    return argv + [f"--{name.replace('_', '-')}={value}" for name, value in REQUEST.items()]


def rows_of_comparison() -> list[dict]:
    return [json.loads(line) for line in Path("out/rows.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", TAKEN)
def test_compare_starts_from_the_pictures_of_each_line(
    kind: str, checkpoints: dict[str, Path], given: Path
) -> None:
    taken = TAKEN[kind]
    lines = [{"prompt": PROMPT, **taken}, {"prompt": PROMPT, **taken, "image": "b.png"}]
    command = compare_line(kind, checkpoints[kind], given, *lines)
    assert main(command) == 0
    rows = rows_of_comparison()
    assert [row["method"] for row in rows] == ["full", "plan"] * 2
    assert rows[1]["pictures"] == ", ".join(taken.values())
    assert len({row["pictures_sha256"] for row in rows}) == 2
    assert f"{PROMPT} ({rows[1]['pictures']})" in Path("out/table.md").read_text()
    assert f"{PROMPT} · {rows[1]['pictures']} · seed 0" in Path("out/report.html").read_text()

    pipeline = PIPELINES[kind](WAN_CONFIGS[f"{kind}-14B"], checkpoints[kind], "cpu")
    pictures = [Image.open(given / name) for name in taken.values()]
    sampling = {"sampling_steps": STEPS, "shift": SHIFTS[kind], "guide_scale": 5.0, "seed": 0}
    clip = {"max_area": AREA, "frame_num": 5, "progress": False}
    direct = pipeline.generate(PROMPT, *pictures, **clip, **sampling)
    kept = [load_file(path)["video"] for path in Path("out/full").iterdir()]
    assert len(kept) == 2 and any(torch.equal(video, direct) for video in kept)

    assert main(command) == 0 and len(rows_of_comparison()) == 4
    paint(given / "a.png", 7)
    assert main(command) == 0
    assert len(rows_of_comparison()) == 6


def test_compare_makes_vace_clips_from_the_same_sources_and_batch_from_text(
    given: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folder = write_checkpoint(given / "vace", model_type="vace")
    monkeypatch.setitem(SIZE_CONFIGS, "832*480", (48, 32))
    sources = f"--src_video={given}/v.mkv --src_ref_images={given}/a.png,{given}/b.png"
    still = np.asarray(Image.open(given / "a.png"))
    lossless = {"codec": "ffv1", "pixelformat": "bgr0", "macro_block_size": 1}
    iio.imwrite(given / "v.mkv", np.stack([still] * 6), plugin="FFMPEG", fps=16, **lossless)
    command = compare_line("vace", folder, given, {"prompt": PROMPT})
    command = [word.replace("vace-14B", "vace-1.3B") for word in command]
    assert main([*command, f"--tree-options={sources}"]) == 0
    rows = rows_of_comparison()
    assert [row["method"] for row in rows] == ["full", "plan"]

    pipeline = PIPELINES["vace"](WAN_CONFIGS["vace-1.3B"], folder, "cpu")
    files = [[given / "v.mkv"], [None], [[given / "a.png", given / "b.png"]]]
    lists = pipeline.prepare_source(*files, 81, (48, 32))
    sampling = {"sampling_steps": STEPS, "shift": SHIFTS["vace"], "seed": 0, "progress": False}
    direct = pipeline.generate(PROMPT, *lists, **sampling)
    (kept,) = (load_file(path)["video"] for path in Path("out/full").iterdir())
    assert kept.shape == (3, 5, 32, 48) and torch.equal(kept, direct)

    paint(given / "b.png", 7)
    assert main([*command, f"--tree-options={sources}"]) == 2
    assert "sources_sha256" in capsys.readouterr().err

    from_text = batch_line(given, job("vace", folder))
    assert main([*from_text, "--out", "clips"]) == 0
    assert len(list(Path("clips").rglob("*.mp4"))) == 1
    assert main(batch_line(given, job("vace", folder, src_video="v.mkv"))) == 2
    assert "src_video" in capsys.readouterr().err


def batch_line(given: Path, *jobs: dict) -> list[str]:
    file = write_lines(given / "jobs.jsonl", *jobs)
    return ["batch", str(file), "--out", "out", "--no-ray", "--quiet"]


def job(kind: str, folder: Path, **more: object) -> dict:
    if kind == "t2v":
        return {"prompt": PROMPT, "tree": "wan", "task": "t2v-mini", **more}
    model = {"tree": "wan", "task": f"{kind}-14B", "ckpt_dir": str(folder)}
    return {"prompt": PROMPT, **model, **REQUEST, **more}


def test_a_batch_starts_from_the_pictures_beside_its_jobs_file(
    checkpoints: dict[str, Path], given: Path
) -> None:
    jobs = [job(kind, folder, **TAKEN[kind]) for kind, folder in checkpoints.items()]
    jobs += [{**jobs[0], "plan": plan_file(given, "i2v")}, {**jobs[0], "image": "b.png"}]

    def made(*jobs: dict) -> list[dict]:
        assert main(batch_line(given, *jobs)) == 0
        return json.loads(Path("out/summary.json").read_text())

    rows = made(*jobs)
    assert [row["pictures"] for row in rows] == ["a.png", "a.png, b.png", "a.png", "b.png"]
    assert 0 < rows[2]["psnr"] < 100 and "psnr" not in rows[3]
    assert "a.png, b.png · wan, seed 0" in Path("out/index.html").read_text()
    (given / "a.png").rename(given / "c.png")
    named = [{**one, "image": one["image"].replace("a", "c")} for one in jobs]
    again = made(*named)
    assert [row["utc"] for row in again] == [row["utc"] for row in rows], "made twice by its name"
    paint(given / "c.png", 7)
    known = {row["key"] for row in rows}
    assert [row["key"] in known for row in made(*named)] == [False, False, False, True]


WRONG = {  # the model's kind, what stands beside the prompt, what the line says
    "none": ("i2v", {}, "image is missing: wan2.1-i2v-14B takes image beside the prompt"),
    "no last": ("flf2v", {"image": "a.png"}, "last_image is missing: wan2.1-flf2v-14B takes image"),
    "one more": ("i2v", PAIR, "wan2.1-i2v-14B takes image: leave it out"),
    "absent": ("i2v", {"image": "no.png"}, "no.png does not exist: name a picture"),
    "text": ("i2v", {"image": "text.png"}, "text.png cannot be read as a picture"),
    "narrow": ("i2v", {"image": "narrow.png"}, "a picture of 4000x2 pixels is too narrow"),
    "for text": ("t2v", {"image": "a.png"}, "wan2.1-t2v-mini takes no picture: leave it out"),
    "no path": ("i2v", {"image": 3}, "image: Input should be a valid string"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("command", ["compare", "batch"])
def test_a_wrong_picture_is_one_line_that_names_the_line(
    command: str,
    wrong: str,
    checkpoints: dict[str, Path],
    given: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    (given / "text.png").write_text("hello")
    Image.new("RGB", (4000, 2)).save(given / "narrow.png")
    kind, pictures, says = WRONG[wrong]
    folder, both = checkpoints.get(kind, given), (TAKEN.get(kind, {}), pictures)
    if command == "batch":
        argv = batch_line(given, *(job(kind, folder, **more) for more in both))
    else:
        argv = compare_line(kind, folder, given, *({"prompt": PROMPT, **more} for more in both))
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "line 2: " in line and says in line, line
    assert not Path("out").exists()


@pytest.mark.parametrize("kind", TAKEN)
def test_check_draws_its_pictures_and_looks_at_the_image_encoder(
    kind: str, checkpoints: dict[str, Path], given: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MAX_AREA_CONFIGS, "832*480", 160 * 96)  # of the drawn one's aspect
    plan = CachePlan.load(plan_file(given, kind))
    for module in (check_command, check_calls):
        monkeypatch.setattr(module, "load_preset", lambda *names: plan)
    model = ["--model", f"{kind}-14B", "--ckpt-dir", str(checkpoints[kind]), "--steps", str(STEPS)]
    argv = ["check", "--tree", "wan", *model, "--frame-num", "5", "--size", "832*480", "--quiet"]
    assert main([*argv, "--plans", "fast"]) == 0
    stages = {one["stage"]: one for one in json.loads(Path("check.json").read_text())["stages"]}
    assert stages["files"]["parts"]["image encoder"][0]["tensors"]
    assert stages["model"]["decoded"]["shape"] == [3, 5, 80, 160]
    encoder = checkpoints[kind] / CLIP_CHECKPOINT
    whole = encoder.read_bytes()
    encoder.write_bytes(whole[:999])
    try:
        assert main([*argv, "--files-only"]) == 2
    finally:
        encoder.write_bytes(whole)
    faults = json.loads(Path("check.json").read_text())["stages"][1]["faults"]
    assert any(CLIP_CHECKPOINT in one for one in faults)


def test_a_picture_among_the_trees_options_is_refused(
    checkpoints: dict[str, Path], given: Path, capsys: pytest.CaptureFixture
) -> None:
    model = ["--tree", "wan", "--model", "i2v-14B", "--ckpt-dir", str(checkpoints["i2v"])]
    prompts = str(write_lines(given / "prompts.jsonl", {"prompt": PROMPT, "image": "a.png"}))
    argv = ["compare", *model, "--prompts", prompts, "--plans", "fast", "--out", "out"]
    assert main([*argv, "--tree-options=--image a.png"]) == 2
    says = "--tree-options --image a.png: name pictures beside their prompts"
    assert says in capsys.readouterr().err
    assert not list(Path().iterdir())
