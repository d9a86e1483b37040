"""A tree is known by the model it runs; which are patched, which refused, and why."""

import sys
from pathlib import Path

import pytest

import anchors
import edits
import patch as tool
from profiling_core import upstream as library
from profiling_core.errors import PlanError
from test_patch_tool import KINDS, refusal, run_toy
from toy_checkouts import FILES, PATCHES, read_files, write_checkout

SERVED = [one for one in anchors.load_upstreams(PATCHES) if not one.refused]


@pytest.mark.parametrize("kind", FILES)
def test_a_tree_is_known_by_the_model_it_runs(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture
) -> None:
    checkout = write_checkout(tmp_path, kind)
    before = read_files(checkout)
    assert tool.main(["check", str(checkout)]) == tool.main(["apply", str(checkout)]) == 0
    capsys.readouterr()
    assert tool.main(["status", str(checkout)]) == 0
    assert capsys.readouterr().out.startswith(f"tree: {kind}\nstate: patched\n")
    assert tool.main(["revert", str(checkout)]) == 0
    assert read_files(checkout) == before


@pytest.mark.parametrize("upstream", SERVED, ids=lambda one: one.name)
def test_at_most_fourteen_lines_are_inserted(upstream: anchors.Upstream) -> None:
    pipelines = 5  # the most that an upstream builds: Wan2.2
    lines = [len(one.lines) * (pipelines if one.each else 1) for one in upstream.insertions]
    assert 0 < sum(lines) <= 14


HELPER = """

def built(seed):
    return getattr(wan, "WanI2V")(seed=seed)


def generate(args):"""


def test_a_fork_that_builds_its_pipeline_in_a_helper_ends_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = write_checkout(tmp_path, "Wan2.1", generate=("\n\ndef generate(args):", HELPER))
    text = (checkout / "generate.py").read_text()
    text = text.replace("wan.WanI2V(seed=args.seed)", "built(args.seed)")
    (checkout / "generate.py").write_text(text)
    assert tool.main(["check", str(checkout)]) == tool.main(["apply", str(checkout)]) == 0
    assert run_toy(checkout, [], monkeypatch) == ["WanI2V", "generate"]
    monkeypatch.setattr("test_patch_tool.stand_in_library", lambda calls: library)
    with pytest.raises(PlanError, match="--delta_cache paper: no run went by it"):
        run_toy(checkout, ["--delta_cache"], monkeypatch)


@pytest.mark.parametrize("end", ["return wan_t2v.generate()", "sys.exit(0)", "raise SystemExit"])
def test_a_function_that_returns_before_its_end_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture, end: str
) -> None:
    early = ("        wan_t2v.generate()\n", f"        {end}\n")
    checkout = write_checkout(tmp_path, "Wan2.1", generate=early)
    err = refusal(capsys, 1, "apply", checkout)
    assert "anchor 'end' (the last statement in generate): generate returns on line 28" in err


def test_a_call_on_the_class_of_a_pipeline_is_no_construction(tmp_path: Path) -> None:
    call = ("        wan_t2v.generate()\n", "        video = wan.WanT2V.generate(wan_t2v)\n")
    checkout = write_checkout(tmp_path, "Wan2.1", generate=call)
    assert tool.main(["apply", str(checkout)]) == 0
    assert "wan_run(video" not in (checkout / "generate.py").read_text()


def test_a_tree_with_its_own_option_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    own = ('"--seed", type=int', '"--delta_cache", type=int')
    checkout = write_checkout(tmp_path, "Wan2.1", generate=own)
    for command in ("apply", "check", "diff", "rebase"):
        err = refusal(capsys, 1, command, checkout)
        assert "has its own delta_cache (generate.py, line 9)" in err


@pytest.mark.parametrize("tree", KINDS)
def test_the_trees_of_this_project_are_refused(tree: str, capsys: pytest.CaptureFixture) -> None:
    files = ("generate.py", "sample_video.py", "hyvideo/config.py")
    paths = [path for file in files if (path := PATCHES.parent / tree / file).exists()]
    before = [path.read_bytes() for path in paths]
    assert "has its own delta_cache" in refusal(capsys, 1, "apply", PATCHES.parent / tree)
    assert [path.read_bytes() for path in paths] == before


def test_bad_input_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "empty").mkdir()
    write_checkout(tmp_path / "both", "Wan2.1")
    write_checkout(tmp_path / "both", "HunyuanVideo")
    write_checkout(tmp_path / "next", "Wan2.1", generate=("t2v-14B", "HunyuanVideo_1_5_Pipeline"))
    write_checkout(tmp_path / "half", "HunyuanVideo")
    (tmp_path / "half" / "sample_video.py").unlink()
    write_checkout(tmp_path / "other", "Wan2.1")
    (tmp_path / "other" / "generate.py").write_text("pass\n")
    cases = {
        "nowhere": "no such directory",
        "other/generate.py": "this is a file",
        "empty": "Wan2.1: no generate.py",
        "both": "looks like HunyuanVideo and Wan2.1",
        "next": "HunyuanVideo-1.5 cannot be patched: diffusers has this model and our `cache_pipel",
        "half": "HunyuanVideo: no sample_video.py",
        "other": "Wan2.1: no model t2v-14B; Wan2.2: no model t2v-A14B",
    }
    for command in ("status", "apply", "revert", "diff", "check", "rebase"):
        for folder, said in cases.items():
            assert said in refusal(capsys, 2, command, tmp_path / folder)


def test_toml_reader_of_python_3_10(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = anchors.load_upstreams(PATCHES)
    monkeypatch.setitem(sys.modules, "tomllib", None)
    monkeypatch.setitem(sys.modules, "tomli", None)
    assert anchors.load_upstreams(PATCHES) == expected  # through pip
    monkeypatch.setitem(sys.modules, "pip._vendor", None)
    with pytest.raises(edits.InputError, match=r"Python 3\.11 or newer, or `pip install tomli`"):
        anchors.load_upstreams(PATCHES)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('place = "before"', 'place = "near"', "place is 'near', expected before or after"),
        ('place = "before"', "", "place"),
        ('place = "before"', "place =", "TOMLDecodeError"),
    ],
)
def test_a_wrong_description_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = (PATCHES / "Wan.toml").read_text()
    (tmp_path / "Wan.toml").write_text(text.replace(old, new))
    with pytest.raises(edits.InputError, match=rf"Wan\.toml: .*{said}"):
        anchors.load_upstreams(tmp_path)
