"""profiling-dit: what it prints and how it fails."""

import importlib
import importlib.metadata
import io
import logging
import subprocess
import sys
from dataclasses import replace

import pytest

import profiling_core
from made_profiles import made_profile
from profiling_core.commands import plan as plan_module
from profiling_core.commands import show as show_module
from profiling_core.commands.main import build_parser, main
from profiling_core.errors import InputError
from profiling_core.plan import CachePlan
from profiling_core.plan.model_specs import MODELS
from profiling_core.plan.presets import load_preset, presets_of
from profiling_core.profile.profile import Profile, Settings
from profiling_core.search.paper_method import ABLATIONS, every_ablation, paper_plan


def test_show_draws_the_release_plan(capsys):
    assert main(["show", "release"]) == 0
    out = capsys.readouterr().out
    assert "computes 1984 of 4000 block runs (49.6 %)" in out
    assert "blocks 10-20  ++++++#.....#.....#.....#.....#.....#.....#.....#." in out
    assert "6.25 GiB at 32760 tokens" in out


def test_show_takes_sizes_and_a_file(capsys, tmp_path):
    path = tmp_path / "mine.json"
    load_preset("wan2.1-t2v-1.3B", "paper").replace(end=0.05).save(path)
    assert main(["show", str(path), "--tokens", "1024", "--dtype", "bfloat16"]) == 0
    out = capsys.readouterr().out
    assert "30 MiB at 1024 tokens" in out and "ends at 0.0500, branches cond" in out


def test_show_knows_the_usual_sizes_of_every_model(capsys, tmp_path):
    name = "hunyuan-video-t2v-720p"
    for preset, held in (
        ("release", "9 x tokens x 3072 + 0 x latent = 6.13 GiB"),
        ("paper", "9 x tokens x 3072 + 0 x latent = 6.13 GiB"),
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
        (["show", "paper", "--tokens", "-5"], "--tokens: found -5, expected at least 1"),
        (["presets", "--out", "/proc"], "--out /proc/plan.json: cannot write into /proc ("),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and text in error and error.count("\n") == 1


def test_presets_without_options_list_and_write_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(CachePlan, "save", None)
    assert main(["presets"]) == 0
    out = capsys.readouterr().out
    for model, planned in MODELS.items():
        (line,) = (line for line in out.splitlines() if line.startswith(f"{model}: "))
        assert all(f"{name} " in line for name in presets_of(planned))
    assert "balanced 2.00x" in line and not list(tmp_path.iterdir())


def test_presets_are_written_as_they_are_made(capsys, tmp_path, monkeypatch):
    """tests/plan/test_presets.py makes them."""
    monkeypatch.setattr(show_module, "make_preset", lambda m, p: load_preset(m.fingerprint.name, p))
    tmp_path /= "made"
    assert main(["presets", "--out", str(tmp_path)]) == 0
    assert len(list(tmp_path.iterdir())) == sum(
        len(presets_of(planned)) for planned in MODELS.values()
    )
    for model, planned in MODELS.items():
        for preset in presets_of(planned):
            written = (tmp_path / f"{model}.{preset}.json").read_text()
            assert written == load_preset(model, preset).dumps()


# -- profiles


@pytest.fixture
def recorded(tmp_path):
    path = tmp_path / "wan.profile"
    made_profile().save(path)
    return path


def refused(capsys, arguments):
    """The one line on stderr of a command that must fail."""
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def plan_command(profile, out, *more):
    return ["plan", "--profile", str(profile), "--method", "paper", "-o", str(out), *more]


def test_show_prints_a_profile_by_its_content(capsys, recorded, tmp_path):
    other = tmp_path / "named-like-a-plan.json"
    recorded.rename(other)
    assert main(["show", str(other)]) == 0
    out = capsys.readouterr().out
    assert "profile of wan2.1-t2v-mini: 2 runs" in out and "foreground blocks (4): 1 5 8-9" in out
    assert "--tokens is for plans" in refused(capsys, ["show", other, "--tokens", 5])


def test_show_writes_prompts_that_the_terminal_cannot(monkeypatch, tmp_path):
    profile = made_profile(runs=1)
    run = profile.runs[0].model_copy(update={"prompt": "一只猫"})
    replace(profile, runs=(run,)).save(tmp_path / "a.profile")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", terminal)
    assert main(["show", str(tmp_path / "a.profile")]) == 0
    terminal.flush()
    assert rb"'\u4e00\u53ea\u732b'" in terminal.buffer.getvalue()


def test_plan_writes_the_paper_s_plan_and_draws_it(capsys, recorded, tmp_path):
    out = tmp_path / "paper.json"
    options = ["--share", "0.6", "--warmup", "6", "--tmax", "12", "--tmin", "2", "--name", "mine"]
    assert main(plan_command(recorded, out, *options)) == 0
    text = capsys.readouterr().out
    plan = CachePlan.load(out)
    wanted = paper_plan(made_profile(), share=0.6, warmup=6, tmax=12, tmin=2, name="mine")
    assert plan.dumps() == wanted.dumps()
    assert "plan 'mine' for wan2.1-t2v-mini" in text and "++++++#...........#........#" in text
    assert f"--delta_cache {out}" in text
    again = plan_command(recorded, out, "--overwrite")
    assert main([*again, "--blocks", "alternate"]) == 0
    assert len(CachePlan.load(out).sites) == 2
    for row, (blocks, pattern) in ABLATIONS.items():
        given = ["--blocks", blocks, "--pattern", pattern, "--name", row]
        assert main([*again, *given]) == 0
        assert CachePlan.load(out).dumps() == every_ablation(made_profile())[row].dumps()


def test_plan_refuses_what_does_not_fit(capsys, recorded, tmp_path):
    out = tmp_path / "paper.json"
    for more, text in (
        (["--share", "0"], "share 0 of background blocks: expected above 0 and below 1"),
        (["--share", "1"], "share 1 of background"),
        (["--warmup", "-1"], "warm-up of -1 steps, expected 1..49"),
    ):
        assert text in refused(capsys, plan_command(recorded, out, *more))
    assert not out.exists()


def test_plan_refuses_files_that_are_none(capsys, recorded, tmp_path):
    out = tmp_path / "paper.json"
    before = recorded.read_bytes()
    plan = tmp_path / "plan.json"
    load_preset("wan2.1-t2v-mini", "paper").save(plan)
    assert "no safetensors file, a plan perhaps" in refused(capsys, plan_command(plan, out))
    assert "no such file" in refused(capsys, plan_command(tmp_path / "nothing", out))
    assert "not a regular file" in refused(capsys, plan_command(tmp_path, out))
    plan.write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "is a git-lfs pointer, not the file" in refused(capsys, plan_command(plan, out))
    assert "this is a profile" in refused(capsys, plan_command(recorded, recorded))
    assert "is a folder: name a file" in refused(capsys, plan_command(recorded, tmp_path))
    assert recorded.read_bytes() == before
    cut = tmp_path / "cut.profile"
    for length in (4, 100, len(before) - 1):
        cut.write_bytes(before[:length])
        for command in (plan_command(cut, out), ["show", cut]):
            assert "not a whole safetensors file" in refused(capsys, command)
    bare = tmp_path / "bare.profile"
    assert main(["profile", str(bare), "--attention-every", "0"]) == 0
    capsys.readouterr()
    assert "no run yet" in refused(capsys, plan_command(bare, out))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "bare.profile",
        "cut.profile",
        "plan.json",
        "wan.profile",
    ]


