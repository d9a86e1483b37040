"""What the official models' presets may lose: regret in every world, and runs of the miniatures.

The first command prints, for the presets, those before them and public lists with our reuse mode,
how much more error each world predicts than for its own best list, in dB (`RobustSearch`). Seconds,
no model runs. The second runs the same lists on held-out prompts of the miniatures, which have the
official models' grids, in fp32; rows go to results/regret.jsonl, and what is there does not run
again. The last prints both tables.

    python -m benchmarks.search.regret
    python -m benchmarks.search.regret --prompts 8 --threads 1
    python -m benchmarks.search.regret --table
"""

from __future__ import annotations

import sys
from statistics import fmean

import torch

from benchmarks.lib.clips import load
from benchmarks.lib.command_line import Parser, at_least, log
from benchmarks.lib.rows import (
    Rows,
    append_row,
    default_device,
    environment,
    load_rows,
    quality_row,
    spread,
    table,
)
from benchmarks.lib.schedules import plan_on
from miniatures.clips import held_out_prompts
from profiling_core.metrics import latent_error
from profiling_core.plan.importers import from_steps, public_document
from profiling_core.plan.model_specs import MODELS
from profiling_core.plan.presets import STEPS, load_preset, public_plan
from profiling_core.plan.regrid import SPEEDUPS
from profiling_core.search.preset_search import robust_search

NAME = "regret"
OFFICIAL = {"wan": "wan2.1-t2v-14B", "hunyuan": "hunyuan-video-t2v-720p"}
PICTURES = ("wan2.1-i2v-14B", "wan2.1-i2v-14B-720P", "wan2.1-flf2v-14B")
BEFORE = {  # quality, balanced, fast at commit 0873175; of Wan 1.3B two steps differed by one
    "wan": (
        [*range(9), *range(10, 42, 2), *range(42, 50)],
        [
            0,
            1,
            2,
            3,
            4,
            6,
            8,
            10,
            12,
            15,
            18,
            21,
            24,
            27,
            30,
            33,
            36,
            38,
            40,
            42,
            44,
            *range(46, 50),
        ],
        [0, 1, 2, 4, 7, 10, 14, 19, 24, 29, 34, 38, 42, 45, 47, 49],
    ),
    "hunyuan": (
        [*range(9), 10, 12, 13, 15, 17, 19, 21, 24, 26, *range(29, 43, 2), *range(42, 50)],
        [0, 1, 2, 3, 4, 6, 8, 10, 13, 15, 17, 20, 23, 26, 29, 32, 35, *range(37, 49, 2), 48, 49],
        [0, 2, 4, 6, 9, 12, 16, 19, 24, 29, 33, 37, 41, 44, 47, 49],
    ),
}


def main() -> int:
    args = build_parser().parse_args()
    torch.set_num_threads(args.threads)
    for name in args.trees if args.prompts and not args.table else ():
        run_tree(name, args.prompts, args.seed)
    for name in args.trees:
        sys.stdout.write(matrix(name) + "\n\n")
    sys.stdout.write(of_pictures() + "\n\n")
    sys.stdout.write(summary(load_rows(NAME)) + "\n")
    return 0


def lists_of(name: str) -> dict[str, tuple[int, ...]]:
    """Presets before and now by name, then the public lists of the tree's models."""
    found, model = {}, OFFICIAL[name]
    for preset, before in zip(SPEEDUPS, BEFORE[name], strict=True):
        found[f"{preset} before"] = tuple(before)
        found[f"{preset} now"] = load_preset(model, preset).prediction.compute_steps["cond"]
    family = MODELS[model].family
    for source in ("lemica", "golden-path"):
        for of, lists in public_document()[source].items():
            if of in MODELS and MODELS[of].family is family:
                kept = ("lemica", "budcache", "meancache", "uniform")
                short = of.rpartition("-")[2]
                found |= {f"{short} {n}": tuple(s) for n, s in lists.items() if n.startswith(kept)}
    return found


