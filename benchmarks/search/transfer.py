"""Plans on what they were not made for: another step count, shift, solver, size, prompt set.

Part `settings`: the 2x plan searched on the miniature's profile (50 steps) is regridded to every
other setting, and stands beside plans searched for that setting (on the profile resampled to it,
and on one recorded there), and beside fewer steps. What is measured is the distance from the full
run of that setting, on held-out prompts; what was predicted stands beside it. Part `prompts`: plans
from one half of the calibration prompts on the other half.

Rows go to results/transfer.jsonl, a prompt after the other; what is there is not made again:

    python -m benchmarks.search.transfer --threads 1
    python -m benchmarks.search.transfer --table
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import log10, sqrt
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.lib.calibrate import PROMPTS, SEED, calibration_prompts, held_out, profile_of
from benchmarks.lib.clips import Inputs, Tree, load, recorder_of
from benchmarks.lib.command_line import Parser, log
from benchmarks.lib.ranks import spearman
from benchmarks.lib.rows import (
    TREES,
    Row,
    Rows,
    append_row,
    default_device,
    environment,
    load_rows,
    markdown,
    quality_row,
    spread,
)
from profiling_core.metrics import latent_error
from profiling_core.plan import CachePlan
from profiling_core.plan.cost import speedup_flops
from profiling_core.plan.regrid import regrid
from profiling_core.profile.profile import Profile, Settings
from profiling_core.recording.recorder import Recorder
from profiling_core.search.resample import on_grid
from profiling_core.search.search import Budget, PlanSearch
from profiling_core.search.step_search import QUANTILE
from profiling_core.trees.tree_model import Sampling

NAME, SPEEDUP = "transfer", 2.0
PARTS = ("settings", "prompts")
OF_RUN, OF_ROW = ("part", "tree", "setting", "prompt"), ("policy",)
RECORDED = 2  # calibration prompts that a setting's own profile is recorded with
Groups = dict[tuple[str, str, str], list[Row]]  # by tree, setting and policy
HALVES = {"1-3": (0, 1, 2), "4-6": (3, 4, 5), "1-6": (0, 1, 2, 3, 4, 5)}


@dataclass(frozen=True)
class Setting:
    """How a clip is asked for; None: as the profile was recorded."""

    name: str
    steps: int | None = None
    shift: float | None = None
    solver: str | None = None
    side: int | None = None  # pixels

    @property
    def grid(self) -> dict[str, Any]:
        return {"steps": self.steps, "shift": self.shift, "solver": self.solver}


SETTINGS = (
    Setting("40 steps", steps=40),
    Setting("30 steps", steps=30),
    Setting("20 steps", steps=20),
    Setting("shift 3", shift=3.0),
    Setting("shift 8", shift=8.0),
    Setting("DPM++", solver="dpm++"),
    Setting("96x96", side=96),
)


@dataclass(frozen=True)
class Place:
    """A tree at a setting."""

    tree: Tree
    profile: Profile
    setting: Setting

    @cached_property
    def resampled(self) -> Profile:
        """The recorded profile on the setting's grid; the same one for another size."""
        return on_grid(self.profile, **self.setting.grid)

    @cached_property
    def search(self) -> PlanSearch:
        return PlanSearch(self.resampled)

    def inputs(self, prompt: str, seed: int) -> Inputs:
        *given, noise = self.tree.inputs(prompt, seed)
        if self.setting.side is not None:
            side = self.setting.side // 8  # both VAEs
            generator = torch.Generator().manual_seed(seed)
            noise = torch.randn((*noise.shape[:-2], side, side), generator=generator)
        return *given, noise

    def run(
        self,
        inputs: Inputs,
        plan: CachePlan | None = None,
        steps: int | None = None,
        recorder: Recorder | None = None,
    ) -> Tensor:
        """The latent, with the setting's number of steps where none is given."""
        subject = self.resampled.recorded
        asked = {"steps": steps or subject.steps, "solver": subject.solver, "shift": subject.shift}
        return self.tree.denoise(inputs, plan, recorder=recorder, **asked).cpu()

    def recorded(self, count: int = RECORDED) -> Profile:
        """A profile of this setting from `count` calibration prompts; sensitivity of the other."""
        subject, found = self.resampled.recorded, Profile(Settings(attention_every=0))
        sampling = Sampling(subject.steps, subject.solver, subject.shift)
        for number, prompt in enumerate(calibration_prompts(count)):
            recorder = recorder_of(self.tree, found.settings, sampling)
            latent = self.run(self.inputs(prompt, SEED + number), recorder=recorder)
            run = recorder.finish(
                latent, prompt=prompt, seed=SEED + number, guidance=self.tree.guidance
            )
            found = found.plus(run)
        given = self.resampled.arrays["sensitivity"][:count]
        return replace(found, arrays={**found.arrays, "sensitivity": given})


def main() -> int:
    args = build_parser().parse_args()
    torch.set_num_threads(args.threads)
    for name in () if args.table else args.trees:
        tree = load(name, fp32=True)
        profile = profile_of(tree)
        if "settings" in args.parts:
            run_settings(tree, profile, args.prompts)
        if "prompts" in args.parts:
            run_prompt_sets(tree, profile)
    sys.stdout.write(tables(load_rows(NAME)))
    return 0


