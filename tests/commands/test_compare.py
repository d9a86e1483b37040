"""python -m profiling_core compare: on tiny checkpoints of both trees, end to end and resumed."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import hyvideo.config
import wan.configs
from hunyuan_toys import TINY as TINY_HUNYUAN
from hyvideo.pipeline import HunyuanVideo
from hyvideo.sigmas import sigmas_fp32 as hunyuan_sigmas
from lpips_toys import random_state
from profiling_core.commands.compare.folder import Folder, check_out, strip_of
from profiling_core.commands.compare.rows import Row, Rows
from profiling_core.commands.main import main
from profiling_core.commands.report import drawing
from profiling_core.lpips import Lpips
from profiling_core.metrics import compare, latent_error
from profiling_core.plan import CachePlan
from profiling_core.trees import tree_model as compare_model
from wan.sigmas import sigmas_fp32 as wan_sigmas
from wan.text2video import WanT2V

PROMPTS = ["a red circle moving right over blue stripes", "green <b>square</b> | left"]
STEPS = 5
MODELS = {"wan": "t2v-mini", "hunyuan": "HYVideo-mini"}
BRANCHES = {"wan": ("cond", "uncond"), "hunyuan": ("cond",)}


@pytest.fixture(scope="module", autouse=True)
def tiny_trees(checkpoint: Path, hunyuan_checkpoint: Path) -> Iterator[None]:
    """Both miniatures' names stand for tiny random checkpoints."""
    tiny_wan = replace(
        wan.configs.WAN_CONFIGS["t2v-mini"],
        sizes=("32*32",),
        default_size="32*32",
        frame_num=5,
        ckpt_dir=checkpoint,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(wan.configs.WAN_CONFIGS, "t2v-mini", tiny_wan)
        tiny_hunyuan = replace(TINY_HUNYUAN, model_base=hunyuan_checkpoint)
        patch.setitem(hyvideo.config.CONFIGS, "HYVideo-mini", tiny_hunyuan)
        patch.delenv("MODEL_BASE", raising=False)
        yield


def tiny_plan(tree: str, *steps: int, name: str = "tiny", skip: str = "hold") -> CachePlan:
    lists = {"wan": {"blocks": 3}, "hunyuan": {"double_blocks": 2, "single_blocks": 3}}[tree]
    family = {"wan": "wan2.1", "hunyuan": "hunyuan-video"}[tree]
    sigmas = wan_sigmas("unipc", STEPS, 5.0) if tree == "wan" else hunyuan_sigmas(STEPS, 7.0)
    return CachePlan.build(
        name=name,
        model={"family": family, "name": "tiny", "block_lists": lists, "width": 48},
        steps=STEPS,
        sigmas=list(sigmas),
        solver={"wan": "unipc", "hunyuan": "euler"}[tree],
        shift={"wan": 5.0, "hunyuan": 7.0}[tree],
        sites=[
            {
                "kind": "prediction",
                "compute_steps": {branch: list(steps) for branch in BRANCHES[tree]},
                "skip": skip,
            }
        ],
        provenance={"made_by": "tests", "source": "by hand"},
    )


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Callable[..., list[str]]:
    """The command line of a comparison, its files written."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "prompts.txt").write_text("# two\n\n" + "\n".join(PROMPTS) + "\n")
    for tree in MODELS:
        tiny_plan(tree, 0, 1, 3).save(folder / f"{tree}-hold.json")
        tiny_plan(tree, 0, 2, skip="linear").save(folder / f"{tree}-linear.json")
    save_file(random_state(), folder / "lpips.safetensors")

    def command(tree: str, out: Path, *more: str, plans: tuple[str, ...] = ("hold",)) -> list[str]:
        named = [str(folder / f"{tree}-{plan}.json") for plan in plans]
        line = ["compare", "--tree", tree, "--model", MODELS[tree], "--steps", str(STEPS)]
        line += ["--prompts", str(folder / "prompts.txt"), "--out", str(out), "--plans", *named]
        return [*line, *more]

    command.folder = folder
    return command


@pytest.fixture(scope="module", params=list(MODELS))
def finished(request, given, tmp_path_factory) -> tuple[str, Path, list[str]]:
    """A whole comparison of each tree with everything on."""
    tree, out = request.param, tmp_path_factory.mktemp(request.param) / "out"
    weights = str(given.folder / "lpips.safetensors")
    line = given(tree, out, "--save-videos", "--lpips-weights", weights, plans=("hold", "linear"))
    assert main(line) == 0
    return tree, out, line


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]


def direct_clip(tree: str, prompt: str, plan: CachePlan | None) -> tuple[torch.Tensor, ...]:
    """Clip and latent from the pipeline's own generate."""
    latents = []
    if tree == "wan":
        config = wan.configs.WAN_CONFIGS["t2v-mini"]
        pipeline = WanT2V(config, config.ckpt_dir, device="cpu")
        call = {"size": (32, 32), "frame_num": 5, "sampling_steps": STEPS, "guide_scale": 3.0}
    else:
        config = hyvideo.config.CONFIGS["HYVideo-mini"]
        pipeline = HunyuanVideo(config, config.model_base, "cpu")
        call = {"size": (32, 32), "video_length": 5, "infer_steps": STEPS}
    decode = pipeline.decode
    pipeline.decode = lambda latent: latents.append(latent) or decode(latent)
    video = pipeline.generate(prompt, seed=0, plan=plan, progress=False, **call)
    return (video if tree == "wan" else video[0] * 2 - 1), latents[0]


def test_metrics_are_those_of_direct_calls_of_the_pipeline(finished, given):
    tree, out, _ = finished
    plan = CachePlan.load(given.folder / f"{tree}-hold.json")
    (full, full_latent), (video, latent) = (
        direct_clip(tree, PROMPTS[0], one) for one in (None, plan)
    )
    row = next(r for r in rows_of(out) if r["method"] == f"{tree}-hold" and r["seed"] == 0)
    assert row["prompt"] == PROMPTS[0]
    for name, value in compare(video, full).as_row().items():
        assert row[name] == pytest.approx(value, rel=1e-9), name
    assert row["latent_error"] == pytest.approx(latent_error(latent, full_latent), rel=1e-9)
    lpips = Lpips.load(given.folder / "lpips.safetensors")
    assert row["lpips"] == pytest.approx(lpips(video, full), rel=1e-6)
    kept = [load_file(path) for path in (out / "full").glob("*.safetensors")]
    assert any(
        torch.equal(k["video"], full) and torch.equal(k["latent"], full_latent) for k in kept
    )


def test_rows_say_cost_session_and_machine(finished):
    tree, out, _ = finished
    rows = rows_of(out)
    methods = ["full", f"{tree}-hold", f"{tree}-linear"]
    assert [(r["prompt"], r["method"]) for r in rows] == [(p, m) for p in PROMPTS for m in methods]
    assert len({r["session"] for r in rows}) == 1
    for row in rows:
        runs = {"full": 5, f"{tree}-hold": 3, f"{tree}-linear": 2}[row["method"]]
        assert row["block_runs"] * STEPS == row["block_runs_full"] * runs
        assert row["ideal"] == pytest.approx(STEPS / runs)
        assert row["seconds"] > 0 and row["device"] and row["torch"] == torch.__version__
        assert ("psnr_frames" in row) == (row["method"] != "full")
        assert ("plan_sha256" in row) == (row["method"] != "full")


def test_table_has_the_papers_columns_the_spread_and_every_clip(finished):
    tree, out, _ = finished
    text = (out / "table.md").read_text()
    head = "| method | PSNR dB ↑ | SSIM ↑ | LPIPS ↓ | latency s ↓ | speed-up ↑ | ideal | clips |"
    assert head in text and "| full | – | – | – |" in text and "1.00x | 1.00x | 2 |" in text
    rows = [r for r in rows_of(out) if r["method"] == f"{tree}-hold"]
    psnr = [r["psnr_frames"] for r in rows]
    middle, half = sum(psnr) / 2, abs(psnr[0] - psnr[1]) / 2
    assert f"| {tree}-hold | {middle:.2f} |" in text
    assert f"| {middle:.2f} ± {half:.2f} ({min(psnr):.2f}) |" in text
    assert "green \\<b\\>square\\</b\\> \\| left" in text
    for lines in text.split("\n\n"):
        if lines.startswith("|"):
            cells = {line.replace("\\|", "").count("|") for line in lines.splitlines()}
            assert len(cells) == 1, lines
    assert "against the full run" in text


class Reader(HTMLParser):
    """Tags in order, whether they close, and everything that could be loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.tags, self.loads, self.words = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_page_parses_and_loads_nothing(finished):
    tree, out, _ = finished
    text = (out / "report.html").read_text()
    reader = Reader()
    reader.feed(text)
    assert reader.open == [] and "script" not in reader.tags and "b" not in reader.tags
    assert all(value.startswith(("data:image/jpeg;base64,", "#")) for value in reader.loads)
    assert "http://" not in text and "https://" not in text
    assert text.count("url(") == text.count("url(#")
    assert "default-src &#x27;none&#x27;" in text
    assert reader.tags.count("img") == 6  # two clips, full and two plans
    assert reader.tags.count("svg") == 1
    words = " ".join(reader.words)
    for shown in (*PROMPTS, f"{tree}-linear", "PSNR against speed-up", "latent error"):
        assert shown in words


def test_a_missing_package_is_named_before_any_run(given, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(drawing, "find_spec", lambda name: None)
    assert main(given("wan", tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert 'scikit-image are not installed: pip install "profiling-dit[report]"' in error
    assert error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_the_same_command_runs_nothing_again(finished, monkeypatch, capsys):
    tree, out, line = finished
    before = (out / "rows.jsonl").read_bytes()
    monkeypatch.setattr(compare_model.TreeModel, "loaded", None)  # what loads the weights
    capsys.readouterr()
    assert main(line) == 0
    assert (out / "rows.jsonl").read_bytes() == before
    said = capsys.readouterr()
    assert "6 of 6 runs are done" in said.err and f"{tree}-hold" in said.out
    assert main([*line, "--quiet"]) == 0
    said = capsys.readouterr()
    assert said.err == "" and said.out.startswith("wrote ") and said.out.count("\n") == 1


def test_clips_lie_where_vbench_and_fid_tools_look(finished, capsys):
    tree, out, line = finished
    prompts = json.loads((out / "videos" / "prompts.json").read_text())
    assert list(prompts.values()) == PROMPTS
    assert list(prompts)[1] == "green b square b left-0.mp4"
    methods = ["full", f"{tree}-hold", f"{tree}-linear"]
    assert sorted(p.name for p in (out / "frames").iterdir()) == methods
    for method in methods:
        assert {p.name for p in (out / "videos" / method).iterdir()} == set(prompts)
        frames = sorted((out / "frames" / method).iterdir())
        assert len(frames) == 2 * 5 and {p.suffix for p in frames} == {".png"}
        assert Image.open(frames[0]).size == (32, 32)
    assert main(line) == 0
    printed = capsys.readouterr().out
    assert f"vbench evaluate --videos_path {out / 'videos' / methods[1]} --dimension" in printed
    assert f"--fid --input1 {out / 'frames' / methods[1]} --input2 {out / 'frames/full'}" in printed


def interrupted_after(monkeypatch, rows: int) -> None:
    """Ctrl-C comes when so many rows are written."""
    append, seen = Rows.append, []

    def count(self: Rows, row: Row) -> None:
        append(self, row)
        seen.append(row)
        if len(seen) == rows:
            raise KeyboardInterrupt

    monkeypatch.setattr(Rows, "append", count)


def test_an_interrupted_comparison_goes_on(given, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        interrupted_after(patch, 1)
        with pytest.raises(SystemExit) as stopped:
            main(given("wan", out))
    assert stopped.value.code == 130
    assert "interrupted: 1 of 4 runs are done" in capsys.readouterr().err
    assert [r["method"] for r in rows_of(out)] == ["full"]
    with open(out / "rows.jsonl", "ab") as file:
        file.write(b'{"prompt": "cut off by a cra')
    assert main(given("wan", out)) == 0
    rows = rows_of(out)
    assert [r["method"] for r in rows] == ["full", "full", "wan-hold", "full", "wan-hold"]
    assert [r["again"] for r in rows] == [False, True, False, False, False]
    assert rows[1]["repeat_error"] == 0
    assert rows[0]["session"] != rows[1]["session"] == rows[4]["session"]
    text = (out / "table.md").read_text()
    assert "Measured in 2 sessions" in text and "Not complete" not in text
    ratio = rows[1]["seconds"] / rows[2]["seconds"]  # not the first session's full run
    assert f"| {rows[2]['seconds']:.2f} | {ratio:.2f}x |" in text


def test_plans_and_prompts_may_be_added_and_settings_may_not(given, tmp_path, capsys):
    out = tmp_path / "out"
    (tmp_path / "one.txt").write_text(PROMPTS[0])
    one = ["--prompts", str(tmp_path / "one.txt")]
    assert main(given("hunyuan", out, *one)) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main(given("hunyuan", out, *one, "--shift", "3")) == 2
    error = capsys.readouterr().err
    assert "flow_shift was 7.0, is 3.0" in error and error.count("\n") == 1
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert main(given("hunyuan", out, *one, plans=("hold", "linear"))) == 0
    new = [(r["method"], r["again"]) for r in rows_of(out)[2:]]
    assert new == [("full", True), ("hunyuan-linear", False)]


BAD = {
    "no prompts": (["--prompts", "nowhere.txt"], "--prompts nowhere.txt: no such file"),
    "empty prompts": (["--prompts", "empty.txt"], "no prompt in it"),
    "control character": (["--prompts", "bell.txt"], "line 2 holds the control character U+0007"),
    "not UTF-8": (["--prompts", "latin.txt"], "line 2 is not UTF-8"),
    "twice": (["--prompts", "twice.txt"], "line 3 repeats line 1"),
    "no seed": (["--seeds", "0"], "--seeds 0: expected 1 to"),
    "no number": (["--seeds", "a"], "--seeds 'a': expected a number"),
    "seed twice": (["--seeds", "3,3"], "a seed is named twice"),
    "no folder": (["--ckpt-dir", "nowhere"], "checkpoint folder nowhere does not exist"),
    "no preset": (["--plans", "nope"], "no preset 'nope'"),
    "other model": (["--plans", "other.json"], "has 4 blocks, this model 3"),
    "full": (["--plans", "full"], "the full run is always the reference"),
    "same plan": (["--plans", "PLAN", "copy.json"], "once more"),
    "same name": (["--plans", "PLAN", "sub/wan-hold.json"], "is called 'wan-hold', too"),
    "size": (["--size", "32"], "--size 32: expected width*height"),
    "frames": (["--frame-num", "6"], "frame_num 6 is not 4n+1: take 5 or 9"),
    "solver": (["--solver", "heun"], "argument --sample_solver: invalid choice: 'heun'"),
    "steps": (["--steps", "0"], "sample_steps 0 is too few"),
    "image": (["--model", "t2i-14B"], "--model t2i-14B makes images"),
    "dit": (["--dit-weight", "x"], "Wan2.1 has its weights in --ckpt-dir"),
    "lpips": (["--lpips-weights", "nowhere.pth"], "LPIPS weights nowhere.pth: no such file"),
    "quote": (["--tree-options='"], "--tree-options"),
    "plan in tree": (["--tree-options=--delta_cache"], "plans are named in --plans"),
    "file": (["--out", "empty.txt"], "--out empty.txt: this is a file"),
    "foreign": (["--out", "sub"], "the folder is not empty and holds no comparison"),
    "below a file": (["--out", "empty.txt/out"], "cannot write into"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(case, given, tmp_path, monkeypatch, capsys):
    more, says = BAD[case]
    monkeypatch.chdir(tmp_path)
    for name, content in {
        "empty.txt": b"# nothing\n\n",
        "bell.txt": b"red\ngreen\x07\n",
        "latin.txt": b"red\ngr\xfcn\n",
        "twice.txt": b"red\n\nred\n",
    }.items():
        (tmp_path / name).write_bytes(content)
    plan = given.folder / "wan-hold.json"
    (tmp_path / "sub").mkdir()
    for name in ("copy.json", "sub/wan-hold.json"):
        (tmp_path / name).write_text(plan.read_text())
    (tmp_path / "sub/wan-hold.json").write_text(tiny_plan("wan", 0, 3).dumps())
    other = json.loads(plan.read_text())
    other["model"]["block_lists"]["blocks"] = 4
    other.pop("expected")
    (tmp_path / "other.json").write_text(json.dumps(other))
    before = sorted(tmp_path.rglob("*"))
    more = [str(plan) if word == "PLAN" else word for word in more]
    capsys.readouterr()
    assert main([*given("wan", tmp_path / "out"), *more]) == 2
    error = capsys.readouterr().err
    assert says in error and error.startswith("error: ") and error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_tree_is_found_beside_the_package_or_in_the_current_folder(tmp_path, monkeypatch):
    from profiling_core.trees.wan import WanModel

    beside = compare_model.find_tree(WanModel)
    assert beside.name == "Wan2.1"
    monkeypatch.setattr(compare_model, "PACKAGE", tmp_path / "alone")
    monkeypatch.chdir(beside.parent)
    assert compare_model.find_tree(WanModel) == beside
    monkeypatch.chdir(beside)
    assert compare_model.find_tree(WanModel) == beside
    monkeypatch.chdir(tmp_path)
    with pytest.raises(compare_model.CompareError, match="run this from a checkout") as error:
        compare_model.find_tree(WanModel)
    assert str(tmp_path / "alone" / "Wan2.1") in str(error.value) and "\n" not in str(error.value)


def test_a_damaged_row_is_named(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "red"}\n')
    with pytest.raises(compare_model.CompareError, match="line 1 is no row of a comparison"):
        Rows(tmp_path / "rows.jsonl")


def test_a_folder_belongs_to_one_process_at_a_time(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    folder = Folder(tmp_path / "out")
    with folder.opened({"tree": "wan"}):
        pass
    with open(folder.path / ".lock", "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(compare_model.CompareError, match="another process works there"):
            with folder.opened({"tree": "wan"}):
                pass
    with folder.opened({"tree": "wan"}):
        assert folder.rows.all == []


def test_settings_that_are_none_of_ours_are_refused(tmp_path):
    for content in ("{}", "[1]", "no JSON"):
        (tmp_path / "settings.json").write_text(content)
        with pytest.raises(compare_model.CompareError, match="not the settings of a comparison"):
            check_out(tmp_path, {"tree": "wan"}, 1, 1)


def test_clips_that_do_not_fit_on_the_disk_are_told_before_the_first_run(tmp_path):
    with pytest.raises(compare_model.CompareError, match=r"the full clips need .* are free"):
        check_out(tmp_path / "out", {}, clip_bytes=2**50, clips=2**10)
    assert not (tmp_path / "out").exists()


def test_a_strip_has_four_frames_beside_each_other(tmp_path: Path):
    video = torch.linspace(-1, 1, 9).view(1, 9, 1, 1).expand(3, 9, 64, 200)
    path = tmp_path / "strip.jpg"
    path.write_bytes(strip_of(video))
    picture = Image.open(path)
    assert picture.size == (4 * 160, 51)
    shades = [picture.getpixel((160 * n + 80, 25))[0] for n in range(4)]
    assert shades[0] < 5 and shades[3] > 250 and shades == sorted(shades)