def matrix(name: str) -> str:
    """Regret of every list in every world, dB, with the worst of the laws and of all."""
    search = robust_search(OFFICIAL[name])
    lines = []
    for label, steps in lists_of(name).items():
        by_world = search.regrets(steps)
        laws = max(by_world[world] for world in search.laws)
        values = [*by_world.values(), laws, max(by_world.values())]
        lines.append([label, str(len(steps)), *(f"{value:.1f}" for value in values)])
    worlds = [*search.laws, "Wan miniature", "HunyuanVideo miniature"]
    return table([name, "computed", *worlds, "worst law", "worst"], lines)


def of_pictures() -> str:
    """The worst of the laws and of all for the models that start from pictures."""
    lines = []
    for model in PICTURES:
        planned, search = MODELS[model], robust_search(model)
        lists = {preset: load_preset(model, preset) for preset in SPEEDUPS}
        if "i2v" in model:
            names = public_document()["lemica"]["wan2.1-i2v-14B"]
            lists |= {name: public_plan(planned, name) for name in names}
        for label, plan in lists.items():
            steps = plan.prediction.compute_steps["cond"]
            by_world = search.regrets(steps)
            worst = max(by_world[world] for world in search.laws), max(by_world.values())
            lines.append([model, label, str(len(steps)), *(f"{value:.1f}" for value in worst)])
    return table(["model", "list", "computed", "worst law", "worst"], lines)


def run_tree(name: str, prompts: int, seed: int) -> None:
    """A row for every prompt and list of the tree that has none yet."""
    lists = {k: v for k, v in lists_of(name).items() if len(v) in (33, 25, 16)}
    rows = Rows(load_rows(NAME), ("tree", "prompt", "seed", "steps"), ())
    tree = load(name, fp32=True)
    like, found = load_preset(tree.plan_model, "balanced"), environment(default_device())
    for number, prompt in enumerate(held_out_prompts(prompts)):
        base = {"tree": name, "prompt": prompt, "seed": seed + number}
        missing = {k: v for k, v in lists.items() if {**base, "steps": list(v)} not in rows}
        if not missing:
            continue
        inputs = tree.inputs(prompt, seed + number)
        full = tree.denoise(inputs)
        reference = tree.decode(full)
        for label, steps in missing.items():
            sites = from_steps(STEPS, steps, like.branches, like.prediction.skip)
            latent = tree.denoise(inputs, plan_on(like, label, sites, "benchmarks.search.regret"))
            row = {
                **base,
                "steps": list(steps),
                "list": label,
                "latent_error": round(latent_error(latent.cpu(), full.cpu()), 6),
                **quality_row(tree.decode(latent), reference),
                **found,
            }
            append_row(NAME, row)
        log(f"{name} {number + 1}/{prompts}: {prompt}")


def summary(rows: list[dict]) -> str:
    """PSNR of the runs by list, and against the preset before: the mean gain, how often better."""
    lines = []
    for name in OFFICIAL:
        of_tree = [row for row in rows if row["tree"] == name]
        psnr: dict[tuple[int, ...], dict[tuple[str, int], float]] = {}
        for row in of_tree:
            of_list = psnr.setdefault(tuple(row["steps"]), {})
            of_list[row["prompt"], row["seed"]] = row["psnr_frames"]
        lists = {k: v for k, v in lists_of(name).items() if v in psnr}
        for label, steps in sorted(lists.items(), key=lambda item: -len(item[1])):
            before = next(s for k, s in lists.items() if "before" in k and len(s) == len(steps))
            own, other = psnr[steps], psnr[before]
            gains = [value - other[key] for key, value in own.items() if key in other]
            if gains:
                won = f"{sum(gain > 0 for gain in gains)} of {len(gains)}"
                gain = f"{fmean(gains):+.1f}"
                lines.append([name, label, str(len(steps)), spread([*own.values()]), gain, won])
    return table(["tree", "list", "computed", "PSNR dB (worst)", "gain", "better"], lines)


def build_parser() -> Parser:
    parser = Parser(__doc__, table=True)
    parser.add_argument("--prompts", type=at_least(1), help="run so many held-out prompts")
    parser.add_argument("--seed", type=at_least(0), default=100, help="of the first one's noise")
    return parser


if __name__ == "__main__":
    sys.exit(main())
