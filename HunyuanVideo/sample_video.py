"""HunyuanVideo text to video: the official command line, plus `--delta_cache` and
`--delta_profile`.

Unlike the official script: --model-base names the folder of all parts (the environment's MODEL_BASE
still wins, but for the bundled model); one --video-size value is a square; --num-videos saves them
all, one after the other, and --video-length 1 saves an image; file names hold no colon and nothing
of a prompt that is special to a file system; options that officially do nothing work, or are warned
of.
"""

from __future__ import annotations

import argparse
import os
import random
from datetime import datetime
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loguru import logger

from hyvideo.checkpoint import find_files
from hyvideo.config import (
    CONFIGS,
    DEFAULT_MODEL,
    PRECISIONS,
    TEMPLATES,
    HunyuanConfig,
    check_video_length,
    round_size,
)
from hyvideo.inference import settings_of
from hyvideo.sigmas import SOLVER, sigma_grid, sigmas_fp32
from hyvideo.video import check_target, default_name, save_folder, save_image, save_video
from profiling_core.errors import InputError
from profiling_core.parallel.degrees import (
    Given,
    check_degrees,
    choose_degrees,
    world_size,
)
from profiling_core.plan import CachePlan
from profiling_core.runtime.command_line import (
    Parser,
    check_prompt,
    check_text,
    defaults_text,
    exit_script,
    run_main,
    save_each,
    warn_unused,
)
from profiling_core.runtime.options import (
    DEFAULT_PRESET,
    add_delta_options,
    check_profile_target,
    pointer_to_ours,
    resolve_plan,
)

if TYPE_CHECKING:
    import torch

# officially parsed and never read
UNUSED = {
    "--use-linear-quadratic-schedule": "no schedule of that kind is defined",
    "--linear-schedule-end": "no schedule of that kind is defined",
    "--model-resolution": "--video-size alone decides",
    "--seed-type": "--seed alone decides",
}
LEAST_SEED, LARGEST_SEED = -(2**63), 2**64 - 1  # torch's generators take 64 bits
LARGEST_DRAWN_SEED = 1_000_000
MOST_TEXT = 100_000
# paths may differ between machines
LOCAL = ("model_base", "dit_weight", "save_path", "save_path_suffix", "name_suffix", "delta_cache")
# options whose defaults are fields of the model's configuration, by the same name
PER_MODEL = (
    "text_states_dim",
    "text_len",
    "text_states_dim_2",
    "flow_shift",
    "model_base",
    "infer_steps",
    "video_size",
    "video_length",
    "embedded_cfg_scale",
)


def default_of(field: str) -> str:
    """'default 129, 33 for HYVideo-mini': what the models take for an absent option."""
    default_first = sorted(CONFIGS.items(), key=lambda item: item[0] != DEFAULT_MODEL)
    return defaults_text((name, _shown(getattr(config, field))) for name, config in default_first)