def test_plan_of_a_profile_without_attention_says_what_to_record(capsys, tmp_path):
    profile = made_profile()
    subject = profile.subject.model_copy(update={"attention_steps": (), "map_steps": ()})
    arrays = {n: a for n, a in profile.arrays.items() if n[:4] not in ("atte", "mask")}
    path = tmp_path / "bare.profile"
    replace(profile, subject=subject, arrays=arrays).save(path)
    assert "attention_every > 0" in refused(capsys, plan_command(path, tmp_path / "p.json"))


def test_profile_prepares_settings_without_runs(capsys, tmp_path, monkeypatch):
    path = tmp_path / "new.profile"
    assert main(["profile", str(path)]) == 0
    assert Profile.load(path) == Profile(Settings())
    assert f"--delta_profile {path}" in capsys.readouterr().out
    masks = tmp_path / "masks.npy"
    masks.touch()
    monkeypatch.chdir(tmp_path)
    options = ["--mask", "file", "--mask-source", "masks.npy", "--attention-every", "2"]
    options += ["--attention-queries", "512", "--high-threshold", "1.5", "--delta-tokens", "16"]
    assert main(["profile", "b.profile", *options, "--sensitivity", "1,3,20"]) == 0
    assert Profile.load("b.profile").settings == Settings(
        mask="file",
        mask_source=str(masks),  # absolute: runs start in other folders
        attention_every=2,
        attention_queries=512,
        high_share=None,
        high_threshold=1.5,
        delta_tokens=16,
        sensitivity=(1, 3, 20),
    )
    assert main(["show", "b.profile"]) == 0
    assert "a profile without runs yet" in capsys.readouterr().out


