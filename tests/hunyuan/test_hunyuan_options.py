"""The command line of HunyuanVideo/sample_video.py: the official one and our two."""

import argparse
from pathlib import Path

import pytest

import sample_video
from hyvideo.config import CONFIGS, TREE
from hyvideo.inference import SETTINGS, settings_of
from profiling_core.errors import InputError

PER_MODEL = {  # None on the command line, these values for the official models
    "--text-states-dim": 4096,
    "--text-len": 256,
    "--text-states-dim-2": 768,
    "--flow-shift": 7.0,
    "--model-base": Path("ckpts"),
    "--infer-steps": 50,
    "--video-size": (720, 1280),
    "--video-length": 129,
    "--embedded-cfg-scale": 6.0,
}
OFFICIAL = {
    **dict.fromkeys(PER_MODEL),
    "--model": "HYVideo-T/2-cfgdistill",
    "--latent-channels": 16,
    "--precision": "bf16",
    "--rope-theta": 256,
    "--vae": "884-16c-hy",
    "--vae-precision": "fp16",
    "--vae-tiling": True,
    "--text-encoder": "llm",
    "--text-encoder-precision": "fp16",
    "--tokenizer": "llm",
    "--prompt-template": "dit-llm-encode",
    "--prompt-template-video": "dit-llm-encode-video",
    "--hidden-state-skip-layer": 2,
    "--apply-final-norm": False,
    "--text-encoder-2": "clipL",
    "--text-encoder-precision-2": "fp16",
    "--tokenizer-2": "clipL",
    "--text-len-2": 77,
    "--denoise-type": "flow",
    "--flow-reverse": False,
    "--flow-solver": "euler",
    "--use-linear-quadratic-schedule": False,
    "--linear-schedule-end": 25,
    "--dit-weight": None,  # officially the official file in ckpts; here that in --model-base
    "--model-resolution": "540p",
    "--load-key": "module",
    "--use-cpu-offload": False,
    "--batch-size": 1,
    "--disable-autocast": False,
    "--save-path": "./results",
    "--save-path-suffix": "",
    "--name-suffix": "",
    "--num-videos": 1,
    "--prompt": None,
    "--seed-type": "auto",
    "--seed": None,
    "--neg-prompt": None,
    "--cfg-scale": 1.0,
    "--use-fp8": False,
    "--reproduce": False,
    "--ulysses-degree": 1,
    "--ring-degree": 1,
}
PRECISIONS = {"fp32", "fp16", "bf16"}
TEMPLATES = {"dit-llm-encode", "dit-llm-encode-video"}
CHOICES = {
    "--model": {"HYVideo-T/2", "HYVideo-T/2-cfgdistill", "HYVideo-mini"},
    "--precision": PRECISIONS,
    "--vae": {"884-16c-hy"},
    "--vae-precision": PRECISIONS,
    "--text-encoder": {"clipL", "llm"},
    "--text-encoder-precision": PRECISIONS,
    "--tokenizer": {"clipL", "llm"},
    "--prompt-template": TEMPLATES,
    "--prompt-template-video": TEMPLATES,
    "--text-encoder-2": {"clipL", "llm"},
    "--text-encoder-precision-2": PRECISIONS,
    "--tokenizer-2": {"clipL", "llm"},
    "--model-resolution": {"540p", "720p"},
    "--seed-type": {"file", "random", "fixed", "auto"},
}


def options() -> dict[str, argparse.Action]:
    actions = sample_video.build_parser()._actions
    return {name: action for action in actions for name in action.option_strings}


def resolved(*argv: str) -> argparse.Namespace:
    """Arguments with the model's defaults filled in."""
    args = sample_video.build_parser().parse_args(argv)
    sample_video.check_supported(args)
    sample_video.fill_defaults(args, CONFIGS[args.model])
    return args


@pytest.fixture(autouse=True)
def no_model_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODEL_BASE", raising=False)


def test_hunyuan_options_are_closed() -> None:
    assert len(OFFICIAL) == 51
    ours = {"--delta_cache", "--delta_profile", "--cfg-size", "--cfg_size"}
    assert set(options()) == {*OFFICIAL, *ours, "-h", "--help"}


def test_hunyuan_defaults_are_official() -> None:
    found = options()
    assert {name: found[name].default for name in OFFICIAL} == OFFICIAL
    assert found["--delta_cache"].default is None
    assert found["--delta_cache"].const == "paper"


def test_hunyuan_choices_are_official() -> None:
    found = options()
    assert {n: set(a.choices) for n, a in found.items() if a.choices} == CHOICES


@pytest.mark.parametrize("model", ["HYVideo-T/2", "HYVideo-T/2-cfgdistill"])
def test_official_models_take_the_official_values(model: str) -> None:
    args = resolved("--model", model)
    assert {n: getattr(args, n[2:].replace("-", "_")) for n in PER_MODEL} == PER_MODEL
    config = settings_of(args, CONFIGS[model])
    assert config == CONFIGS[model]  # the configuration holds the same defaults
    assert config.transformer["guidance_embed"] is (model == "HYVideo-T/2-cfgdistill")
    assert config.plan_model == "hunyuan-video-t2v-720p"


