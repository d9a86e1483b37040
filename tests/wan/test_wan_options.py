"""What the options of Wan2.1/generate.py mean; tests/trees holds what both trees share."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

import generate
import wan
from profiling_core.errors import InputError
from profiling_core.parallel.degrees import Degrees
from profiling_core.plan.model_specs import MODELS
from wan.configs import WAN_CONFIGS


def resolved(*argv: str) -> argparse.Namespace:
    """Arguments with the task's defaults filled in."""
    args = generate.build_parser().parse_args(argv)
    generate.fill_defaults(args, WAN_CONFIGS[args.task])
    return args


@pytest.mark.parametrize(
    ("task", "size", "frames", "negative"),
    [
        ("t2v-14B", "1280*720", 81, "色调艳丽"),
        ("t2v-1.3B", "832*480", 81, "色调艳丽"),
        ("t2i-14B", "1280*720", 1, "色调艳丽"),
        ("t2v-mini", "128*128", 33, ""),
        ("i2v-mini", "128*128", 33, ""),
    ],
)
def test_task_defaults(task: str, size: str, frames: int, negative: str) -> None:
    args = resolved("--task", task)
    assert (args.size, args.frame_num) == (size, frames)
    assert args.sample_steps == 50
    assert args.prompt == WAN_CONFIGS[task].example_prompt
    assert WAN_CONFIGS[task].sample_neg_prompt.startswith(negative)
    assert 0 <= args.base_seed
    assert args.offload_model is None  # decided by memory once torch is there
    name = generate.file_of(args, WAN_CONFIGS[task], Degrees(2, 3)).name
    assert f"_2_3_{args.prompt.split()[0]}" in name
    assert name.endswith(".png" if task == "t2i-14B" else ".mp4")


@pytest.mark.parametrize(
    ("task", "steps", "shifts", "negative"),
    [
        ("i2v-14B", 40, {"1280*720": 5.0, "480*832": 3.0}, "镜头晃动，色调艳丽"),
        ("flf2v-14B", 50, {"1280*720": 16.0, "480*832": 16.0}, "镜头切换，镜头晃动，色调艳丽"),
        ("vace-14B", 50, {"1280*720": 16.0, "480*832": 16.0}, "色调艳丽"),
        ("vace-1.3B", 50, {"832*480": 16.0, "480*832": 16.0}, "色调艳丽"),
    ],
)
def test_image_tasks_have_the_official_defaults(
    task: str, steps: int, shifts: dict[str, float], negative: str
) -> None:
    assert WAN_CONFIGS[task].sample_neg_prompt.startswith(negative)
    for size, shift in shifts.items():
        args = resolved("--task", task, "--size", size)
        assert (args.sample_steps, args.sample_shift, args.frame_num) == (steps, shift, 81)
        planned = MODELS[WAN_CONFIGS[task].plan_model_of(size)].family
        assert (planned.steps, planned.shift) == (steps, shift)


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


def test_without_a_folder_the_official_one_beside_the_script_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(wan.configs, "TREE", tmp_path)
    assert resolved("--task", "t2i-14B").ckpt_dir is None
    with pytest.raises(InputError, match=r"missing and .*/Wan2.1-T2V-14B does not exist: download"):
        generate.check_values(resolved("--task", "t2i-14B"), WAN_CONFIGS["t2i-14B"])
    small = ("--size", "480*832")
    for name, *argv in (
        ("Wan2.1-T2V-14B", "t2i-14B"),
        ("Wan2.1-T2V-1.3B", "t2v-1.3B"),
        ("Wan2.1-I2V-14B-480P", "i2v-14B", *small),
        ("Wan2.1-I2V-14B-720P", "i2v-14B"),
        ("Wan2.1-FLF2V-14B-720P", "flf2v-14B", *small),
        ("Wan2.1-VACE-1.3B", "vace-1.3B"),
    ):
        assert resolved("--task", *argv).ckpt_dir is None
        (tmp_path / name).mkdir()
        assert resolved("--task", *argv).ckpt_dir == tmp_path / name
    assert resolved("--ckpt_dir", "mine").ckpt_dir == "mine"


def test_official_names_exist() -> None:
    assert wan.configs.WAN_CONFIGS["t2v-1.3B"].sample_fps == 16
    assert wan.configs.SIZE_CONFIGS["832*480"] == (832, 480)
    assert wan.configs.MAX_AREA_CONFIGS["832*480"] == 832 * 480
    for task in ("t2v-1.3B", "vace-1.3B"):
        assert wan.configs.SUPPORTED_SIZES[task] == ("480*832", "832*480")
    assert wan.configs.SUPPORTED_SIZES["vace-14B"] == wan.configs.VIDEO_SIZES
    with pytest.raises(AttributeError, match="no attribute 'WanX'"):
        wan.WanX  # noqa: B018


def test_import_wan_loads_no_torch_before_the_pipeline_is_asked_for() -> None:
    code = (
        "import sys, wan; assert 'torch' not in sys.modules; pipeline = wan.WanT2V; "
        "assert pipeline is sys.modules['wan.text2video'].WanT2V"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(generate.__file__).parent, check=True)
