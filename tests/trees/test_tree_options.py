"""The command lines of both scripts: the official options and ours, defaults, help."""

import argparse
import re
from pathlib import Path

import pytest

from hyvideo.config import CONFIGS
from profiling_core.errors import InputError
from tree_cases import TreeCase
from tree_paths import ROOT

PRECISIONS = {"fp32", "fp16", "bf16"}
TEMPLATES = {"dit-llm-encode", "dit-llm-encode-video"}
ENCODERS = {"clipL", "llm"}
TASKS = {"t2v-14B", "t2v-1.3B", "i2v-14B", "t2i-14B", "flf2v-14B", "vace-1.3B", "vace-14B"}
SIZES = {"720*1280", "1280*720", "480*832", "832*480", "1024*1024", "128*128"}
OFFICIAL = {
    "wan": {
        "--task": "t2v-14B",
        "--size": None,  # officially 1280*720, which no task of 480p or smaller can take
        **dict.fromkeys(("--frame_num", "--ckpt_dir", "--offload_model")),
        **dict.fromkeys(("--ulysses_size", "--ring_size")),  # officially 1, here chosen
        **dict.fromkeys(("--t5_fsdp", "--t5_cpu", "--dit_fsdp"), False),
        **dict.fromkeys(("--save_file", "--src_video", "--src_mask", "--src_ref_images")),
        "--prompt": None,
        "--use_prompt_extend": False,
        "--prompt_extend_method": "local_qwen",
        "--prompt_extend_model": None,
        "--prompt_extend_target_lang": "zh",
        "--base_seed": -1,
        **dict.fromkeys(("--image", "--first_frame", "--last_frame")),
        "--sample_solver": "unipc",
        **dict.fromkeys(("--sample_steps", "--sample_shift")),
        "--sample_guide_scale": None,  # 5.0 for every official task, see the configurations
    },
    "hunyuan": {
        **dict.fromkeys(("--text-states-dim", "--text-len", "--text-states-dim-2")),
        **dict.fromkeys(("--flow-shift", "--model-base", "--infer-steps", "--video-size")),
        **dict.fromkeys(("--video-length", "--embedded-cfg-scale")),
        "--model": "HYVideo-T/2-cfgdistill",
        "--latent-channels": 16,
        "--precision": "bf16",
        "--rope-theta": 256,
        "--vae": "884-16c-hy",
        "--vae-precision": "fp16",
        "--vae-tiling": True,
        **dict.fromkeys(("--text-encoder", "--tokenizer"), "llm"),
        "--text-encoder-precision": "fp16",
        "--prompt-template": "dit-llm-encode",
        "--prompt-template-video": "dit-llm-encode-video",
        "--hidden-state-skip-layer": 2,
        "--apply-final-norm": False,
        **dict.fromkeys(("--text-encoder-2", "--tokenizer-2"), "clipL"),
        "--text-encoder-precision-2": "fp16",
        "--text-len-2": 77,
        "--denoise-type": "flow",
        "--flow-reverse": False,
        "--flow-solver": "euler",
        "--use-linear-quadratic-schedule": False,
        "--linear-schedule-end": 25,
        "--dit-weight": None,  # officially the official file in ckpts; here in --model-base
        "--model-resolution": "540p",
        "--load-key": "module",
        **dict.fromkeys(("--use-cpu-offload", "--disable-autocast"), False),
        **dict.fromkeys(("--use-fp8", "--reproduce"), False),
        **dict.fromkeys(("--batch-size", "--num-videos"), 1),
        **dict.fromkeys(("--ulysses-degree", "--ring-degree")),  # officially 1, here chosen
        "--save-path": "./results",
        **dict.fromkeys(("--save-path-suffix", "--name-suffix"), ""),
        **dict.fromkeys(("--prompt", "--seed", "--neg-prompt")),
        "--seed-type": "auto",
        "--cfg-scale": 1.0,
    },
}
CHOICES = {
    "wan": {
        "--task": {*TASKS, "t2v-mini", "i2v-mini"},
        "--size": SIZES,
        "--sample_solver": {"unipc", "dpm++"},
        "--prompt_extend_method": {"dashscope", "local_qwen"},
        "--prompt_extend_target_lang": {"zh", "en"},
    },
    "hunyuan": {
        "--model": {"HYVideo-T/2", "HYVideo-T/2-cfgdistill", "HYVideo-mini"},
        **dict.fromkeys(("--precision", "--vae-precision"), PRECISIONS),
        **dict.fromkeys(("--text-encoder-precision", "--text-encoder-precision-2"), PRECISIONS),
        "--vae": {"884-16c-hy"},
        **dict.fromkeys(("--text-encoder", "--tokenizer"), ENCODERS),
        **dict.fromkeys(("--text-encoder-2", "--tokenizer-2"), ENCODERS),
        **dict.fromkeys(("--prompt-template", "--prompt-template-video"), TEMPLATES),
        "--model-resolution": {"540p", "720p"},
        "--seed-type": {"file", "random", "fixed", "auto"},
    },
}
OURS = {
    "wan": {"--delta_cache", "--delta_profile", "--cfg_size", "--convert_model_dtype"},
    "hunyuan": {"--delta_cache", "--delta_profile", "--cfg-size", "--cfg_size"},
}
HELP = {
    "wan": (
        "4n+1; default 81, 1 for t2i-14B, 33 for t2v-mini, 33 for i2v-mini",
        "default 1280*720, 832*480 for t2v-1.3B, 832*480 for vace-1.3B, 128*128 for t2v-mini, "
        "128*128 for i2v-mini",
    ),
    "hunyuan": (
        "height width; default 720 1280, 128 128 for HYVideo-mini",
        "frames, 4n+1; default 129, 33 for HYVideo-mini",
    ),
}


