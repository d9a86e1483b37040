"""What the engine costs: attached without reuse, achieved over ideal speed-up, bytes, attach.

On both bundled miniatures and on models of middle size with random weights: Wan (12 blocks) and
HunyuanVideo (4 double and 8 single blocks), both of width 768 with 12 heads and 2,048 image tokens.
Rows go to results/engine.jsonl.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from statistics import median

import torch

from benchmarks.lib.clips import EXAMPLES, load
from benchmarks.lib.command_line import Parser, log
from benchmarks.lib.rows import append_row, default_device, environment, has_bf16, table
from benchmarks.lib.subjects import hunyuan_subject, random_model, wan_subject
from benchmarks.lib.timing import PLANS, Subject, cost_row
from hyvideo.model import HYVideoDiffusionTransformer
from profiling_core.engine.delta_cache import DeltaCache
from profiling_core.plan import CachePlan
from wan.model import WanModel

MID_LATENT = (16, 8, 32, 32)  # 8 x 16 x 16 = 2,048 tokens
MID_TEXT = 64
MID_WAN = {
    "dim": 768,
    "num_heads": 12,
    "num_layers": 12,
    "ffn_dim": 3072,
    "text_dim": 256,
    "text_len": MID_TEXT,
}
MID_HUNYUAN = {
    "hidden_size": 768,
    "heads_num": 12,
    "mm_double_blocks_depth": 4,
    "mm_single_blocks_depth": 8,
    "rope_dim_list": (16, 24, 24),
    "text_states_dim": 256,
    "text_states_dim_2": 64,
    "guidance_embed": True,
}


def main() -> int:
    args = build_parser().parse_args()
    torch.set_num_threads(args.threads)
    device = default_device()
    lines = []
    for tree in args.trees:
        for subject in subjects(tree, args.models, device):
            for preset in args.plans or subject.presets:
                row = {"tree": tree, **one_row(subject, preset, args.rounds, device, args.store)}
                append_row("engine", {**row, **environment(device)})
                log(f"{tree} {subject.name} {preset} done")
                lines.append(cells(row))
    header = ["tree", "model", "plan", "attached/bare", "ideal", "achieved", "achieved/ideal"]
    sys.stdout.write(table([*header, "extra memory", "by formula", "attach+detach"], lines) + "\n")
    return 0


def subjects(tree: str, wanted: list[str], device: torch.device) -> Iterator[Subject]:
    """The tree's models, one after another; in bf16 only where the device computes in it."""
    bf16 = has_bf16(device)
    if "mini" in wanted:
        yield miniature(tree, device, bf16)
    if "mid" not in wanted:
        return
    yield mid_size(tree, torch.float32, device)
    if bf16:
        yield mid_size(tree, torch.bfloat16, device)
    else:
        log(f"{tree} mid-size, bfloat16 left out: no bf16 instructions here")


def miniature(tree_name: str, device: torch.device, bf16: bool) -> Subject:
    """As its pipeline runs it: in bf16 autocast where that is not emulated, else in fp32."""
    tree = load(tree_name, fp32=not bf16)
    *_, noise = tree.inputs(EXAMPLES[tree_name], 0)
    model, name = tree.pipeline.model, f"miniature, {'bf16 autocast' if bf16 else 'float32'}"
    if tree_name == "wan":
        return wan_subject(name, model, tuple(noise.shape), autocast=bf16)
    text = tree.config.text_len
    return hunyuan_subject(name, model, tuple(noise.shape[1:]), text, autocast=bf16)


def mid_size(tree_name: str, dtype: torch.dtype, device: torch.device) -> Subject:
    name, half = f"mid-size, {str(dtype).removeprefix('torch.')}", dtype == torch.bfloat16
    if tree_name == "wan":
        model = random_model(lambda: WanModel(**MID_WAN), dtype, device)
        return wan_subject(name, model, MID_LATENT, autocast=half)
    model = random_model(lambda: HYVideoDiffusionTransformer(**MID_HUNYUAN), dtype, device)
    return hunyuan_subject(name, model, MID_LATENT, MID_TEXT, autocast=half)


def one_row(subject: Subject, preset: str, rounds: int, device: torch.device, storage: str) -> dict:
    plan = subject.plan(preset).model_copy(update={"storage": storage})
    facts = {"model": subject.name, "plan": preset, "storage": storage}
    costs = cost_row(subject, plan, rounds, device)
    del costs["peak_bytes"]  # for full-size models
    attaching = {"attach_detach_seconds": round(attach_seconds(subject, plan), 6)}
    return {**facts, **costs, **attaching}


def cells(row: dict) -> list[str]:
    """The row's line of the table."""
    return [
        row["tree"],
        row["model"],
        row["plan"],
        f"{row['attached_over_bare']:.4f}",
        f"{row['ideal']:.3f}x",
        f"{row['achieved']:.3f}x",
        f"{row['achieved_over_ideal']:.3f}",
        f"{row['bytes']:,}",
        f"{row['bytes_formula']:,}",
        f"{1000 * row['attach_detach_seconds']:.2f} ms",
    ]


def attach_seconds(subject: Subject, plan: CachePlan) -> float:
    """Median seconds to attach and detach."""
    taken = []
    for _ in range(20):
        start = time.perf_counter()
        DeltaCache(plan).attach(subject.model).detach()
        taken.append(time.perf_counter() - start)
    return median(taken)


def build_parser() -> Parser:
    parser = Parser(__doc__, rounds=7)
    parser.add_argument("--models", nargs="+", choices=("mini", "mid"), default=["mini", "mid"])
    parser.add_argument("--plans", nargs="+", choices=PLANS, help="default: all of the model's")
    parser.add_argument("--store", choices=("stream", "bfloat16"), default="stream")
    return parser


if __name__ == "__main__":
    sys.exit(main())
