"""Full-size Wan2.1 T2V with random weights on one GPU: seconds per call, memory, achieved speed-up.

480p, 81 frames: latent 16 x 21 x 60 x 104, 32,760 tokens. Needs torch, numpy and pydantic alone.
Rows go to results/gpu_step.jsonl. 14B is loaded as bf16 (its fp32 weights are 57 GB).
"""

from __future__ import annotations

import argparse
import sys

import torch

from calls import Call, measure, measured_bytes
from common import append_row, environment, peak_memory, reset_peak, table, timed
from profiling_core.delta_cache import DeltaCache
from profiling_core.presets import load_preset
from wan.model import WanModel

SIZES = {
    "1.3B": {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30},
    "14B": {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40},
}
LATENT = (16, 21, 60, 104)
TOKENS = 21 * 30 * 52
PLANS = ("release", "paper", "balanced")


def main() -> int:
    args = parse_arguments()
    if not torch.cuda.is_available():
        sys.stderr.write("error: no CUDA device: this benchmark measures a GPU\n")
        return 2
    device = torch.device("cuda")
    lines = []
    for size in args.sizes:
        dtype = torch.bfloat16 if size == "14B" else torch.float32
        model = random_model(size, dtype, device)
        call = one_call(model, device)
        for preset in PLANS:
            row = one_row(size, dtype, model, call, preset, args.rounds, device)
            if size in args.whole_loop:
                row["loop"] = whole_loop(model, call, size, preset, device)
            append_row("gpu_step", {**row, **environment(device)})
            lines.append(
                [
                    size,
                    preset,
                    *(f"{row[key]:.3f}" for key in ("bare", "keeping", "reusing")),
                    f"{row['ideal']:.3f}x",
                    f"{row['achieved']:.3f}x",
                    f"{row['achieved_over_ideal']:.3f}",
                    f"{row['bytes'] / 2**30:.3f} GiB",
                    f"{row['peak_bytes'] / 2**30:.2f} GiB",
                ]
            )
        del model, call
        torch.cuda.empty_cache()
    header = ["model", "plan", "s bare", "s keeping", "s reusing", "ideal", "achieved"]
    sys.stdout.write(table([*header, "achieved/ideal", "anchors", "peak"], lines) + "\n")
    return 0


def random_model(size: str, dtype: torch.dtype, device: torch.device) -> WanModel:
    """The full-size model with small random weights, made on the device."""
    with torch.device("meta"):
        model = WanModel(**SIZES[size])
    model = model.to(dtype).to_empty(device=device).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.fill_(1.0)
            else:
                parameter.normal_(std=0.02)
    return model


def one_call(model: WanModel, device: torch.device) -> Call:
    generator = torch.Generator(device).manual_seed(1)
    x = torch.randn(LATENT, generator=generator, device=device)
    text = torch.randn(model.text_len, model.text_dim, generator=generator, device=device)
    t = torch.tensor([700], device=device)

    def call() -> object:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            return model([x], t, [text], TOKENS)

    return call


def one_row(
    size: str,
    dtype: torch.dtype,
    model: WanModel,
    call: Call,
    preset: str,
    rounds: int,
    device: torch.device,
) -> dict:
    plan = load_preset(f"wan2.1-t2v-{size}", preset)
    reset_peak(device)
    costs = measure(model, call, plan, rounds, device)
    peak = peak_memory(device)
    sizes = {
        "tokens": TOKENS,
        "stream_itemsize": 4,
        "latent_numel": torch.Size(LATENT).numel(),
    }
    held, formula = measured_bytes(model, call, plan, device, **sizes)
    return {
        "model": f"wan2.1-t2v-{size}",
        "weights": str(dtype).removeprefix("torch."),
        "plan": preset,
        "tokens": TOKENS,
        "rounds": rounds,
        **costs.as_row(),
        "bytes": held,
        "bytes_formula": formula,
        "peak_bytes": peak,
    }


def whole_loop(
    model: WanModel, call: Call, size: str, preset: str, device: torch.device
) -> dict[str, float]:
    """Seconds of all model calls of a 50-step clip, without and with the plan, in one go each."""
    plan = load_preset(f"wan2.1-t2v-{size}", preset)
    cache = DeltaCache(plan)

    def full() -> None:
        for _ in range(plan.steps * len(plan.branches)):
            call()

    def planned() -> None:
        with cache.attached(model):
            for step in plan.solver_steps:
                for branch in plan.branches:
                    cache.begin(step, branch)
                    call()

    seconds = {"full": timed(full, device), "planned": timed(planned, device)}
    return {**seconds, "ratio": seconds["full"] / seconds["planned"]}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=tuple(SIZES), default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--whole-loop", nargs="*", choices=tuple(SIZES), default=["1.3B"], metavar="SIZE"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