def options(tree: TreeCase) -> dict[str, argparse.Action]:
    actions = tree.script.build_parser()._actions
    return {name: action for action in actions for name in action.option_strings}


@pytest.fixture
def official_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(CONFIGS, "HYVideo-tiny")


def test_options_are_closed_and_defaults_official(tree: TreeCase) -> None:
    found, official = options(tree), OFFICIAL[tree.name]
    assert len(official) == {"wan": 27, "hunyuan": 51}[tree.name]
    assert set(found) == {*official, *OURS[tree.name], "-h", "--help"}
    assert {name: found[name].default for name in official} == official


def test_the_documents_table_lists_exactly_the_options(tree: TreeCase) -> None:
    text = (ROOT / "docs" / "usage.md").read_text(encoding="utf-8")
    rows = (
        text.partition(f"{tree.script_path.name}` | here |")[2]
        .partition("\n\n")[0]
        .splitlines()[2:]
    )
    listed = [name for row in rows for name in re.findall(r"`(--[^ `]+)`", row.split("|")[1])]
    assert sorted(listed) == sorted({*options(tree)} - {"-h", "--help"})
    assert all(row.split("|")[2].strip() for row in rows)


def test_choices_are_official(tree: TreeCase, official_models: None) -> None:
    found = {name: set(a.choices) for name, a in options(tree).items() if a.choices}
    assert found == CHOICES[tree.name]


def test_delta_cache_alone_means_the_paper(tree: TreeCase) -> None:
    parse = tree.script.build_parser().parse_args
    assert parse(["--delta_cache"]).delta_cache == "paper"
    assert parse(["--delta_cache", "--prompt", "x"]).delta_cache == "paper"
    assert parse(["--delta_cache", "balanced"]).delta_cache == "balanced"
    assert parse([]).delta_cache is None


def test_the_paper_plan_points_to_ours(
    tree: TreeCase, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(tree.script, "run", lambda *_: None)
    monkeypatch.setattr(tree.script, "resolve_plan", lambda value, model: None)
    monkeypatch.chdir(tmp_path)
    for value, points in ((), True), (("paper",), True), (("balanced",), False):
        assert tree.script.main([*tree.argv(), "--delta_cache", *value]) == 0
        assert ("--delta_cache balanced 2x" in capsys.readouterr().out) is points
    assert tree.script.main(tree.argv()) == 0
    assert "--delta_cache balanced" not in capsys.readouterr().out
    assert not list(tmp_path.iterdir())  # files and folders are made when a clip is saved


IGNORED = {  # what upstream parses and does not read
    "wan": """
        --prompt_extend_method dashscope
        --prompt_extend_model m
        --prompt_extend_target_lang en
    """,
    "hunyuan": """
        --use-linear-quadratic-schedule
        --linear-schedule-end 9
        --model-resolution 720p
        --seed-type file
        --seed-type fixed
        --seed-type random --seed 1
        --video-size 32 32 3
    """,
}


def test_options_that_upstream_ignores_are_warned_of_and_the_run_goes_on(
    tree: TreeCase, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    ran: list[argparse.Namespace] = []
    monkeypatch.setattr(tree.script, "run", lambda args, *rest: ran.append(args))
    assert tree.script.main(tree.argv()) == 0
    assert "WARNING" not in capsys.readouterr().out
    for line in IGNORED[tree.name].strip().splitlines():
        words = line.split()
        assert tree.script.main([*tree.argv(), *words]) == 0, line
        (warning,) = (text for text in capsys.readouterr().out.splitlines() if "WARNING" in text)
        assert words[0] in warning and ("has no effect" in warning or "not (3,)" in warning)
    assert len(ran) == len(IGNORED[tree.name].strip().splitlines()) + 1
    if tree.name == "hunyuan":
        assert ran[-2].seed == [1] and ran[-1].video_size == (32, 32)


def test_help_names_each_models_defaults(tree: TreeCase, official_models: None) -> None:
    text = " ".join(tree.script.build_parser().format_help().split())
    text = text.replace("HYVideo- mini", "HYVideo-mini")  # where a line was broken
    assert all(words in text for words in HELP[tree.name])


def test_a_wrong_option_is_one_line(tree: TreeCase) -> None:
    with pytest.raises(InputError, match=r"unrecognized arguments: --cache 1 \(see --help\)"):
        tree.script.build_parser().parse_args(["--cache", "1"])
