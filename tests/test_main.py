"""python -m profiling_core: what it prints and how it fails."""

from profiling_core.__main__ import main
from profiling_core.models import MODELS
from profiling_core.presets import load_preset, presets_of


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


def test_show_knows_the_usual_sizes_of_every_model(capsys, tmp_path):
    name = "hunyuan-video-t2v-720p"
    for preset, held in (
        ("release", "9 x tokens x 3072 + 0 x latent = 6.13 GiB"),
        ("paper", "8 x tokens x 3072 + 0 x latent = 5.45 GiB"),
        ("balanced", "0 x tokens x 3072 + 2 x latent = 29 MiB"),
    ):
        assert main(["show", preset, "--model", name]) == 0
        out = capsys.readouterr().out
        assert f"{held} at 119056 tokens, 7603200 latent elements (1280x720, 129 frames" in out
    path = tmp_path / "mine.json"
    load_preset(name, "release").save(path)
    assert main(["show", str(path)]) == 0  # the file says what model it is for
    assert "at 119056 tokens" in capsys.readouterr().out
    for model in MODELS:
        assert main(["show", "paper", "--model", model]) == 0
        assert f"{MODELS[model].clip.tokens} tokens" in capsys.readouterr().out


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
    assert len(list(tmp_path.iterdir())) == 3 * 3 + 2 * 4
    for model, planned in MODELS.items():
        for preset in presets_of(planned):
            written = (tmp_path / f"{model}.{preset}.json").read_text()
            assert written == load_preset(model, preset).dumps()
    assert main(["presets", "--out", str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err
