"""What the engine costs: attached without reuse, achieved over ideal speed-up, bytes, attach.

On the bundled miniature and on a mid-size Wan with random weights (dim 768, 12 heads, 12 blocks,
2,048 tokens). Rows go to results/engine.jsonl.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from statistics import median

import torch

from calls import Call, measure, measured_bytes
from common import append_row, default_device, environment, table
from profiling_core.delta_cache import DeltaCache
from profiling_core.plan import CachePlan
from profiling_core.presets import load_preset
from wan.configs import CONFIGS
from wan.model import WanModel
from wan.weights import load_transformer

PLANS = ("release", "paper", "balanced")
MID_SIZE = {
    "dim": 768,
    "num_heads": 12,
    "num_layers": 12,
    "ffn_dim": 3072,
    "text_dim": 256,
    "text_len": 64,
}
MID_LATENT = (16, 8, 32, 32)  # 8 x 16 x 16 = 2,048 tokens


def main() -> int:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    device = default_device()
    header = ["model", "plan", "attached/bare", "ideal", "achieved", "achieved/ideal"]
    header += ["bytes", "formula", "attach+detach"]
    lines = []
    for name, model, call, latent in models(args.models, device):
        for preset in PLANS:
            row = one_row(name, model, call, latent, preset, args.rounds, device)
            append_row("engine", {**row, **environment(device)})
            sys.stderr.write(f"{name} {preset} done\n")
            cells = (
                f"{row['attached_over_bare']:.4f}",
                f"{row['ideal']:.3f}x",
                f"{row['achieved']:.3f}x",
                f"{row['achieved_over_ideal']:.3f}",
                str(row["bytes"]),
                str(row["bytes_formula"]),
                f"{1000 * row['attach_detach_seconds']:.2f} ms",
            )
            lines.append([name, preset, *cells])
    sys.stdout.write(table(header, lines) + "\n")
    return 0


def models(
    wanted: list[str], device: torch.device
) -> Iterator[tuple[str, WanModel, Call, tuple[int, ...]]]:
    """Name, model, one call of it and the latent's shape."""
    if "mini" in wanted:
        config = CONFIGS["t2v-mini"]
        model = load_transformer(config.ckpt_dir, device, torch.float32)
        latent = config.latent_shape((128, 128), config.frame_num)
        yield "miniature, bf16 autocast", model, one_call(model, latent, device, True), latent
    for dtype in (torch.float32, torch.bfloat16):
        label = str(dtype).removeprefix("torch.")
        if "mid" in wanted:
            torch.manual_seed(0)
            model = WanModel(**MID_SIZE).to(device, dtype).eval()
            torch.nn.init.normal_(model.head.head.weight, std=0.02)
            call = one_call(model, MID_LATENT, device, dtype == torch.bfloat16)
            yield f"mid-size, {label}", model, call, MID_LATENT


def one_call(
    model: WanModel, latent: tuple[int, ...], device: torch.device, autocast: bool
) -> Call:
    """A call with fixed random inputs; bf16 autocast as the pipeline runs, or none."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(latent, generator=generator).to(device)
    text = torch.randn(model.text_len, model.text_dim, generator=generator).to(device)
    t = torch.tensor([700], device=device)
    tokens = latent[1] * latent[2] * latent[3] // 4

    def call() -> object:
        region = torch.autocast(device.type, torch.bfloat16) if autocast else nullcontext()
        with torch.no_grad(), region:
            return model([x], t, [text], tokens)

    return call


def one_row(
    name: str,
    model: WanModel,
    call: Call,
    latent: tuple[int, ...],
    preset: str,
    rounds: int,
    device: torch.device,
) -> dict:
    plan = plan_for(model, preset)
    costs = measure(model, call, plan, rounds, device)
    tokens = latent[1] * latent[2] * latent[3] // 4
    sizes = {"tokens": tokens, "stream_itemsize": 4, "latent_numel": torch.Size(latent).numel()}
    held, formula = measured_bytes(model, call, plan, device, **sizes)
    return {
        "model": name,
        "plan": preset,
        "tokens": tokens,
        "rounds": rounds,
        **costs.as_row(),
        "bytes": held,
        "bytes_formula": formula,
        "attach_detach_seconds": round(attach_seconds(model, plan), 6),
    }


def plan_for(model: WanModel, preset: str) -> CachePlan:
    """The miniature's preset, fitted to this model's depth and width (steps and runs unchanged)."""
    plan = load_preset("wan2.1-t2v-mini", preset)
    document = plan.model_dump(mode="json", exclude_none=True)
    document["model"]["width"] = model.dim
    document.pop("expected")
    if document["model"]["block_lists"]["blocks"] != len(model.blocks):
        raise ValueError(f"the miniature's plans are for another depth than {len(model.blocks)}")
    return CachePlan.build(**{k: v for k, v in document.items() if k != "format"})


def attach_seconds(model: WanModel, plan: CachePlan) -> float:
    """Median seconds to attach and detach."""
    taken = []
    for _ in range(20):
        start = time.perf_counter()
        DeltaCache(plan).attach(model).detach()
        taken.append(time.perf_counter() - start)
    return median(taken)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=("mini", "mid"), default=["mini", "mid"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