def run_settings(tree: Tree, profile: Profile, count: int) -> None:
    """Every setting on every held-out prompt, prompt by prompt."""
    plan = PlanSearch(profile).plan(Budget(speedup=SPEEDUP), name="2x")
    todo = []
    for setting in SETTINGS:
        if setting.solver in (None, *tree.solvers):
            place = Place(tree, profile, setting)
            todo.append((place, list(contenders(place, plan))))
    for prompt, seed in held_out(count):
        for place, samplers in todo:
            one_prompt(place, samplers, prompt, seed, "settings")


@dataclass(frozen=True)
class Sampler:
    """A plan, or a number of plain steps; predicted: by the resampled and the recorded profile."""

    policy: str
    plan: CachePlan | None = None
    steps: int | None = None
    predicted: float | None = None
    predicted_recorded: float | None = None


def contenders(place: Place, plan: CachePlan) -> Iterator[Sampler]:
    """The regridded plans, those searched for the setting, and fewer steps of equal cost."""
    subject = place.resampled.recorded
    there = {"solver": subject.solver, "shift": subject.shift}
    recorded = PlanSearch(place.recorded())
    planned = {}
    for policy, keep in (("carried, levels kept", False), ("carried, speed kept", True)):
        planned[policy] = regrid(plan, subject.sigmas, **there, keep_speed=keep)
    spent, kept = (computed(planned[f"carried, {what} kept"]) for what in ("speed", "levels"))
    if kept == subject.steps:  # nothing left to skip: it is the full run
        del planned["carried, levels kept"]
    costs = [spent] if abs(kept - spent) <= 1 or kept == subject.steps else [spent, kept]
    for cost in costs:
        budget = Budget(speedup=subject.steps / cost)
        planned[f"searched, {cost} computed"] = place.search.plan(budget)
    of_its_own = recorded.plan(Budget(speedup=subject.steps / spent))
    planned[f"searched, recorded there, {spent} computed"] = of_its_own
    for policy, one in planned.items():
        yield Sampler(policy, one, None, *(s.predicted(one) for s in (place.search, recorded)))
    for cost in costs:
        yield Sampler(f"{cost} plain steps", None, cost)


def computed(plan: CachePlan) -> int:
    return len(plan.prediction.compute_steps["cond"])


def run_prompt_sets(tree: Tree, profile: Profile) -> None:
    """Plans from either half of the calibration prompts, and from all, on every one of them."""
    place = Place(tree, profile, Setting("prompts"))
    samplers = []
    for name, runs in HALVES.items():
        search = PlanSearch(profile.of_runs(runs))
        plan = search.plan(Budget(speedup=SPEEDUP), name=name)
        samplers.append(Sampler(f"plan of {name}", plan, None, search.predicted(plan)))
    for number, prompt in enumerate(calibration_prompts(PROMPTS)):
        one_prompt(place, samplers, prompt, SEED + number, "prompts")


def one_prompt(place: Place, samplers: list[Sampler], prompt: str, seed: int, part: str) -> None:
    """The rows of one setting and prompt that are not there yet."""
    tree, setting = place.tree, place.setting
    of_prompt = {"part": part, "tree": tree.name, "setting": setting.name, "prompt": prompt}
    known = Rows(load_rows(NAME), OF_RUN, OF_ROW)
    missing = [s for s in samplers if {**of_prompt, "policy": s.policy} not in known]
    if not missing:
        return
    inputs = place.inputs(prompt, seed)
    full = place.run(inputs)
    reference, found = tree.decode(full), {**environment(default_device()), "precision": "fp32"}
    ran: dict[str, dict[str, Any]] = {}  # two policies may mean the same plan
    for sampler in missing:
        plan = sampler.plan
        same = json.dumps([sampler.steps, plan and plan.model_dump(mode="json")["sites"]])
        if same not in ran:
            latent = place.run(inputs, plan, sampler.steps)
            error = round(latent_error(latent, full), 6)
            ran[same] = {"latent_error": error, **quality_row(tree.decode(latent), reference)}
        append_row(NAME, {**of_prompt, "seed": seed, **facts(place, sampler), **ran[same], **found})
        psnr = f"{ran[same]['psnr_frames']:.1f} dB"
        log(f"{tree.name} {setting.name}, seed {seed}, {sampler.policy}: {psnr}")


def facts(place: Place, sampler: Sampler) -> dict[str, Any]:
    """What a row says of its sampler."""
    steps, plan = place.resampled.recorded.steps, sampler.plan
    return {
        "policy": sampler.policy,
        "steps": steps,
        "speedup": round(steps / sampler.steps if plan is None else speedup_flops(plan), 4),
        "computed": sampler.steps if plan is None else list(plan.prediction.compute_steps["cond"]),
        "skip": None if plan is None else plan.prediction.skip,
        "predicted": sampler.predicted,
        "predicted_recorded": sampler.predicted_recorded,
    }


# -- tables, from the rows alone


