"""Wan2.1 text to video, text to image, image to video and VACE: the official command line, plus
`--delta_cache`, `--delta_profile` and Wan2.2's `--convert_model_dtype`.

Unlike the official script: a frame_num that is not 4n+1 is refused; t2v-1.3B takes a size of its
own when none is given; pictures and videos have to be named, and a mask has to be like its video;
default file names hold no `*` and nothing of a prompt that is special to a file system; a video
that cannot be saved is an error.
"""

from __future__ import annotations

import argparse
import random
import sys
from datetime import datetime
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loguru import logger

from profiling_core.errors import InputError
from profiling_core.parallel.degrees import (
    Degrees,
    Given,
    check_degrees,
    choose_degrees,
    world_size,
)
from profiling_core.plan import CachePlan
from profiling_core.plan.schema import BRANCHES
from profiling_core.runtime.command_line import (
    Parser,
    check_prompt,
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
from wan.checkpoint import check_folder, checkpoint_files
from wan.configs import (
    MAX_AREA_CONFIGS,
    SIZE_CONFIGS,
    SOURCES,
    WAN_CONFIGS,
    WanConfig,
)
from wan.pictures import read_picture
from wan.prompt_extend import check_language_model, extend
from wan.sigmas import SOLVERS, sigma_grid, sigmas_fp32
from wan.sources import Sources, read_sources
from wan.video import check_target, default_name, save_image, save_video

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

PICTURES = {"image": "i2v", "first_frame": "flf2v", "last_frame": "flf2v"}  # and their tasks
FILES = PICTURES | dict.fromkeys(SOURCES, "vace")
# paths may differ between machines
LOCAL = ("ckpt_dir", "save_file", "delta_cache", "prompt_extend_model", *FILES)
# officially read with another option
UNEXTENDED = dict.fromkeys(
    ("--prompt_extend_method", "--prompt_extend_model", "--prompt_extend_target_lang"),
    "it belongs to --use_prompt_extend",
)
LARGEST_SEED = 2**64 - 1  # torch's generators take 64 bits


def bool_text(text: str) -> bool:
    """yes/true/t/y/1 or no/false/f/n/0 in any case."""
    if text.lower() in ("yes", "true", "t", "y", "1"):
        return True
    if text.lower() in ("no", "false", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def default_of(field: str) -> str:
    """'default 81, 1 for t2i-14B, ...': what the tasks take for an absent option."""
    return defaults_text((task, getattr(config, field)) for task, config in WAN_CONFIGS.items())


def build_parser() -> argparse.ArgumentParser:
    """All official options with their defaults; None means: decided per task."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--task", default="t2v-14B", choices=[*WAN_CONFIGS])
    add("--size", choices=[*SIZE_CONFIGS], help=f"width*height; {default_of('default_size')}")
    add("--frame_num", type=int, help=f"4n+1; {default_of('frame_num')}")
    add("--ckpt_dir", help="checkpoint folder; t2v-mini and i2v-mini have one bundled")
    add(
        "--offload_model",
        type=bool_text,
        help="parts that do not work leave the GPU; default: false where everything fits",
    )
    add("--ulysses_size", type=int, help="processes that share the heads; default: chosen")
    add("--ring_size", type=int, help="groups of these, the tokens go around; default: chosen")
    add("--cfg_size", type=int, help="2: each half runs a guidance branch; default: chosen")
    add("--t5_fsdp", action="store_true", help="share out the text encoder's weights")
    add("--t5_cpu", action="store_true", help="keep the text encoder on the CPU")
    add("--convert_model_dtype", action="store_true", help="the transformer in bf16, half of fp32")
    add("--dit_fsdp", action="store_true", help="share out the transformer's weights")
    add("--save_file", help="output path; default: a name made of task, size, prompt and time")
    add("--src_video", help="the video, for vace tasks; it decides on frames and aspect")
    add("--src_mask", help="a video, for vace tasks: white where --src_video is made anew")
    add("--src_ref_images", help="pictures with commas between, for vace tasks")
    add("--prompt", help="default: an example")
    add("--use_prompt_extend", action="store_true", help="a language model writes more")
    add("--prompt_extend_method", default="local_qwen", choices=["dashscope", "local_qwen"])
    add("--prompt_extend_model", help="folder of a text model, such as Qwen2.5-14B-Instruct")
    add("--prompt_extend_target_lang", default="zh", choices=["zh", "en"])
    add("--base_seed", type=int, default=-1, help="negative: one is drawn and logged")
    for name, kind in PICTURES.items():
        add(f"--{name}", help=f"the picture, for {kind} tasks")
    add("--sample_solver", default="unipc", choices=SOLVERS)
    add("--sample_steps", type=int, help=default_of("sample_steps"))
    add("--sample_shift", type=float, help=default_of("sample_shift"))
    add("--sample_guide_scale", type=float, help=default_of("sample_guide_scale"))
    add_delta_options(parser)
    return parser


def check_supported(args: argparse.Namespace) -> None:
    """InputError for what the official command line can and this tree cannot do."""
    if args.use_prompt_extend:
        if args.prompt_extend_method == "dashscope":
            raise InputError(
                "--prompt_extend_method dashscope would send the prompt to a remote service, which "
                "is not done here: take local_qwen and a folder in --prompt_extend_model"
            )
        check_language_model(args.prompt_extend_model)
    config = WAN_CONFIGS[args.task]
    for name, kind in FILES.items():
        taken = (*config.pictures, *config.sources)
        if getattr(args, name) is not None and name not in taken:
            mini = args.task.endswith("-mini") and f"{kind}-mini" in WAN_CONFIGS
            raise InputError(
                f"--{name} {getattr(args, name)}: task {args.task} does not start from it, leave "
                f"it out or take --task {kind}-{'mini' if mini else '14B'}"
            )
    check_processes(args)
    if not args.use_prompt_extend:
        warn_unused(args, UNEXTENDED, build_parser)


def given_degrees(args: argparse.Namespace) -> Given:
    return {f"--{name}": getattr(args, name) for name in ("ulysses_size", "ring_size", "cfg_size")}


def check_processes(args: argparse.Namespace) -> None:
    """ParallelError, or InputError, when the processes that were started do not fit the options."""
    check_degrees(given_degrees(args))
    for name in ("dit_fsdp", "t5_fsdp"):
        if getattr(args, name) and world_size() == 1:
            raise InputError(
                f"--{name} shares out weights, but this run has one process: leave it out"
            )


def fill_defaults(args: argparse.Namespace, config: WanConfig) -> None:
    """Replace every absent value by the task's own."""
    if args.size is None:
        args.size = config.default_size
        logger.info(f"size is not specified, {args.task} takes {args.size}")
    if args.offload_model is None and world_size() > 1:
        args.offload_model = False
        logger.info(f"offload_model is not specified, set to {args.offload_model}")
    if args.prompt is None:
        args.prompt = config.example_prompt
        logger.info("prompt is not specified, taking an example")
    if args.base_seed < 0:
        args.base_seed = random.randint(0, sys.maxsize)
        logger.info(f"drew base_seed {args.base_seed}")
    if args.sample_shift is None:
        args.sample_shift = config.shift_of(args.size)
    for name in ("frame_num", "sample_steps", "sample_guide_scale"):
        if getattr(args, name) is None:
            setattr(args, name, getattr(config, name))
    folder = config.folder_of(args.size)
    if args.ckpt_dir is None and folder.is_dir():
        args.ckpt_dir = folder
        if config.ckpt_dir is None:  # not bundled
            logger.info(f"ckpt_dir is not specified, taking {args.ckpt_dir}")


def file_of(args: argparse.Namespace, config: WanConfig, degrees: Degrees | None = None) -> Path:
    """Where the clip goes; degrees: of the run, once they are known."""
    if args.save_file is not None:
        return Path(args.save_file)
    ulysses, ring = (1, 1) if degrees is None else (degrees.ulysses, degrees.ring)
    words = (args.task, args.size, ulysses, ring, args.prompt)
    return Path(default_name(*words, still=config.still, now=datetime.now()))


def check_values(args: argparse.Namespace, config: WanConfig) -> None:
    """InputError for values that cannot work; needs no weights."""
    if args.size not in config.sizes:
        raise InputError(
            f"size {args.size} is not one of task {args.task}: take {', '.join(config.sizes)}"
        )
    if config.still and args.frame_num != 1:
        raise InputError(f"frame_num {args.frame_num}: task {args.task} makes one image, take 1")
    config.check_frames(args.frame_num)
    check_prompt(args.prompt)
    if args.base_seed > LARGEST_SEED:
        raise InputError(f"base_seed {args.base_seed} is too large: take at most {LARGEST_SEED}")
    if not isfinite(args.sample_guide_scale):
        raise InputError(f"sample_guide_scale {args.sample_guide_scale} is not a finite number")
    sigma_grid(args.sample_solver, args.sample_steps, args.sample_shift)
    check_target(file_of(args, config), still=config.still)
    if args.ckpt_dir is None:
        raise InputError(
            f"--ckpt_dir is missing and {config.folder_of(args.size)} does not exist: "
            f"{config.way_out}"
        )


def read_pictures(args: argparse.Namespace, config: WanConfig) -> list[Image]:
    """The pictures that the task starts from."""
    for name in config.pictures:
        if not getattr(args, name):
            raise InputError(f"--{name} is missing: task {args.task} needs a picture, name one")
    return [read_picture(Path(getattr(args, name)), f"--{name}") for name in config.pictures]


def paths_of(args: argparse.Namespace, name: str) -> list[Path]:
    """The files that an option names."""
    given = getattr(args, name) or ""
    names = given.split(",") if name == "src_ref_images" else [given]
    return [Path(one) for one in names if one]


def check_sources(args: argparse.Namespace, config: WanConfig) -> Sources | None:
    """What a vace clip is made from, which decides on `args.frame_num`; None for other tasks."""
    if not config.sources:
        return None
    pictures = paths_of(args, "src_ref_images")
    size = SIZE_CONFIGS[args.size]
    found = read_sources(args.src_video, args.src_mask, pictures, size, args.frame_num, "--")
    if found.video is not None:
        width, height = found.size
        args.frame_num = found.frame_num
        logger.info(f"--src_video asks for {args.frame_num} frames of {width}x{height}")
    for frames in (found.frame_num, found.encoded_frames):
        config.check_frames(frames)
    return found


def generate(args: argparse.Namespace) -> None:
    """Check everything that needs no weights, then load, sample and save."""
    check_supported(args)
    config = WAN_CONFIGS[args.task]
    asked = {name: value for name, value in vars(args).items() if name not in LOCAL}
    fill_defaults(args, config)
    pictures, sources = read_pictures(args, config), check_sources(args, config)
    config.size_for(args.size, pictures[0].size if pictures else None)
    check_values(args, config)
    check_folder(Path(args.ckpt_dir), config)
    check_profile_target(args, file_of(args, config))
    plan = resolve_plan(args.delta_cache, config.plan_model_of(args.size))
    if args.delta_cache == DEFAULT_PRESET:
        logger.info(pointer_to_ours())
    logger.debug(f"arguments: {vars(args)}")
    logger.debug(f"configuration: {config}")
    logger.info(f"prompt: {args.prompt}")
    run(args, config, plan, asked, pictures, sources)
    logger.info("finished")


def run(
    args: argparse.Namespace,
    config: WanConfig,
    plan: CachePlan | None,
    asked: dict[str, Any],
    pictures: list[Image],
    sources: Sources | None,
) -> None:
    """Sample one clip and save it; asked: the options that all processes have to share."""
    # torch, diffusers and transformers take seconds to import; a wrong argument ends before that
    import torch

    from profiling_core.parallel.launch import fingerprint, from_first, joined
    from profiling_core.parallel.ranks import local_device
    from profiling_core.recording.recorder import recorder_of
    from profiling_core.runtime.memory import out_of_memory_as_input_error
    from wan.checks import check_plan
    from wan.vace import PIPELINES, load_sources
    from wan.weights import model_kwargs

    folder = Path(args.ckpt_dir)
    heads = model_kwargs(folder)["num_heads"]
    degrees, choice = choose_degrees(given_degrees(args), heads, len(BRANCHES))
    if choice:
        logger.info(choice)
    grid = {"solver": args.sample_solver, "shift": args.sample_shift}
    sigmas = sigmas_fp32(args.sample_solver, args.sample_steps, args.sample_shift)
    plan_model = config.plan_model_of(args.size)
    recorder = recorder_of(args.delta_profile, plan_model, sigmas=sigmas, **grid)
    if plan is not None:
        plan = check_plan(plan, folder, args.sample_solver, args.sample_steps, args.sample_shift)
    device = local_device()
    what = f"task {args.task}, size {args.size}, frame_num {args.frame_num}"
    facts = {
        **{f"--{name}": value for name, value in asked.items()},
        "plan": None if plan is None else plan.label,
        "profile's settings": None if recorder is None else recorder.settings.model_dump_json(),
        "checkpoint": fingerprint(*checkpoint_files(folder, config)),
        "pictures": fingerprint(*(path for name in FILES for path in paths_of(args, name))),
    }
    area = {"max_area": MAX_AREA_CONFIGS[args.size]}
    where = area if pictures else {"size": SIZE_CONFIGS[args.size]}
    size = config.size_for(args.size, pictures[0].size if pictures else None)
    frames: int = args.frame_num
    inputs: tuple[Any, ...] = tuple(pictures)
    if sources is not None:
        size, frames = sources.size, sources.encoded_frames
        inputs = load_sources(sources)
    way_out = "take a smaller --size, fewer frames or a smaller model"
    sparing: list[str] = []  # known once the pipeline is there
    room = out_of_memory_as_input_error(device, what, way_out, sparing)
    with joined(degrees, device, facts) as ranks, room:
        seed = from_first(args.base_seed)
        if args.use_prompt_extend:
            logger.info(f"extending the prompt with {args.prompt_extend_model}")
            given = (args.prompt, Path(args.prompt_extend_model), args.prompt_extend_target_lang)
            args.prompt = from_first(extend(*given, seed, device) if ranks.first else None)
            logger.info(f"extended prompt: {args.prompt}")
        logger.info(f"loading {args.ckpt_dir}")
        pipeline = PIPELINES[config.model_type](
            config,
            args.ckpt_dir,
            device=device,
            t5_cpu=args.t5_cpu,
            offload_model=args.offload_model,
            latent_shape=config.latent_shape(size, frames),
            plan=plan,
            torch_dtype=torch.bfloat16 if args.convert_model_dtype else torch.float32,
            ranks=ranks,
            dit_fsdp=args.dit_fsdp,
            t5_fsdp=args.t5_fsdp,
        )
        sparing += pipeline.sparing_options
        what = "an image" if config.still else "a video"
        logger.info(f"generating {what} of {size[0]}x{size[1]}")
        video = pipeline.generate(
            args.prompt,
            *inputs,
            **where,
            frame_num=args.frame_num,
            shift=args.sample_shift,
            sample_solver=args.sample_solver,
            sampling_steps=args.sample_steps,
            guide_scale=args.sample_guide_scale,
            seed=seed,
            plan=plan,
            recorder=recorder,
        )
        if video is not None:  # this is the first process
            save_each(
                lambda: save(video, file_of(args, config, degrees), config),
                None if recorder is None else recorder.write,
            )


def save(video: torch.Tensor, path: Path, config: WanConfig) -> None:
    """Write the clip, or the image."""
    logger.info(f"saving {path}")
    if config.still:
        save_image(video, path)
    else:
        save_video(video, path, config.sample_fps)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit code is 0, 2 for a user error, 130 when interrupted."""
    return run_main(build_parser, generate, argv)


if __name__ == "__main__":
    exit_script(main)