def _shown(value: object) -> str:
    if isinstance(value, Path) and value.is_absolute():
        return "the bundled folder"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def build_parser() -> argparse.ArgumentParser:
    """All official options with their defaults; None means: decided per model."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    _add_model_options(parser)
    _add_schedule_options(parser)
    _add_run_options(parser)
    add_delta_options(parser)
    return parser


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    """The transformer, the VAE and the text encoders."""
    add = parser.add_argument
    add("--model", default=DEFAULT_MODEL, choices=[*CONFIGS])
    add("--latent-channels", type=int, default=16, help="16 is the only number there is")
    add("--precision", default="bf16", choices=PRECISIONS, help="of the transformer")
    add("--rope-theta", type=int, default=256, help="base of the rotary frequencies")
    add("--vae", default="884-16c-hy", choices=["884-16c-hy"])
    add("--vae-precision", default="fp16", choices=PRECISIONS, help="fp32 on the CPU")
    add("--vae-tiling", action="store_true", default=True, help="always on")
    add("--text-encoder", default="llm", choices=["clipL", "llm"], help="only llm")
    add("--text-encoder-precision", default="fp16", choices=PRECISIONS, help="also of the noise")
    add("--text-states-dim", type=int, help=f"width of its states; {default_of('text_states_dim')}")
    add("--text-len", type=int, help=f"text tokens; {default_of('text_len')}")
    add("--tokenizer", default="llm", choices=["clipL", "llm"], help="only llm")
    add("--prompt-template", default="dit-llm-encode", choices=[*TEMPLATES], help="of one frame")
    add("--prompt-template-video", default="dit-llm-encode-video", choices=[*TEMPLATES])
    add("--hidden-state-skip-layer", type=int, default=2, help="last layers not used")
    add("--apply-final-norm", action="store_true", help="norm the states taken earlier")
    add("--text-encoder-2", default="clipL", choices=["clipL", "llm"], help="only clipL")
    add("--text-encoder-precision-2", default="fp16", choices=PRECISIONS)
    add(
        "--text-states-dim-2",
        type=int,
        help=f"width of its vector; {default_of('text_states_dim_2')}",
    )
    add("--tokenizer-2", default="clipL", choices=["clipL", "llm"], help="only clipL")
    add("--text-len-2", type=int, default=77, help="text tokens of the second encoder")


def _add_schedule_options(parser: argparse.ArgumentParser) -> None:
    """Noise levels and solver."""
    add = parser.add_argument
    add("--denoise-type", default="flow", help="only flow")
    add("--flow-shift", type=float, help=default_of("flow_shift"))
    add("--flow-reverse", action="store_true", help="NEEDED: without it the result is noise")
    add("--flow-solver", default=SOLVER, help=f"only {SOLVER}")
    add("--use-linear-quadratic-schedule", action="store_true", help="has no effect")
    add("--linear-schedule-end", type=int, default=25, help="has no effect")


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    """Weights, the clip, guidance, seeds and processes."""
    add = parser.add_argument
    add(
        "--model-base",
        help=f"checkpoint folder, unless MODEL_BASE is set; {default_of('model_base')}",
    )
    add("--dit-weight", help="file or folder; default: the official file in --model-base")
    add("--model-resolution", default="540p", choices=["540p", "720p"], help="has no effect")
    add("--load-key", default="module", help="key of the weights in the file: module or ema")
    add("--use-cpu-offload", action="store_true", help="parts are on the GPU one at a time")
    add("--batch-size", type=int, default=1, help="only 1, see --num-videos")
    add("--infer-steps", type=int, help=default_of("infer_steps"))
    add("--disable-autocast", action="store_true", help="with --precision fp32")
    add("--save-path", default="./results", help="folder of the clips, made if missing")
    add("--save-path-suffix", default="", help="added to the folder's name")
    add("--name-suffix", default="", help="added to the files' names")
    add("--num-videos", type=int, default=1, help="clips, their seeds count up")
    add("--video-size", type=int, nargs="+", help=f"height width; {default_of('video_size')}")
    add("--video-length", type=int, help=f"frames, 4n+1; {default_of('video_length')}")
    add("--prompt", help="what is to be seen; needed")
    kinds = ["file", "random", "fixed", "auto"]
    add("--seed-type", default="auto", choices=kinds, help="has no effect")
    add("--seed", type=int, help="default: one is drawn and logged")
    add("--neg-prompt", help="with --cfg-scale above 1; default: the model's own")
    add("--cfg-scale", type=float, default=1.0, help="above 1: real guidance, twice the work")
    add("--embedded-cfg-scale", type=float, help=default_of("embedded_cfg_scale"))
    add("--use-fp8", action="store_true", help="8-bit weights, with their map file")
    add("--reproduce", action="store_true", help="deterministic algorithms where torch has them")
    add("--ulysses-degree", type=int, help="processes that share the heads; default: chosen")
    add("--ring-degree", type=int, help="groups of these, the tokens go around; default: chosen")
    apart = "2: with --cfg-scale above 1, each half runs a guidance branch; default: chosen"
    add("--cfg-size", "--cfg_size", type=int, help=apart)


def check_supported(args: argparse.Namespace) -> None:
    """InputError for what the official command line parses and cannot do, or this tree cannot."""
    only = {
        "denoise_type": ("flow", "the model is a flow"),
        "flow_solver": (SOLVER, "no other solver is known for this model"),
        "text_encoder": ("llm", "the transformer needs one state per token, which CLIP's is not"),
        "tokenizer": ("llm", "it belongs to the text encoder"),
        "text_encoder_2": ("clipL", "the transformer needs CLIP's pooled vector"),
        "tokenizer_2": ("clipL", "it belongs to the second text encoder"),
        "latent_channels": (16, "the VAE 884-16c-hy has 16"),
        "batch_size": (1, "a batch has one prompt: take --num-videos for several clips of it"),
    }
    for name, (value, reason) in only.items():
        if getattr(args, name) != value:
            raise InputError(f"{flag(name)} {getattr(args, name)}: {reason}, take {value}")
    check_processes(args)
    warn_unused(args, UNUSED, build_parser)
    check_seed(args)


def given_degrees(args: argparse.Namespace) -> Given:
    return {flag(n): getattr(args, n) for n in ("ulysses_degree", "ring_degree", "cfg_size")}


def check_processes(args: argparse.Namespace) -> None:
    """ParallelError, or InputError, when the processes that were started do not fit the options."""
    check_degrees(given_degrees(args))
    if (args.cfg_size or 1) > 1 and args.cfg_scale <= 1:
        raise InputError(
            f"--cfg-size {args.cfg_size} with --cfg-scale {args.cfg_scale}: there is one branch, "
            "leave it out"
        )
    if args.use_cpu_offload and world_size() > 1:
        raise InputError(
            "--use-cpu-offload is for one process, as officially: leave it out, several processes "
            "share out the clip"
        )


def flag(name: str) -> str:
    """'flow_shift' to '--flow-shift'."""
    return f"--{name.replace('_', '-')}"


def check_seed(args: argparse.Namespace) -> None:
    """InputError for seeds that torch does not take, or none."""
    if args.num_videos < 1:
        raise InputError(f"num-videos {args.num_videos} is too few: take at least 1")
    last = (args.seed or 0) + args.num_videos - 1
    if not LEAST_SEED <= (args.seed or 0) or last > LARGEST_SEED:
        raise InputError(
            f"seed {args.seed or 0} is out of range: take {LEAST_SEED} to "
            f"{LARGEST_SEED - args.num_videos + 1}"
        )


def fill_defaults(args: argparse.Namespace, config: HunyuanConfig) -> None:
    """Replace every absent value by the model's own; where the checkpoint lies is decided here."""
    for name in PER_MODEL:
        if getattr(args, name) is None:
            setattr(args, name, getattr(config, name))
    if os.getenv("MODEL_BASE") and not config.model_base.is_absolute():  # not of a bundled model
        args.model_base = os.environ["MODEL_BASE"]
        logger.info(f"the environment's MODEL_BASE is taken for --model-base: {args.model_base}")
    sides = tuple(args.video_size)
    if len(sides) > 2:
        logger.warning(f"--video-size: only height and width count, not {sides[2:]}")
    asked = (sides[0], sides[:2][-1])
    args.video_size = round_size(asked)
    if args.video_size != asked:
        height, width = args.video_size
        logger.info(
            f"video-size {asked[0]} {asked[1]} is rounded up to multiples of 16: {height} {width}"
        )
    if args.seed is None:
        args.seed = [random.randint(0, LARGEST_DRAWN_SEED) for _ in range(args.num_videos)]
        logger.info(f"drew seed {', '.join(map(str, args.seed))}")
    else:
        args.seed = [args.seed + number for number in range(args.num_videos)]