def test_the_miniature_has_values_of_its_own() -> None:
    args, config = resolved("--model", "HYVideo-mini"), CONFIGS["HYVideo-mini"]
    assert settings_of(args, config) == config
    assert (args.video_size, args.video_length) == ((128, 128), 33)
    assert args.model_base == TREE / "ckpts" / "HYVideo-mini"
    assert config.latent_shape(args.video_size, args.video_length) == (16, 9, 16, 16)
    assert config.tokens((16, 9, 16, 16)) == 576
    assert config.plan_model == "hunyuan-video-t2v-mini"


def test_given_values_are_kept() -> None:
    args = resolved("--embedded-cfg-scale", "0", "--flow-shift", "9", "--model-base", "here")
    assert (args.embedded_cfg_scale, args.flow_shift, args.model_base) == (0.0, 9.0, "here")


def test_settings_reach_the_configuration() -> None:
    args = resolved(
        *("--precision", "fp32", "--vae-precision", "bf16", "--text-encoder-precision", "fp32"),
        *("--text-encoder-precision-2", "bf16", "--text-len", "64", "--text-len-2", "50"),
        *("--rope-theta", "10000", "--hidden-state-skip-layer", "1", "--apply-final-norm"),
        *("--prompt-template", "dit-llm-encode-video", "--load-key", "ema", "--use-fp8"),
        *("--text-states-dim", "99", "--text-states-dim-2", "88", "--disable-autocast"),
    )
    config = settings_of(args, CONFIGS[args.model])
    for name in SETTINGS:
        assert getattr(config, name) == getattr(args, name)
    assert (config.text_states_dim, config.text_states_dim_2) == (99, 88)
    assert CONFIGS[args.model].text_states_dim == 4096


@pytest.mark.parametrize(
    ("given", "size"),
    [
        (("720", "1280"), (720, 1280)),
        (("360", "720"), (368, 720)),
        (("540", "960"), (544, 960)),
        (("480", "854"), (480, 864)),
        (("512",), (512, 512)),  # one value is a square, as the official help says
        (("1", "17"), (16, 32)),
    ],
)
def test_sizes_are_rounded_up_to_16(given: tuple[str, ...], size: tuple[int, int]) -> None:
    assert resolved("--video-size", *given).video_size == size


def test_latent_channels_can_be_written_out() -> None:
    assert resolved("--latent-channels", "16").latent_channels == 16


def test_seeds_count_up_or_are_drawn() -> None:
    assert resolved("--seed", "42", "--num-videos", "3").seed == [42, 43, 44]
    drawn = resolved("--num-videos", "3").seed
    assert len(drawn) == 3 and all(0 <= seed <= 1_000_000 for seed in drawn)
    assert resolved("--seed", "7", "--seed-type", "fixed").seed == [7]
    assert len(resolved("--seed-type", "random").seed) == 1


def test_the_environment_says_where_the_model_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_BASE", "/models")
    assert resolved("--model-base", "ckpts").model_base == "/models"
    bundled = CONFIGS["HYVideo-mini"].model_base
    assert resolved("--model", "HYVideo-mini").model_base == bundled


def test_options_may_be_abbreviated_as_officially() -> None:
    assert resolved("--infer", "30").infer_steps == 30


def test_delta_cache_alone_means_the_paper() -> None:
    parse = sample_video.build_parser().parse_args
    assert parse(["--delta_cache"]).delta_cache == "paper"
    assert parse(["--delta_cache", "--prompt", "x"]).delta_cache == "paper"
    assert parse(["--delta_cache", "balanced"]).delta_cache == "balanced"
    assert parse([]).delta_cache is None


@pytest.mark.parametrize(
    ("value", "told"), [((), True), (("paper",), True), (("balanced",), False), (None, False)]
)
def test_the_paper_plan_points_to_ours(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
    value: tuple[str, ...] | None,
    told: bool,
) -> None:
    monkeypatch.setattr(sample_video, "run", lambda args, config, plan, asked: None)
    monkeypatch.setattr(sample_video, "find_files", lambda *args, **options: None)
    monkeypatch.setattr(sample_video, "resolve_plan", lambda value, model: None)
    monkeypatch.chdir(tmp_path)
    option = () if value is None else ("--delta_cache", *value)
    assert sample_video.main(["--prompt", "a cat", "--flow-reverse", *option]) == 0
    assert ("--delta_cache balanced 2x" in capsys.readouterr().out) is told
    assert not list(tmp_path.iterdir())  # the folder is made when a clip is saved


def test_help_names_each_models_defaults() -> None:
    text = " ".join(sample_video.build_parser().format_help().split())
    text = text.replace("HYVideo- mini", "HYVideo-mini")  # where a line was broken
    assert "height width; default 720 1280, 128 128 for HYVideo-mini" in text
    assert "frames, 4n+1; default 129, 33 for HYVideo-mini" in text


def test_a_wrong_option_is_one_line() -> None:
    with pytest.raises(InputError, match=r"unrecognized arguments: --cache 1 \(see --help\)"):
        sample_video.build_parser().parse_args(["--cache", "1"])