def test_profile_refuses_settings_that_cannot_be_recorded(capsys, recorded, tmp_path):
    path = tmp_path / "new.profile"
    for options, text in (
        (["--attention-every", "-1"], "--attention-every: Input should be greater than or equal"),
        (["--attention-queries", "0"], "--attention-queries: "),
        (["--high-share", "1.5"], "--high-share: Input should be less than 1, found '1.5'"),
        (["--high-share", "nan"], "--high-share: "),
        (["--high-threshold", "0"], "--high-threshold: "),
        (["--delta-tokens", "0"], "--delta-tokens: "),
        (["--sensitivity", "0,3"], "--sensitivity[0]: "),
        (["--sensitivity", "3,3"], "--sensitivity: 3 follows 3, expected ascending"),
        (["--sensitivity", "a"], "--sensitivity 'a': expected whole numbers"),
        (["--mask", "sam2"], "--mask sam2 needs --mask-source: the folder of SAM2's weights"),
        (["--mask", "sam2", "--mask-source", str(tmp_path)], "not found, expected the folder"),
        (
            ["--mask", "file", "--mask-source", "nowhere.npy"],
            "--mask-source nowhere.npy: not found",
        ),
        (["--mask-source", "x"], "--mask-source x goes with --mask sam2 or file, not pca"),
    ):
        assert text in refused(capsys, ["profile", path, *options])
    assert not path.exists()
    assert "exists" in refused(capsys, ["profile", recorded])
    assert main(["profile", str(tmp_path / "new" / "folder" / "a.profile")]) == 0


def test_show_and_plan_import_no_torch(recorded):
    command = "import sys; from profiling_core.commands.main import build_parser, main; "
    command += f"main(['show', {str(recorded)!r}]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], capture_output=True).returncode == 0


# -- the command line as a whole


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shwo", "paper"], "no command 'shwo': did you mean show?"),
        (["zzz"], "no command 'zzz' (profiling-dit --help)"),
        ([], "required: command (profiling-dit --help)"),
        (["plan", "--profile", "a", "--sped-up=2"], "'--sped-up': did you mean --speedup?"),
        (["plan", "--speed", "2"], "no option '--speed': did you mean --speedup?"),
        (["profile", "a", "--mask_sorce", "b"], "'--mask_sorce': did you mean --mask-source?"),
        (["--versoin"], "no option '--versoin': did you mean --version?"),
        (["plan", "--profile", "a"], "required: -o/--out (profiling-dit plan --help)"),
        (["plan", "--speedup", "two"], "argument --speedup: invalid float value: 'two'"),
        (["show", "paper", "fast"], "unrecognized arguments: fast (profiling-dit --help)"),
        (["show", "balancd"], "or give the path of a plan file (did you mean balanced?)"),
        (["show", "fast", "--model", "wan2.1-t2v-14b"], "did you mean wan2.1-t2v-14B?"),
    ],
)
def test_what_is_mistyped_is_one_line_with_the_nearest_word(capsys, arguments, message):
    assert message in refused(capsys, arguments)


def test_words_after_an_equals_sign_are_no_options(capsys):
    arguments = ["compare", "--tree", "wan", "--prompts", "gone", "--plans", "a", "--out", "b"]
    assert "gone" in refused(capsys, [*arguments, "--tree-options=--t5_cpu --unknown"])


def test_the_version_is_that_of_the_distribution(capsys, monkeypatch):
    versions = {"profiling-dit": "1.2.3"}
    monkeypatch.setattr(importlib.metadata, "version", versions.__getitem__)
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == "profiling-dit 1.2.3\n"
    assert profiling_core.__version__ == "1.2.3"


def test_a_checkout_that_is_not_installed_has_no_version(monkeypatch):
    def none(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", none)
    assert profiling_core.__version__ == "0+unknown"


def test_the_public_names_are_there_and_importing_them_is_lazy():
    command = "import sys, profiling_core; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", command]).returncode == 0
    assert set(profiling_core.MODULES) == set(profiling_core.__all__) - {"__version__"}
    for name in profiling_core.__all__:
        assert getattr(profiling_core, name) is not None and name in dir(profiling_core)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        profiling_core.nothing  # noqa: B018


def test_python_m_is_the_same_command():
    command = [sys.executable, "-m", "profiling_core", "plan", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, env={"COLUMNS": "100"})
    lines = shown.stdout.splitlines()
    assert lines[0].startswith("usage: profiling-dit plan --profile FILE")
    assert 30 < len(lines) <= 60
    assert all(len(line) <= 120 for line in lines)


def test_options_of_our_commands_have_hyphens():
    parsers = build_parser()._subparsers._group_actions[0].choices
    options = {word for one in parsers.values() for word in one._option_string_actions}
    assert {"--ckpt-dir", "--frame-num", "--mask-source", "--overwrite"} <= options
    assert not [option for option in options if "_" in option]


