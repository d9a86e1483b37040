"""How far a path resampled to another grid is from the one that is really sampled there.

For every setting of transfer.py that keeps the size: the predictions of the recorded 50-step run
are interpolated (along a line, or a cubic through four levels) and replayed by the setting's
solver. Beside them stand the predictions and the final latent of the real run from the same noise.
What no interpolation can know is what the model answers to the other latents on the way.

    python benchmarks/resampled_paths.py --threads 1        # rows: results/resampled_paths.jsonl
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean
from typing import Any

import numpy as np
import torch

from calibrate import SEED, calibration_prompts, profile_path
from common import TREES, append_row, default_device, environment, quiet_log
from pipelines import BUILD, Tree
from profiling_core import flow_solvers
from profiling_core.flow_solvers import Levels
from profiling_core.other_grid import interpolation
from profiling_core.profile import Profile
from transfer import SETTINGS, Place, Setting
from transfer_table import markdown

NAME = "resampled_paths"
AROUND = {"line": 2, "cubic": 4}


def main() -> int:
    args = build_parser().parse_args()
    quiet_log()
    torch.set_num_threads(args.threads)
    rows = []
    for name in args.trees:
        tree = BUILD[name](default_device(), fp32=True)
        profile = Profile.load(profile_path(tree))
        for number, prompt in enumerate(calibration_prompts(args.prompts)):
            for row in one_prompt(tree, profile, prompt, SEED + number):
                append_row(NAME, {**row, **environment(default_device()), "precision": "fp32"})
                rows.append(row)
    sys.stdout.write(table(rows) + "\n")
    return 0


def one_prompt(tree: Tree, profile: Profile, prompt: str, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of all settings."""
    own = Place(tree, profile, Setting("own"))
    recorded, final = sampled(own, prompt, seed)
    noise = own.inputs(prompt, seed)[-1].flatten().double().numpy()
    for setting in SETTINGS:
        if setting.side is not None or setting.solver not in (None, *tree.solvers):
            continue
        place = Place(tree, profile, setting)
        real, there = sampled(place, prompt, seed)
        row = {"tree": tree.name, "setting": setting.name, "prompt": prompt, "seed": seed}
        row["full_runs"] = apart(final, there)
        for words, around in AROUND.items():
            sigmas = place.resampled.recorded.sigmas
            guess = interpolation(profile.recorded, sigmas, around) @ recorded
            replayed = flow_solvers.run(
                place.resampled.recorded.solver, Levels(sigmas), noise, lambda k, _, v=guess: v[k]
            )
            errors = np.linalg.norm(guess - real, axis=1) / np.linalg.norm(real, axis=1)
            row[f"predictions_{words}"] = round(float(errors.mean()), 5)
            row[f"final_{words}"] = apart(replayed[-1], there)
        yield row
        sys.stderr.write(f"{tree.name} {setting.name}: {prompt}\n")


def sampled(place: Place, prompt: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Guided predictions (S, N) and final latent (N,) of a full run."""
    with listening(place.tree) as calls:
        final = place.run(place.inputs(prompt, seed))
    found = np.stack([call.flatten().double().cpu().numpy() for call in calls])
    if place.tree.name == "wan":
        cond, uncond = found[::2], found[1::2]
        found = uncond + place.tree.guidance * (cond - uncond)
    return found, final.flatten().double().numpy()


@contextmanager
def listening(tree: Tree) -> Iterator[list[torch.Tensor]]:
    """What the model returns while the block runs, call by call."""
    calls: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, args: Any, output: Any) -> None:
        calls.append(output[0] if tree.name == "wan" else output["x"])

    hook = tree.pipeline.model.register_forward_hook(keep)
    try:
        yield calls
    finally:
        hook.remove()


def apart(one: np.ndarray, other: np.ndarray) -> float:
    return round(float(np.linalg.norm(one - other) / np.linalg.norm(other)), 5)


def table(rows: list[dict[str, Any]]) -> str:
    """Means over the prompts."""
    names = ["full_runs", *(f"{what}_{w}" for what in ("predictions", "final") for w in AROUND)]
    lines = []
    for key in dict.fromkeys((row["tree"], row["setting"]) for row in rows):
        of = [row for row in rows if (row["tree"], row["setting"]) == key]
        lines.append([*key, *(f"{fmean(row[name] for row in of):.4f}" for name in names)])
    header = ["tree", "setting", "two full runs", "predictions, line", "cubic"]
    return markdown([*header, "final latent, line", "cubic"], lines)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trees", nargs="+", choices=TREES, default=list(TREES))
    parser.add_argument("--prompts", type=int, default=1, help="calibration prompts")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    return parser


if __name__ == "__main__":
    sys.exit(main())
