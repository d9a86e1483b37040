"""Records the profiles that lie beside the miniatures: six calibration prompts, with sensitivity.

The prompts are of the training split, their noise has the seeds 7 to 12; no held-out prompt enters
a profile. Runs that the file holds already are not recorded again. Two processes, each with a part
of the prompts, are faster on two cores than one with two threads:

    python -m benchmarks.lib.calibrate --threads 1 --parts 2 --part 0 &
    python -m benchmarks.lib.calibrate --threads 1 --parts 2 --part 1
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from benchmarks.lib.clips import Tree, load, recorder_of
from benchmarks.lib.command_line import Parser, log
from miniatures import clips
from profiling_core.profile.profile import Profile, Settings, add_runs

PROMPTS, SEED = 6, 7  # how many, and the seed that they are drawn from
HELD_OUT_SEED = 100  # of the first held-out prompt's noise
SETTINGS = Settings(sensitivity=(1, 3, 6, 10, 15, 20, 26, 32, 38, 44, 48))


def main() -> int:
    args = build_parser().parse_args()
    torch.set_num_threads(args.threads)
    for name in args.trees:
        tree = load(name)
        path = profile_path(tree) if args.out is None else args.out / f"{name}.profile"
        record(tree, path, args.part, args.parts)
    return 0


def profile_path(tree: Tree) -> Path:
    """Where a miniature's profile lies: in its checkpoint folder."""
    return tree.checkpoint_dir / "profile.safetensors"


def profile_of(tree: Tree) -> Profile:
    """A miniature's profile; ValueError where it was not recorded yet."""
    path = profile_path(tree)
    if not path.exists():
        raise ValueError(f"no profile {path}: record it with python -m benchmarks.lib.calibrate")
    return Profile.load(path)


def calibration_prompts(count: int) -> list[str]:
    """Prompts with one shape, of the training split."""
    rng = np.random.default_rng([SEED, 2])
    return [str(clips.random_scene(rng, held_out=False, actors=1)) for _ in range(count)]


def held_out(count: int) -> list[tuple[str, int]]:
    """Prompts that nothing was calibrated on, and the seeds of their noise."""
    return [(text, HELD_OUT_SEED + n) for n, text in enumerate(clips.held_out_prompts(count))]


def record(tree: Tree, path: Path, part: int = 0, parts: int = 1) -> Profile:
    """Record the calibration prompts of this part that the file does not hold yet."""
    profile = Profile.load(path) if path.exists() else Profile(SETTINGS)
    known = {run.prompt for run in profile.runs}
    for number, prompt in enumerate(calibration_prompts(PROMPTS)):
        if prompt in known or number % parts != part:
            continue
        profile = add_runs(path, _run(tree, prompt, SEED + number))
        log(f"{tree.name} recorded {prompt}")
    return profile


def _run(tree: Tree, prompt: str, seed: int) -> Profile:
    """The profile of one run."""
    recorder, inputs = recorder_of(tree, SETTINGS), tree.inputs(prompt, seed)
    latent = tree.denoise(inputs, recorder=recorder)
    recorder.measure_sensitivity(latent, lambda replay: tree.denoise(inputs, recorder=replay))
    return recorder.finish(latent, prompt=prompt, seed=seed, guidance=tree.guidance)


def build_parser() -> Parser:
    parser = Parser(__doc__, parts=True)
    parser.add_argument("--out", type=Path, help="folder, default the checkpoints' own")
    return parser


if __name__ == "__main__":
    sys.exit(main())