def tables(rows: list[Row]) -> str:
    """Tables of every part that has rows."""
    found, rows = [], sorted(rows, key=lambda row: TREES.index(row["tree"]))
    settings = grouped(rows, "settings")
    if settings:
        found += [quality_table(settings), loss_table(settings), *prediction_lines(settings)]
    sets = grouped(rows, "prompts")
    if sets:
        found.append(prompt_table(sets))
    return "\n\n".join(found) + "\n"


def grouped(rows: list[Row], part: str) -> Groups:
    """The newest row of every prompt, in the order of the first ones."""
    newest: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in rows:
        if row["part"] == part:
            group = newest.setdefault((row["tree"], row["setting"], row["policy"]), {})
            group[row["prompt"]] = row
    return {key: list(group.values()) for key, group in newest.items()}


def quality_table(groups: Groups) -> str:
    """Every sampler at every setting; errors are quantiles over prompts, as predicted ones are."""
    lines = []
    for (tree, setting, policy), of in groups.items():
        guesses = [_error(of[0][name]) for name in ("predicted", "predicted_recorded")]
        cells = [tree, setting, policy, f"{of[0]['speedup']:.2f}x", of[0]["skip"] or "-"]
        cells += [_spread(of), f"{fmean(row['ssim'] for row in of):.4f}"]
        lines.append([*cells, _error(_measured(of)), *guesses, str(len(of))])
    header = ["tree", "setting", "policy", "ideal", "skip", "PSNR dB (worst)", "SSIM"]
    return markdown([*header, "latent error", "predicted", "predicted there", "n"], lines)


def loss_table(groups: Groups) -> str:
    """What regridding loses against the search at equal cost: predicted and measured."""
    lines = []
    for (tree, setting, policy), of in groups.items():
        cost = len(of[0]["computed"]) if of[0]["skip"] else 0
        names = [(tree, setting, f"searched, {cost + c} computed") for c in (0, -1, 1)]
        other = next((groups[name] for name in names if name in groups), None)
        if not policy.startswith("carried") or other is None:
            continue
        guess = 20 * log10(of[0]["predicted"] / other[0]["predicted"])
        lost = [
            two["psnr_frames"] - one["psnr_frames"]
            for one in of
            for two in other
            if one["prompt"] == two["prompt"]
        ]
        measured = f"{fmean(lost):.1f}"
        if len(lost) > 1:
            measured += f" +-{stdev(lost) / sqrt(len(lost)):.1f}"
        lines.append([tree, setting, policy, f"{guess:.1f}", measured, str(len(lost))])
    header = ["tree", "setting", "plan", "predicted loss dB", "measured loss dB", "n"]
    return markdown(header, lines)


def prediction_lines(groups: Groups) -> list[str]:
    """Predicted errors of all plans against measured ones, and against those of a recording."""
    found = []
    for tree in dict.fromkeys(key[0] for key in groups):
        plans = {  # two policies may have come to the same one
            (key[1], str(rows[0]["computed"]), rows[0]["skip"]): rows
            for key, rows in groups.items()
            if key[0] == tree and rows[0]["predicted"]
        }
        of = list(plans.values())
        guess, there = (
            np.array([rows[0][name] for rows in of]) for name in ("predicted", "predicted_recorded")
        )
        real = np.array([_measured(rows) for rows in of])
        ratio = np.abs(20 * np.log10(guess / there))
        found.append(
            f"{tree}, {len(of)} plans: rank correlation with the measured error "
            f"{spearman(guess, real):.2f} for errors predicted on the resampled profile, "
            f"{spearman(there, real):.2f} on one recorded there; the two predictions "
            f"differ by {np.median(ratio):.1f} dB (median; at most {ratio.max():.1f} dB)."
        )
    return found


def prompt_table(groups: Groups) -> str:
    """Plans of each half of the prompts on its own half, on the other, and the plan of all."""
    prompts = {
        tree: list(dict.fromkeys(row["prompt"] for of in groups.values() for row in of))
        for tree in dict.fromkeys(key[0] for key in groups)
    }
    lines = []
    for (tree, _, policy), of in groups.items():
        for name, half in (("1-3", prompts[tree][:3]), ("4-6", prompts[tree][3:])):
            own = [row for row in of if row["prompt"] in half]
            if own:
                cells = [tree, policy, name, f"{of[0]['speedup']:.2f}x", _spread(own)]
                cells += [f"{fmean(row['latent_error'] for row in own):.4f}", str(len(own))]
                lines.append(cells)
    header = ["tree", "plan", "on prompts", "ideal", "PSNR dB (worst)", "latent error", "n"]
    return markdown(header, lines)


def _spread(rows: list[Row]) -> str:
    """PSNR: mean, standard deviation and the worst; of one clip itself."""
    psnr = [row["psnr_frames"] for row in rows]
    return spread(psnr) if len(psnr) > 1 else f"{psnr[0]:.1f}"


def _measured(rows: list[Row]) -> float:
    return float(np.quantile([row["latent_error"] for row in rows], QUANTILE))


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def build_parser() -> Parser:
    parser = Parser(__doc__, prompts=4, table=True)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    return parser


if __name__ == "__main__":
    sys.exit(main())
