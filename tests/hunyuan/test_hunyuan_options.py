"""What the options of sample_video.py mean; tests/trees holds what both trees share."""

import argparse
from pathlib import Path

import pytest

import sample_video
from hyvideo.config import CONFIGS, TREE
from hyvideo.inference import SETTINGS, settings_of

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


def resolved(*argv: str) -> argparse.Namespace:
    """Arguments with the model's defaults filled in."""
    args = sample_video.build_parser().parse_args(argv)
    sample_video.check_supported(args)
    sample_video.fill_defaults(args, CONFIGS[args.model])
    return args


@pytest.fixture(autouse=True)
def no_model_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODEL_BASE", raising=False)


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