def check_values(args: argparse.Namespace, config: HunyuanConfig) -> None:
    """InputError for values that cannot work; needs no weights."""
    check_video_length(args.video_length, config.vae_stride[0])
    if args.prompt is None:
        raise InputError("--prompt is missing: describe what is to be seen")
    check_prompt(args.prompt)
    check_text(args.neg_prompt or "")
    for name in ("text_len", "text_len_2", "text_states_dim", "text_states_dim_2", "rope_theta"):
        if not 1 <= getattr(args, name) <= MOST_TEXT:
            raise InputError(f"{flag(name)} {getattr(args, name)}: take 1 to {MOST_TEXT}")
    tokens = config.text_tokens(args.video_length)
    if tokens < 1:
        raise InputError(
            f"--prompt-template-video {config.prompt_template_video} and --text-len "
            f"{config.text_len} leave one frame's prompt no token: take a larger --text-len"
        )
    for name in ("cfg_scale", "embedded_cfg_scale"):
        if not isfinite(getattr(args, name)):
            raise InputError(f"{flag(name)} {getattr(args, name)} is not a finite number")
    if args.disable_autocast and args.precision != "fp32":
        raise InputError(
            f"--disable-autocast with --precision {args.precision}: the transformer mixes types "
            "that only autocast brings together, take --precision fp32 with it"
        )
    sigma_grid(args.infer_steps, args.flow_shift)
    if args.delta_profile is not None and not args.flow_reverse:
        raise InputError(
            "--delta_profile without --flow-reverse: plans are for falling noise levels, and "
            "without it the result is noise: add --flow-reverse"
        )
    check_target(save_folder(args.save_path, args.save_path_suffix), file_name(args, args.seed[-1]))


def warn(args: argparse.Namespace, config: HunyuanConfig) -> None:
    """Warn about values that are allowed and hardly meant."""
    embeds = config.transformer["guidance_embed"]
    if not embeds and args.embedded_cfg_scale != config.embedded_cfg_scale:
        logger.warning(f"--embedded-cfg-scale has no effect: {args.model} embeds no guidance")
    if args.cfg_scale < 1:
        logger.warning(f"--cfg-scale {args.cfg_scale} has no effect: only above 1 it guides")
    if args.neg_prompt and args.cfg_scale <= 1:
        logger.warning("--neg-prompt has no effect without a --cfg-scale above 1")
    if args.precision == "fp16":
        logger.warning("--precision fp16 is known to overflow in this model: bf16 is safe")


def file_name(args: argparse.Namespace, seed: int) -> str:
    still = args.video_length == 1
    prompt = args.prompt.strip()
    return default_name(prompt, seed, args.name_suffix, still=still, now=datetime.now())


