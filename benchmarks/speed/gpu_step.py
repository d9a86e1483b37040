"""Full-size models with random weights on one GPU: seconds per call, memory, achieved speed-up.

Wan2.1 T2V at 832x480, 81 frames (32,760 tokens; the 14B as bf16, its fp32 weights are 57 GB), and
HunyuanVideo (HYVideo-T/2-cfgdistill, bf16) at 960x544 and 1280x720, 129 frames, 256 text tokens
(67,576 and 119,056 tokens). Needs torch, NumPy and pydantic alone. Rows go to
results/gpu_step.jsonl.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

import torch

from benchmarks.lib.rows import append_row, environment, table
from benchmarks.lib.subjects import hunyuan_subject, random_model, wan_subject
from benchmarks.lib.timing import Subject, cost_row, timed
from hyvideo.config import CONFIGS
from hyvideo.model import HYVideoDiffusionTransformer
from profiling_core.engine.delta_cache import DeltaCache
from wan.model import WanModel


@dataclass(frozen=True)
class FullWan:
    """Transformer arguments, type of the weights, latent of the clip."""

    sizes: dict[str, int]
    dtype: torch.dtype
    latent: tuple[int, ...] = (16, 21, 60, 104)

    def subject(self, name: str, device: torch.device) -> Subject:
        model = random_model(lambda: WanModel(**self.sizes), self.dtype, device)
        return wan_subject(name, model, self.latent, autocast=True)


@dataclass(frozen=True)
class FullHunyuan:
    """The same with as many text tokens as a long prompt has."""

    sizes: dict[str, object]
    latent: tuple[int, ...]
    dtype: torch.dtype = torch.bfloat16
    text_tokens: int = 256

    def subject(self, name: str, device: torch.device) -> Subject:
        model = random_model(lambda: HYVideoDiffusionTransformer(**self.sizes), self.dtype, device)
        return hunyuan_subject(name, model, self.latent, self.text_tokens, autocast=True)


WAN_1_3B = {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30}
WAN_14B = {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40}
HUNYUAN = CONFIGS["HYVideo-T/2-cfgdistill"]
MODELS = {
    "wan2.1-t2v-1.3B": FullWan(WAN_1_3B, torch.float32),
    "wan2.1-t2v-14B": FullWan(WAN_14B, torch.bfloat16),
    "hunyuan-video-540p": FullHunyuan(HUNYUAN.transformer, HUNYUAN.latent_shape((544, 960), 129)),
    "hunyuan-video-720p": FullHunyuan(HUNYUAN.transformer, HUNYUAN.latent_shape((720, 1280), 129)),
}


def main() -> int:
    args = build_parser().parse_args()
    if not torch.cuda.is_available():
        sys.stderr.write("error: no CUDA device: this benchmark measures a GPU\n")
        return 2
    device = torch.device("cuda")
    lines = []
    for name in args.models:
        subject = MODELS[name].subject(name, device)
        for preset in subject.presets:
            row = one_row(subject, MODELS[name].dtype, preset, args.rounds, device)
            if name in args.whole_loop:
                row["loop"] = whole_loop(subject, preset, device)
            append_row("gpu_step", {**row, **environment(device)})
            sys.stderr.write(f"{name} {preset} done\n")
            lines.append(cells(row))
        del subject
        torch.cuda.empty_cache()
    header = ["model", "plan", "s bare", "s keeping", "s reusing", "ideal", "achieved"]
    sys.stdout.write(table([*header, "achieved/ideal", "extra memory", "peak"], lines) + "\n")
    return 0


def one_row(
    subject: Subject, dtype: torch.dtype, preset: str, rounds: int, device: torch.device
) -> dict:
    facts = {"model": subject.name, "weights": str(dtype).removeprefix("torch."), "plan": preset}
    return {**facts, **cost_row(subject, subject.plan(preset), rounds, device)}


def cells(row: dict) -> list[str]:
    """The row's line of the table."""
    return [
        row["model"],
        row["plan"],
        *(f"{row[key]:.3f}" for key in ("bare", "keeping", "reusing")),
        f"{row['ideal']:.3f}x",
        f"{row['achieved']:.3f}x",
        f"{row['achieved_over_ideal']:.3f}",
        f"{row['bytes'] / 2**30:.3f} GiB",
        f"{row['peak_bytes'] / 2**30:.2f} GiB",
    ]


def whole_loop(subject: Subject, preset: str, device: torch.device) -> dict[str, float]:
    """Seconds of all model calls of a 50-step clip, without and with the plan, in one go each."""
    plan = subject.plan(preset)
    cache = DeltaCache(plan)

    def full() -> None:
        for _ in range(plan.steps * len(plan.branches)):
            subject.call()

    def planned() -> None:
        with cache.attached(subject.model):
            for step in plan.solver_steps:
                for branch in plan.branches:
                    cache.begin(step, branch)
                    subject.call()

    seconds = {"full": timed(full, device), "planned": timed(planned, device)}
    return {**seconds, "ratio": seconds["full"] / seconds["planned"]}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--whole-loop",
        nargs="*",
        choices=tuple(MODELS),
        default=["wan2.1-t2v-1.3B"],
        metavar="MODEL",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
