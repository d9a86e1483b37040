"""The command line of Wan2.1/generate.py is the official one and our two."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

import generate
import wan
from profiling_core.errors import InputError
from wan.configs import WAN_CONFIGS

OFFICIAL = {
    "--task": "t2v-14B",
    "--size": None,  # officially 1280*720, which no task of 480p or smaller can take
    "--frame_num": None,
    "--ckpt_dir": None,
    "--offload_model": None,
    "--ulysses_size": 1,
    "--ring_size": 1,
    "--t5_fsdp": False,
    "--t5_cpu": False,
    "--dit_fsdp": False,
    "--save_file": None,
    "--src_video": None,
    "--src_mask": None,
    "--src_ref_images": None,
    "--prompt": None,
    "--use_prompt_extend": False,
    "--prompt_extend_method": "local_qwen",
    "--prompt_extend_model": None,
    "--prompt_extend_target_lang": "zh",
    "--base_seed": -1,
    "--image": None,
    "--first_frame": None,
    "--last_frame": None,
    "--sample_solver": "unipc",
    "--sample_steps": None,
    "--sample_shift": None,
    "--sample_guide_scale": None,  # 5.0 for every official task, see the configurations
}


def options() -> dict[str, argparse.Action]:
    actions = generate.build_parser()._actions
    return {name: action for action in actions for name in action.option_strings}


def resolved(*argv: str) -> argparse.Namespace:
    """Arguments with the task's defaults filled in."""
    args = generate.build_parser().parse_args(argv)
    generate.fill_defaults(args, WAN_CONFIGS[args.task])
    return args


def test_wan_options_are_closed() -> None:
    ours = {"--delta_cache", "--delta_profile", "--cfg_size"}
    assert set(options()) == {*OFFICIAL, *ours, "-h", "--help"}


def test_wan_defaults_are_official() -> None:
    found = options()
    assert {name: found[name].default for name in OFFICIAL} == OFFICIAL
    assert found["--delta_cache"].default is None
    assert found["--delta_cache"].const == "paper"


def test_wan_choices() -> None:
    found = options()
    official = {"t2v-14B", "t2v-1.3B", "i2v-14B", "t2i-14B", "flf2v-14B", "vace-1.3B", "vace-14B"}
    assert set(found["--task"].choices) == {*official, "t2v-mini"}
    sizes = {"720*1280", "1280*720", "480*832", "832*480", "1024*1024"}
    assert set(found["--size"].choices) == {*sizes, "128*128"}
    assert set(found["--sample_solver"].choices) == {"unipc", "dpm++"}


@pytest.mark.parametrize(
    ("task", "size", "frames", "negative"),
    [
        ("t2v-14B", "1280*720", 81, "色调艳丽"),
        ("t2v-1.3B", "832*480", 81, "色调艳丽"),
        ("t2i-14B", "1280*720", 1, "色调艳丽"),
        ("t2v-mini", "128*128", 33, ""),
    ],
)
def test_task_defaults(task: str, size: str, frames: int, negative: str) -> None:
    args = resolved("--task", task)
    assert (args.size, args.frame_num) == (size, frames)
    assert args.sample_steps == 50
    assert args.prompt == WAN_CONFIGS[task].example_prompt
    assert WAN_CONFIGS[task].sample_neg_prompt.startswith(negative)
    assert 0 <= args.base_seed
    assert args.offload_model is True
    assert args.save_file.endswith(".png" if task == "t2i-14B" else ".mp4")


@pytest.mark.parametrize("task", ["t2v-14B", "t2v-1.3B", "t2i-14B"])
def test_official_tasks_sample_with_shift_5_and_guidance_5(task: str) -> None:
    args = resolved("--task", task)
    assert (args.sample_shift, args.sample_guide_scale) == (5.0, 5.0)


def test_given_values_are_kept() -> None:
    args = resolved("--sample_guide_scale", "6", "--sample_shift", "8", "--base_seed", "0")
    assert (args.sample_guide_scale, args.sample_shift, args.base_seed) == (6.0, 8.0, 0)


@pytest.mark.parametrize(
    ("text", "value"),
    [("yes", True), ("TRUE", True), ("t", True), ("1", True), ("No", False), ("f", False)],
)
def test_offload_model_takes_words(text: str, value: bool) -> None:
    assert generate.build_parser().parse_args(["--offload_model", text]).offload_model is value


def test_delta_cache_alone_means_the_paper() -> None:
    parse = generate.build_parser().parse_args
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
    monkeypatch.setattr(generate, "run", lambda args, config, plan, asked: None)
    monkeypatch.setattr(generate, "check_folder", lambda folder, config: None)
    monkeypatch.chdir(tmp_path)
    option = () if value is None else ("--delta_cache", *value)
    assert generate.main(["--task", "t2v-mini", *option]) == 0
    assert ("--delta_cache balanced 2x" in capsys.readouterr().out) is told


def test_help_names_each_tasks_defaults() -> None:
    text = " ".join(generate.build_parser().format_help().split())
    assert "4n+1; default 81, 1 for t2i-14B, 33 for t2v-mini" in text
    assert "default 1280*720, 832*480 for t2v-1.3B, 128*128 for t2v-mini" in text
    for field in ("sample_steps", "sample_shift", "sample_guide_scale"):
        value = getattr(WAN_CONFIGS["t2v-mini"], field)
        default = generate.default_of(field)
        assert default == f"default {value}" or f"{value} for t2v-mini" in default


def test_a_wrong_option_is_one_line() -> None:
    with pytest.raises(InputError, match=r"unrecognized arguments: --cache 1 \(see --help\)"):
        generate.build_parser().parse_args(["--cache", "1"])


def test_official_names_exist() -> None:
    assert wan.configs.WAN_CONFIGS["t2v-1.3B"].sample_fps == 16
    assert wan.configs.SIZE_CONFIGS["832*480"] == (832, 480)
    assert wan.configs.MAX_AREA_CONFIGS["832*480"] == 832 * 480
    assert wan.configs.SUPPORTED_SIZES["t2v-1.3B"] == ("480*832", "832*480")
    with pytest.raises(AttributeError, match="no attribute 'WanX'"):
        wan.WanX  # noqa: B018


def test_import_wan_loads_no_torch_before_the_pipeline_is_asked_for() -> None:
    code = (
        "import sys, wan; assert 'torch' not in sys.modules; pipeline = wan.WanT2V; "
        "assert pipeline is sys.modules['wan.text2video'].WanT2V"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(generate.__file__).parent, check=True)