def test_the_trees_spelling_with_underscores_is_taken_as_well():
    given = ["check", "--tree", "wan", "--ckpt_dir=a_b", "--frame_num", "5", "--out", "--c_d"]
    with pytest.raises(InputError, match="no option '--c_d'"):
        build_parser().parse_args(given)
    args = build_parser().parse_args([*given[:-1], "c_d"])
    assert (args.ckpt_dir, args.frame_num, args.out) == ("a_b", 5, "c_d")


def test_existing_files_stay_unless_overwrite_is_given(capsys, tmp_path):
    made_profile(steps=20).save(recorded := tmp_path / "wan.profile")
    plan, drawn = tmp_path / "a.json", tmp_path / "a.svg"
    command = ["plan", "--profile", str(recorded), "--speedup", "2", "-o", str(plan)]
    plan.write_text("mine")
    assert f"-o {plan}: exists already, --overwrite replaces it" in refused(capsys, command)
    assert plan.read_text() == "mine"
    assert main([*command, "--overwrite"]) == 0
    plan.unlink()
    drawn.write_text("mine")
    command += ["--frontier", str(drawn)]
    assert f"--frontier {drawn}: exists already" in refused(capsys, command)
    assert not plan.exists() and drawn.read_text() == "mine"
    page, pngs = tmp_path / "a.html", tmp_path / "pngs"
    command = ["report", "--profile", str(recorded), "-o", str(page)]
    page.write_text("mine")
    assert f"-o {page}: exists already" in refused(capsys, command)
    page.unlink()
    pngs.mkdir()
    (pngs / "l1.png").write_text("mine")
    assert "l1.png: exists already" in refused(capsys, [*command, "--png", str(pngs)])
    assert not page.exists()
    presets = ["presets", "--profile", str(recorded), "--out", str(tmp_path)]
    (tmp_path / "wan2.1-t2v-mini.fast.json").write_text("mine")
    assert "fast.json: exists already" in refused(capsys, presets)
    assert not (tmp_path / "wan2.1-t2v-mini.quality.json").exists()
    assert main([*presets, "--overwrite"]) == 0


def test_quiet_leaves_the_written_files_and_verbose_adds_the_library_s_log(
    capsys, recorded, tmp_path, monkeypatch
):
    out = tmp_path / "a.json"
    command = ["plan", "--profile", str(recorded), "--speedup", "2", "-o", str(out)]

    def search(profile, args):
        for level in ("debug", "info", "error"):
            getattr(logging.getLogger("profiling_core.search"), level)(f"an {level} line")
        return plan_module.paper_plan(profile), ["a table"]

    monkeypatch.setitem(plan_module.METHODS, "search", search)
    for more, logged in (
        ([], ["info", "error"]),
        (["--quiet"], ["error"]),
        (["--verbose"], ["debug", "info", "error"]),
    ):
        assert main([*command, *more, "--overwrite"]) == 0
        said = capsys.readouterr()
        assert said.err.splitlines() == [f"an {level} line" for level in logged]
        assert said.out.splitlines()[-1].startswith(f"wrote {out}")
        assert ("a table" in said.out) == ("--quiet" not in more)
        assert (said.out.count("\n") == 1) == ("--quiet" in more)
    assert "not allowed with" in refused(capsys, [*command, "--quiet", "--verbose"])
    assert logging.getLogger("profiling_core").handlers == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("skimage.metrics", 'scikit-image is not installed: pip install "profiling-dit[report]"'),
        ("transformers", 'transformers is not installed: pip install "profiling-dit[diffusers]"'),
        ("tqdm", 'tqdm is not installed: pip install "profiling-dit[batch]"'),
        ("loguru", "loguru is not installed: pip install -r requirements.txt"),
    ],
)
def test_a_package_that_is_not_there_is_one_line(capsys, monkeypatch, module, line):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(show_module, "resolve_plan", lambda *given: importlib.import_module(module))
    assert refused(capsys, ["show", "paper"]) == f"error: {line}\n"


def test_a_module_of_ours_that_is_not_there_is_a_mistake_of_ours(monkeypatch):
    gone = "profiling_core.gone"
    monkeypatch.setattr(show_module, "resolve_plan", lambda *given: importlib.import_module(gone))
    with pytest.raises(ModuleNotFoundError):
        main(["show", "paper"])


def test_an_interrupted_command_ends_with_130(capsys, monkeypatch):
    def interrupted(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(show_module, "resolve_plan", interrupted)
    assert main(["show", "paper"]) == 130
    assert capsys.readouterr().err == "interrupted, no unfinished file is left\n"
