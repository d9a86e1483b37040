"""What a GPU could get wrong and a CPU not: host reads between steps, bytes, places, all rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.lib.rows import environment, load_rows
from benchmarks.lib.timing import Subject, measured_bytes
from benchmarks.speed import gpu
from benchmarks.speed.full_models import TOYS
from devices import DEVICES
from profiling_core.engine.delta_cache import DeltaCache
from profiling_core.plan import CachePlan

WIDE = {"hidden_size": 128, "heads_num": 2, "rope_dim_list": (16, 24, 24)}
SIZES = {  # whose deltas are multiples of the 512 bytes that CUDA's allocator counts in
    gpu.WAN_SMALL: TOYS[gpu.WAN_SMALL],
    gpu.HUNYUAN: replace(TOYS[gpu.HUNYUAN], sizes=TOYS[gpu.HUNYUAN].sizes | WIDE, text_tokens=6),
}
FIRST = 10  # steps
PLANS = [(gpu.WAN_SMALL, name) for name in ("paper", "balanced")]
PLANS += [(gpu.HUNYUAN, name) for name in ("paper", "release", "balanced")]


class NoHostReads(TorchDispatchMode):
    """Refuses what makes the host wait for a GPU, also on the CPU."""

    READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        assert func._schema.name.removeprefix("aten::") not in self.READS, f"host read: {func}"
        return func(*args, **kwargs or {})


@contextmanager
def no_host_reads(device: torch.device) -> Iterator[None]:
    """CUDA's own check there: an error at every synchronisation of the host."""
    if device.type == "cpu":
        with NoHostReads():
            yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def outputs(subject: Subject, plan: CachePlan) -> list[torch.Tensor]:
    """Of the first calls of a clip, of every kind; the inputs are the same at every step."""
    found, cache = [], DeltaCache(plan)
    with cache.attached(subject.model):
        for step in plan.solver_steps[:FIRST]:
            for branch in plan.branches:
                cache.begin(step, branch)
                output = subject.call()
                found.append(output["x"] if isinstance(output, dict) else output[0])
    return found


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "preset"), PLANS)
def test_a_cached_run_never_makes_the_host_wait(name, preset, device) -> None:
    subject = SIZES[name].subject(name, torch.device(device))
    plan = subject.plan(preset)
    outputs(subject, plan)  # whatever is set up once
    with no_host_reads(torch.device(device)):
        found = outputs(subject, plan)
    assert all(each.isfinite().all() for each in found)


@pytest.mark.parametrize("device", DEVICES)
def test_a_host_read_would_be_seen(device) -> None:
    tensor = torch.ones(2, device=device)
    with (
        pytest.raises((AssertionError, RuntimeError), match=r"host read|synchroniz"),
        no_host_reads(torch.device(device)),
    ):
        tensor.sum().item()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "preset"), PLANS)
def test_bytes_of_the_cache_are_those_of_the_allocator(name, preset, device) -> None:
    subject = SIZES[name].subject(name, torch.device(device))
    subject.call()
    held, formula = measured_bytes(subject, subject.plan(preset), torch.device(device))
    assert held == formula


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", SIZES)
def test_anchors_in_host_memory_leave_the_device_and_change_no_bit(name, device) -> None:
    subject = SIZES[name].subject(name, torch.device(device))
    plan = subject.plan("paper")
    host = plan.model_copy(update={"storage_place": "host"})
    expected = outputs(subject, plan)
    assert all(map(torch.equal, outputs(subject, host), expected))
    cache = DeltaCache(host)
    with cache.attached(subject.model):
        cache.begin(6, "cond")
        subject.call()
        kept = [a for store in cache._stores() for a in store.anchors.values()]
        tensors = [tensor for anchor in kept for tensor in anchor.tensors]
        assert tensors and {tensor.device.type for tensor in tensors} == {"cpu"}
        assert {tensor.is_pinned() for tensor in tensors} == {device == "cuda"}


@pytest.mark.parametrize("device", DEVICES)
def test_the_ten_minutes_command_measures_rows_of_every_part(device, tmp_path: Path) -> None:
    """At toy size; compiled blocks have tests of their own."""
    parts = [part for part in gpu.PARTS if part != "compile"]
    options = ["--toy", "--models", gpu.HUNYUAN, gpu.WAN, "--presets", "paper"]
    options += ["--policies", "DiCache", "--parts", *parts]
    items = gpu.wanted(TOYS, gpu.build_parser().parse_args(options))
    place = torch.device(device)
    assert gpu.Session(TOYS, items, 60, tmp_path, environment(place), place).run() == 0
    rows = load_rows(gpu.NAME, tmp_path)
    assert {row["part"] for row in rows} == set(parts)
    assert len(rows) == len(items) == 10
    for row in rows:
        assert (row.get("peak_bytes", 1) > 0) == (device == "cuda" or "peak_bytes" not in row)
        assert {"driver", "cuda", "cudnn"} <= row.keys() or device == "cpu"