def sample(args: argparse.Namespace) -> None:
    """Check everything that needs no weights, then load, sample and save."""
    check_supported(args)
    asked = {name: value for name, value in vars(args).items() if name not in LOCAL}
    fill_defaults(args, CONFIGS[args.model])
    config = settings_of(args, CONFIGS[args.model])
    check_values(args, config)
    find_files(Path(args.model_base), args.dit_weight, use_fp8=args.use_fp8)
    warn(args, config)
    folder = save_folder(args.save_path, args.save_path_suffix)
    check_profile_target(args, folder / file_name(args, args.seed[-1]))
    plan = resolve_plan(args.delta_cache, config.plan_model)
    if args.delta_cache == DEFAULT_PRESET:
        logger.info(pointer_to_ours())
    logger.debug(f"arguments: {vars(args)}")
    logger.debug(f"configuration: {config}")
    logger.info(f"prompt: {args.prompt.strip()}")
    run(args, config, plan, asked)
    logger.info("finished")


def run(
    args: argparse.Namespace, config: HunyuanConfig, plan: CachePlan | None, asked: dict[str, Any]
) -> None:
    """Sample the clips, save each as it is done; asked: options that all processes share."""
    if args.reproduce:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    # torch, diffusers and transformers take seconds to import; a wrong argument ends before that
    import torch

    from hyvideo.checks import check_plan
    from hyvideo.pipeline import HunyuanVideo
    from profiling_core.parallel.launch import fingerprint, from_first, joined
    from profiling_core.parallel.ranks import local_device
    from profiling_core.recording.recorder import recorder_of
    from profiling_core.runtime.memory import out_of_memory_as_input_error

    sigmas = sigmas_fp32(args.infer_steps, args.flow_shift)
    grid = {"solver": SOLVER, "shift": args.flow_shift}
    recorder = recorder_of(args.delta_profile, config.plan_model, sigmas=sigmas, **grid)
    if plan is not None:
        plan = check_plan(plan, config, args.infer_steps, args.flow_shift)
    if args.reproduce:
        torch.use_deterministic_algorithms(True, warn_only=True)
    heads, branches = config.transformer["heads_num"], 2 if args.cfg_scale > 1 else 1
    degrees, choice = choose_degrees(given_degrees(args), heads, branches)
    if choice:
        logger.info(choice)
    device = local_device()
    height, width = args.video_size
    what = f"model {args.model}, video-size {height} {width}, video-length {args.video_length}"
    files = find_files(Path(args.model_base), args.dit_weight, use_fp8=args.use_fp8)
    facts = {
        **{flag(name): value for name, value in asked.items()},
        "plan": None if plan is None else plan.label,
        "profile's settings": None if recorder is None else recorder.settings.model_dump_json(),
        "checkpoint": fingerprint(*files.weights),
    }
    alike = joined(degrees, device, facts)
    way_out = "take a smaller --video-size, fewer frames or a smaller model"
    sparing: list[str] = []  # known once the pipeline is there
    with alike as ranks, out_of_memory_as_input_error(device, what, way_out, sparing):
        args.seed = from_first(args.seed)
        logger.info(f"loading {args.model_base}")
        pipeline = HunyuanVideo(
            config,
            args.model_base,
            device,
            dit_weight=args.dit_weight,
            use_cpu_offload=args.use_cpu_offload,
            latent_shape=config.latent_shape(args.video_size, args.video_length),
            rows=2 if args.cfg_scale > 1 else 1,
            plan=plan,
            ranks=ranks,
        )
        sparing += pipeline.sparing_options
        still = args.video_length == 1
        for seed in args.seed:
            logger.info(f"generating {'an image' if still else 'a video'}")
            videos = pipeline.generate(
                args.prompt.strip(),
                size=args.video_size,
                video_length=args.video_length,
                infer_steps=args.infer_steps,
                flow_shift=args.flow_shift,
                flow_reverse=args.flow_reverse,
                embedded_guidance=args.embedded_cfg_scale,
                cfg_scale=args.cfg_scale,
                neg_prompt=args.neg_prompt,
                seed=seed,
                plan=plan,
                recorder=recorder,
            )
            if videos is None:  # this is not the first process
                continue
            path = save_folder(args.save_path, args.save_path_suffix) / file_name(args, seed)
            save_each(
                partial(save, videos[0], path, config.sample_fps, still=still),
                None if recorder is None else recorder.write,
            )


def save(video: torch.Tensor, path: Path, fps: int, *, still: bool) -> None:
    """Write the clip, or the image."""
    logger.info(f"saving {path}")
    if still:
        save_image(video, path)
    else:
        save_video(video, path, fps)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit code is 0, 2 for a user error, 130 when interrupted."""
    return run_main(build_parser, sample, argv)


if __name__ == "__main__":
    exit_script(main)
