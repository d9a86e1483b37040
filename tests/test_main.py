"""python -m profiling_core: what it prints and how it fails."""

from profiling_core.__main__ import main
from profiling_core.presets import MODELS, PRESETS, load_preset


def test_show_draws_the_release_plan(capsys):
    assert main(["show", "release"]) == 0
    out = capsys.readouterr().out
    assert "computes 1984 of 4000 block runs (49.6 %)" in out
    assert "blocks 10-20  ++++++#.....#.....#.....#.....#.....#.....#.....#." in out
    assert "6.25 GiB at 32760 tokens" in out


def test_show_takes_sizes_and_a_file(capsys, tmp_path):
    path = tmp_path / "mine.json"
    load_preset("wan2.1-t2v-1.3B", "paper").save(path)
    assert main(["show", str(path), "--tokens", "1024", "--dtype", "bfloat16"]) == 0
    assert "30 MiB at 1024 tokens" in capsys.readouterr().out


def test_bad_plan_is_one_line_and_exit_code_2(capsys, tmp_path):
    path = tmp_path / "bad.json"
    path.write_text("{}")
    for value, text in (("nope", "no preset 'nope'"), (str(path), "plan format None")):
        assert main(["show", value]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and text in error and error.count("\n") == 1


def test_odd_arguments_are_one_line(capsys):
    for arguments, text in (
        (["show", "x" * 300], "no preset 'xxx"),
        (["show", "paper", "--model", "/x"], "--model /x: plans are shipped for wan2.1-t2v-14B"),
        (["show", "paper", "--tokens", "-5"], "--tokens -5: expected at least 1"),
        (["presets", "--out", "/proc"], "/proc"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and text in error and error.count("\n") == 1


def test_presets_are_written_again_identically(capsys, tmp_path):
    assert main(["presets", "--out", str(tmp_path)]) == 0
    assert len(list(tmp_path.iterdir())) == len(MODELS) * len(PRESETS)
    for model in MODELS:
        for preset in PRESETS:
            written = (tmp_path / f"{model}.{preset}.json").read_text()
            assert written == load_preset(model, preset).dumps()
    assert main(["presets", "--out", str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err
