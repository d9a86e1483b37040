"""Seconds of one model call on the CPU, beside diffusers' and upstream's classes on equal weights.

Both miniatures and random models of width 384, in fp32 and in bf16: ours and the other class take
turns call by call, the ratio is that of the medians. In bf16 diffusers' class runs in bf16
throughout, as its pipelines do; ours and upstream's run under autocast, Wan2.1 beside upstream on
fp32 weights as upstream has them. Upstream's class needs a checkout, see lib/upstream.py. Then the
miniatures' denoising loops, beside the seconds of the calls inside. Rows go to results/call.jsonl.
"""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from statistics import median
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from benchmarks.baselines.diffusers_models import convert
from benchmarks.lib.clips import EXAMPLES, Tree, load
from benchmarks.lib.command_line import Parser, at_least, log
from benchmarks.lib.rows import Row, append_row, environment, has_bf16, table
from benchmarks.lib.subjects import hunyuan_subject, random_model, wan_subject
from benchmarks.lib.timing import Call, alternate
from benchmarks.lib.upstream import CHECKOUTS, upstream_twin
from hyvideo.model import HYVideoDiffusionTransformer
from wan.model import WanModel, bf16_autocast

CPU = torch.device("cpu")
MODELS, STEPS = ("miniature", "width 384"), 50
MINIATURE = (16, 9, 16, 16)  # 576 tokens, its usual clip
LATENT, TEXT = (16, 3, 32, 32), 64  # 3 x 16 x 16 = 768 tokens
WAN_384 = {"dim": 384, "num_heads": 3, "num_layers": 4, "ffn_dim": 1536, "text_dim": 256}
WAN_384 |= {"text_len": TEXT}
HUNYUAN_384 = {
    "hidden_size": 384,
    "heads_num": 3,
    "mm_double_blocks_depth": 2,
    "mm_single_blocks_depth": 2,
    "rope_dim_list": (16, 56, 56),
    "text_states_dim": 256,
    "text_states_dim_2": 64,
    "guidance_embed": True,
}
KINDS = {"wan": WanModel, "hunyuan": HYVideoDiffusionTransformer}
SIZES = {"wan": WAN_384, "hunyuan": HUNYUAN_384}
HEADER = ["tree", "model", "type", "beside", "s", "s beside", "ratio", "of CPU s"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> int:
    args = build_parser().parse_args()
    torch.set_num_threads(args.threads)
    lines = []
    for tree in args.trees:
        for row in rows_of(tree, args.models, args.rounds, args.loops):
            append_row("call", {"tree": tree, **row, **environment(CPU)})
            cells = [tree, row["model"], row["dtype"], row["beside"], f"{row['seconds']:.4f}"]
            ratios = [f"{row[name]:.3f}" for name in ("ratio", "cpu_ratio") if name in row]
            lines.append([*cells, f"{row['beside_seconds']:.4f}", *ratios, ""][: len(HEADER)])
            log("  ".join(lines[-1]))
    sys.stdout.write(table(HEADER, lines) + "\n")
    return 0


def rows_of(tree: str, models: list[str], rounds: int, loops: int) -> Iterator[Row]:
    for dtype in DTYPES:
        if dtype == "bf16" and not has_bf16(CPU):
            log(f"{tree} bf16 left out: no bf16 instructions here")
            continue
        for name in models:
            facts: Row = {"model": name, "dtype": dtype, "rounds": rounds}
            for beside, ours, other in pairs(tree, name, DTYPES[dtype]):
                yield {**facts, "beside": beside, **compared(ours, other, rounds)}
        if loops:
            facts = {"model": "miniature", "dtype": dtype, "rounds": loops, "beside": "its calls"}
            yield {**facts, **loop_beside_calls(load(tree, fp32=dtype == "fp32"), loops)}


def compared(ours: Call, other: Call, rounds: int) -> Row:
    """Medians, and the ratio of processor seconds, which other loads hardly change."""
    cpu: dict[str, list[float]] = {"ours": [], "other": []}

    def clocked(name: str, call: Call) -> Call:
        def run() -> None:
            started = time.process_time()
            call()
            cpu[name].append(time.process_time() - started)

        return run

    calls = {"ours": clocked("ours", ours), "other": clocked("other", other)}
    taken = alternate(calls, rounds, CPU)
    cpu_ratio = median(cpu["ours"][1:]) / median(cpu["other"][1:])  # the first round warms up
    medians = median(taken["ours"]), median(taken["other"])
    return {**ratio_of(*medians), "cpu_ratio": round(cpu_ratio, 5)}


def ratio_of(ours: float, other: float) -> Row:
    numbers = {"seconds": ours, "beside_seconds": other, "ratio": ours / other}
    return {name: round(value, 5) for name, value in numbers.items()}


def pairs(tree: str, name: str, dtype: torch.dtype) -> Iterator[tuple[str, Call, Call]]:
    """The other class, a call of ours and one of the other."""
    region = bf16_autocast(CPU, dtype) if dtype == torch.bfloat16 else nullcontext()
    model = model_of(tree, name, dtype)
    arguments = arguments_of(tree, name, model)
    yield "diffusers", bound(model, arguments, region), diffusers_call(tree, model, arguments)
    if tree == "wan":  # upstream keeps fp32 weights under autocast
        model = model_of(tree, name, torch.float32)
    twin = upstream_twin(model)
    if twin is None:
        log(f"{tree} upstream left out: {CHECKOUTS[tree]} names no checkout")
    else:
        yield "upstream", bound(model, arguments, region), bound(twin, arguments, region)


def model_of(tree: str, name: str, dtype: torch.dtype) -> nn.Module:
    if name != "miniature":
        return random_model(lambda: KINDS[tree](**SIZES[tree]), dtype, CPU)
    model = load(tree, fp32=True).pipeline.model.to(dtype)
    if tree == "hunyuan":
        model.final_layer.linear.float()  # as its checkpoints are loaded
    return model


def arguments_of(tree: str, name: str, model: nn.Module) -> dict[str, Any]:
    """What the model is called with, by name: fixed random inputs."""
    latent = MINIATURE if name == "miniature" else LATENT
    if tree == "wan":
        call = wan_subject(name, model, latent, autocast=False).call
    else:
        call = hunyuan_subject(name, model, latent, TEXT, autocast=False).call
    signature = inspect.signature(model.forward)
    with patch.object(model, "forward", lambda *a, **k: signature.bind(*a, **k).arguments):
        return call()


def bound(model: nn.Module, arguments: dict[str, Any], region: AbstractContextManager) -> Call:
    def call() -> Any:
        with torch.no_grad(), region:
            return model(**arguments)

    return call


def diffusers_call(tree: str, model: nn.Module, arguments: dict[str, Any]) -> Call:
    """In the type of the model's weights throughout, inputs as well, as its pipelines do."""
    pipeline, config = SimpleNamespace(model=model, device=CPU), SimpleNamespace(rope_theta=256)
    converted = convert(SimpleNamespace(name=tree, pipeline=pipeline, config=config))
    dtype, other = next(model.parameters()).dtype, converted.transformer
    full = tuple(other._keep_in_fp32_modules or ())  # as its loader has them
    for key, parameter in other.named_parameters():
        kept = any(part in full for part in key.split("."))
        parameter.data = parameter.data.to(torch.float32 if kept else dtype)
    given = {
        key: value.to(dtype) if torch.is_tensor(value) and value.is_floating_point() else value
        for key, value in converted.translated(arguments).items()
    }
    return bound(other, {**given, "return_dict": False}, nullcontext())


def loop_beside_calls(tree: Tree, rounds: int) -> Row:
    """Median seconds of a full denoising loop, and of all model calls inside it."""
    inputs, model = tree.inputs(EXAMPLES[tree.name], 0), tree.pipeline.model
    loops, calls, started, taken = [], [], [], []
    before = model.register_forward_pre_hook(lambda *_: started.append(time.perf_counter()))
    after = model.register_forward_hook(lambda *_: taken.append(time.perf_counter() - started[-1]))
    for _ in range(rounds):
        taken.clear()
        tree.denoise(inputs, steps=STEPS)
        loops.append(tree.last_run.denoise_seconds)
        calls.append(sum(taken))
    before.remove()
    after.remove()
    return {"steps": STEPS, **ratio_of(median(loops), median(calls))}


def build_parser() -> Parser:
    parser = Parser(__doc__, rounds=25)
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--loops", type=at_least(0), default=1, help="denoising loops, 0: none")
    return parser


if __name__ == "__main__":
    sys.exit(main())
