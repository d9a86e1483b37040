"""The threshold caches of other authors, as they run on both trees."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.baselines import (
    PEERS,
    DiCache,
    EasyCache,
    MagCache,
    Peer,
    TeaCache,
    Variant,
    teacache,
)
from benchmarks.baselines.base import BRANCHES
from benchmarks.lib.clips import Inputs, Tree
from profiling_core.plan.importers import from_magnitude_ratios
from tiny_trees import tiny_trees_fp32

CPU = torch.device("cpu")
STEPS = 12
PROMPT = "red circle moving right over blue stripes"
BLOCKS = {"wan": {"blocks": 3}, "hunyuan": {"double_blocks": 2, "single_blocks": 3}}
TOKENS, WIDTH, LATENT = 8, 48, 16 * 2 * 4 * 4
BEFORE, AFTER = (  # the modules around the blocks
    {"wan": "patch_embedding", "hunyuan": "img_in"},
    {"wan": "head", "hunyuan": "final_layer"},
)
CASES = [(tree, peer) for tree in BLOCKS for peer in PEERS]


@dataclass
class Bench:
    """A tiny tree, a full run's latent and what hooks saw of it, and peers calibrated by it."""

    tree: Tree
    inputs: Inputs
    full: Tensor
    seen: "Seen"
    peers: dict[type[Peer], Peer] = field(default_factory=dict)

    @property
    def branches(self) -> tuple[str, ...]:
        return BRANCHES[self.tree.name]

    def middle(self, peer: Peer, variant: Variant) -> float:
        """A threshold at which the tiny model computes some steps and reuses some."""
        if isinstance(peer, EasyCache):  # a little more than a usual step adds
            return 1.5 * float(np.median(estimates(self.seen, len(self.branches))[3:]))
        return 0.5 if isinstance(peer, DiCache) else 0.3 * peer.span(variant)[1]


def bench_of(tree: Tree) -> Bench:
    inputs = tree.inputs(PROMPT, 3)
    with watched(tree) as seen:
        bench = Bench(tree, inputs, tree.denoise(inputs), seen)
    for build in PEERS:
        bench.peers[build] = build()
        bench.peers[build].calibrate(tree, [inputs])
    return bench


@pytest.fixture(scope="module")
def benches(checkpoint: Path, hunyuan_checkpoint: Path) -> dict[str, Bench]:
    trees = tiny_trees_fp32(checkpoint, hunyuan_checkpoint, STEPS)
    return {tree.name: bench_of(tree) for tree in trees}


@dataclass
class Seen:
    """What hooks of the test saw: per call its latents, its prediction and its block runs."""

    latents: list[Tensor] = field(default_factory=list)
    predictions: list[Tensor] = field(default_factory=list)
    runs: list[dict[str, int]] = field(default_factory=list)
    residuals: list[Tensor] = field(default_factory=list)  # of calls that reach the head

    def total(self, name: str) -> int:
        return sum(runs[name] for runs in self.runs)

    def computed(self, branches: int) -> list[list[int]]:
        """Per branch the steps at which all blocks ran."""
        most = max(sum(runs.values()) for runs in self.runs)
        return [
            [step for step, runs in enumerate(of) if sum(runs.values()) == most]
            for of in (self.runs[branch::branches] for branch in range(branches))
        ]


def tensor_of(value: Any) -> Tensor:
    return value["x"] if isinstance(value, dict) else value[0] if isinstance(value, list) else value


@contextmanager
def watched(tree: Tree) -> Iterator[Seen]:
    """Forward hooks of the test's own on the model, its blocks and what is around them."""
    model, seen, streams = tree.pipeline.model, Seen(), {}

    def starts(module: Any, args: tuple, kwargs: dict) -> None:
        seen.latents.append(tensor_of(kwargs["x"] if "x" in kwargs else args[0]))
        seen.runs.append(dict.fromkeys(BLOCKS[tree.name], 0))

    def ran(name: str) -> Any:
        return lambda *_: seen.runs[-1].update({name: seen.runs[-1][name] + 1})

    def embedded(module: Any, args: tuple, output: Tensor) -> None:
        streams["before"] = output if output.ndim == 3 else output.flatten(2).transpose(1, 2)

    hooks = [
        model.register_forward_pre_hook(starts, with_kwargs=True),
        model.register_forward_hook(
            lambda module, args, output: seen.predictions.append(tensor_of(output))
        ),
        getattr(model, BEFORE[tree.name]).register_forward_hook(embedded),
        getattr(model, AFTER[tree.name]).register_forward_pre_hook(
            lambda module, args: seen.residuals.append(args[0] - streams["before"])
        ),
    ]
    for name in BLOCKS[tree.name]:
        hooks += [block.register_forward_hook(ran(name)) for block in getattr(model, name)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def mean_change(tensors: list[Tensor] | Tensor, one: int, other: int) -> float:
    return float((tensors[one] - tensors[other]).abs().mean())


def relative_changes(tensors: list[Tensor] | Tensor) -> list[float]:
    return [
        mean_change(tensors, s, s - 1) / float(tensors[s - 1].abs().mean()) for s in range(1, STEPS)
    ]


def estimates(seen: Seen, branches: int) -> list[float]:
    """EasyCache's estimates for steps 2, 3, ... of a full run."""
    latents, outputs = seen.latents[::branches], seen.predictions[::branches]
    rates = [
        mean_change(outputs, s, s - 1) / mean_change(latents, s, s - 1) for s in range(1, STEPS)
    ]
    return [
        rates[s - 2] * mean_change(latents, s, s - 1) / float(outputs[s - 1].abs().mean())
        for s in range(2, STEPS)
    ]


def state_of(tree: Tree) -> dict[str, Any]:
    """Everything of the model that a peer could leave changed."""
    model = tree.pipeline.model
    return {
        "class": type(model),
        "entries": {key: value for key, value in vars(model).items() if key[0] != "_"},
        "forward": model.forward.__func__,
        "hooks": [
            len(getattr(module, kind))
            for module in model.modules()
            for kind in ("_forward_hooks", "_forward_pre_hooks")
        ],
        "names": list(model.state_dict()),
        "lists": [[id(block) for block in getattr(model, name)] for name in BLOCKS[tree.name]],
    }


@pytest.mark.parametrize(("name", "build"), CASES)
def test_threshold_zero_computes_everything_and_changes_no_bit(benches, name, build):
    bench = benches[name]
    peer = bench.peers[build]
    with peer.attached(bench.tree, peer.variants(bench.tree)[0], 0.0) as spent:
        latent = bench.tree.denoise(bench.inputs)
    assert torch.equal(latent, bench.full)
    assert spent.list_runs == spent.list_runs_full and spent.reused_calls == 0
    assert spent.block_runs == spent.block_runs_full == bench.tree.last_run.block_runs_full
    assert spent.share() == 1.0


def always_computed(peer: Peer, variant: Variant) -> list[int]:
    """The steps that the rule computes however large the threshold is."""
    if isinstance(peer, TeaCache):
        last = range(STEPS - variant.last, STEPS)
        return sorted({*range(variant.first), *last})
    if isinstance(peer, EasyCache):
        return [*range(variant.warmup), STEPS - 1]
    if isinstance(peer, MagCache):
        return [0, 1, *range(2 + variant.most_skips, STEPS, variant.most_skips + 1)]
    return [0, 1]  # a fifth of the steps


def bytes_needed(name: str, peer: Peer, variant: Variant) -> int:
    """Bytes of the tensors that the rule has to keep."""
    branches, stream = len(BRANCHES[name]), 4 * TOKENS * WIDTH
    if isinstance(peer, TeaCache):
        signals = {"embedding": 4 * WIDTH, "projection": 6 * 4 * WIDTH, "modulated": stream}
        return branches * (stream + signals[variant.signal])
    if isinstance(peer, EasyCache):
        return (3 + branches) * 4 * LATENT  # two inputs, an output, differences
    return branches * (5 if isinstance(peer, DiCache) else 1) * stream


@pytest.mark.parametrize(("name", "build"), CASES)
def test_huge_threshold_leaves_the_protected_steps(benches, name, build):
    bench, branches = benches[name], len(BRANCHES[name])
    peer = bench.peers[build]
    first = next(iter(BLOCKS[name]))
    for variant in peer.variants(bench.tree):
        with watched(bench.tree) as seen, peer.attached(bench.tree, variant, 1e9) as spent:
            bench.tree.denoise(bench.inputs)
        steps = always_computed(peer, variant)
        assert seen.computed(branches) == [steps] * branches
        assert spent.model_calls == STEPS * branches
        assert spent.reused_calls == (STEPS - len(steps)) * branches
        for blocks, depth in BLOCKS[name].items():
            probes = STEPS - len(steps) if build is DiCache and blocks == first else 0
            assert spent.list_runs[blocks] == branches * (len(steps) * depth + probes)
        assert spent.bytes_held == bytes_needed(name, peer, variant)


@pytest.mark.parametrize(("name", "build"), CASES)
def test_counts_equal_those_of_forward_hooks(benches, name, build):
    bench = benches[name]
    peer = bench.peers[build]
    variant = peer.variants(bench.tree)[0 if build is not EasyCache or name == "hunyuan" else 1]
    threshold = bench.middle(peer, variant)
    with watched(bench.tree) as seen, peer.attached(bench.tree, variant, threshold) as spent:
        latent = bench.tree.denoise(bench.inputs)
    assert spent.list_runs == {blocks: seen.total(blocks) for blocks in BLOCKS[name]}
    assert 0 < spent.reused_calls < spent.model_calls
    assert len(always_computed(peer, variant)) < len(seen.computed(len(BRANCHES[name]))[0])
    assert not torch.equal(latent, bench.full)
    assert spent.share() == spent.block_runs / spent.block_runs_full


@pytest.mark.parametrize("name", BLOCKS)
def test_probe_moves_the_residual_along_a_line(benches, name):
    bench, branches = benches[name], len(BRANCHES[name])
    peer = bench.peers[DiCache]
    (variant,) = peer.variants(bench.tree)
    with watched(bench.tree) as seen, peer.attached(bench.tree, variant, 1e9):
        bench.tree.denoise(bench.inputs)
    older, newer, *reused = seen.residuals[::branches]
    limit = {"wan": 2.0, "hunyuan": 1.5}[name]
    for residual in reused:
        along = ((residual - older) * (newer - older)).sum() / (newer - older).square().sum()
        assert 1 - 1e-3 <= along <= limit + 1e-3
        torch.testing.assert_close(residual, older + along * (newer - older), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", BLOCKS)
def test_easycache_decides_as_its_rule_says_from_the_latents_it_saw(benches, name):
    bench, branches = benches[name], len(BRANCHES[name])
    variant = next(v for v in EasyCache().variants(bench.tree) if v.warmup == 5)
    threshold = bench.middle(EasyCache(), variant)
    with watched(bench.tree) as seen, EasyCache().attached(bench.tree, variant, threshold):
        bench.tree.denoise(bench.inputs)
    latents, outputs = seen.latents[::branches], seen.predictions[::branches]
    computed, error = [], 0.0
    for step in range(STEPS):
        if 5 <= step < STEPS - 1:
            before, anchor = computed[-2:]
            k = mean_change(outputs, anchor, before) / mean_change(latents, anchor, before)
            error += k * mean_change(latents, step, step - 1) / outputs[anchor].abs().mean()
            if error < threshold:
                for branch in range(branches):
                    now, then = branches * step + branch, branches * anchor + branch
                    kept = seen.predictions[then] - seen.latents[then]
                    assert torch.equal(seen.predictions[now], seen.latents[now] + kept)
                continue
        computed.append(step)
        error = 0.0
    assert seen.computed(branches) == [computed] * branches


def test_wan_signals_are_the_time_embeddings(benches):
    bench = benches["wan"]
    peer, model = bench.peers[TeaCache], bench.tree.pipeline.model
    sigmas = torch.tensor(bench.tree.sigmas(bench.tree.sampling))
    with torch.no_grad():
        times = [model.embed_time(t[None]) for t in (1000 * sigmas).to(torch.int64)]
    for variant, kind in zip(peer.variants(bench.tree), (0, 1), strict=True):
        now = torch.cat([time[kind] for time in times])
        expected = relative_changes(now)
        signal, output = peer.changes[variant.signal].from_step(1)
        assert signal.tolist() == pytest.approx(np.repeat(expected, 2).tolist(), rel=1e-4)
        assert len(output) == 2 * (STEPS - 1) and (output > 0).all()
        assert len(peer.changes[variant.signal].from_step(5)[0]) == 2 * (STEPS - 5)


def test_hunyuan_signal_is_what_the_first_blocks_attention_takes(benches):
    bench = benches["hunyuan"]
    inputs: list[Tensor] = []
    linear = bench.tree.pipeline.model.double_blocks[0].img_attn_qkv
    hook = linear.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    try:
        bench.tree.denoise(bench.inputs)
    finally:
        hook.remove()
    expected = relative_changes(inputs)
    signal, _ = bench.peers[TeaCache].changes["modulated"].from_step(1)
    assert signal.tolist() == pytest.approx(expected, rel=1e-4)


def test_polynomial_of_degree_four_is_recovered():
    signal = np.linspace(0.01, 0.4, 49)
    known = np.array([7.3, -4.0, 0.7, 0.9, 0.02])
    assert teacache.fit(signal, np.polyval(known, signal)) == pytest.approx(known, rel=1e-5)
    with pytest.raises(ValueError, match="5 different changes, the calibration has 4"):
        teacache.fit(signal[:4].repeat(3), signal[:4].repeat(3))


@pytest.mark.parametrize("name", BLOCKS)
def test_magcache_runs_its_ratios_schedule_and_adds_the_last_computed_residual(benches, name):
    bench, branches = benches[name], len(BRANCHES[name])
    peer = bench.peers[MagCache]
    variant = peer.variants(bench.tree)[1]
    threshold = bench.middle(peer, variant)
    with watched(bench.tree) as seen, peer.attached(bench.tree, variant, threshold):
        bench.tree.denoise(bench.inputs)
    (site,) = from_magnitude_ratios(peer.ratios, threshold=threshold, most_skips=4)
    computed = seen.computed(branches)
    assert computed == list(map(list, site["compute_steps"].values()))
    for branch, steps in enumerate(computed):
        of = seen.residuals[branch::branches]
        for step in range(STEPS):
            anchor = max(s for s in steps if s <= step)
            torch.testing.assert_close(of[step], of[anchor], rtol=0, atol=2e-5)
        assert not torch.allclose(of[steps[-1]], of[steps[-2]], rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", BLOCKS)
def test_magnitude_ratios_are_those_of_the_residuals(benches, name):
    bench, branches = benches[name], BRANCHES[name]
    for number, branch in enumerate(branches):
        norms = [of.norm(dim=-1) for of in bench.seen.residuals[number :: len(branches)]]
        expected = [1.0, *(float((norms[s] / norms[s - 1]).mean()) for s in range(1, STEPS))]
        assert bench.peers[MagCache].ratios[branch] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("name", "build"), CASES)
def test_model_is_as_before_after_an_error_and_each_video_starts_clean(benches, name, build):
    bench = benches[name]
    peer = bench.peers[build]
    variant, before = peer.variants(bench.tree)[0], state_of(bench.tree)
    weights = {k: v.clone() for k, v in bench.tree.pipeline.model.state_dict().items()}
    with pytest.raises(RuntimeError, match="in the second call"):
        with peer.attached(bench.tree, variant, 1e9), failing_in_the_second_call(bench.tree):
            bench.tree.denoise(bench.inputs)
    assert state_of(bench.tree) == before
    latents = []
    for _ in range(2):
        with peer.attached(bench.tree, variant, bench.middle(peer, variant)):
            latents.append(bench.tree.denoise(bench.inputs))
        assert state_of(bench.tree) == before
    assert torch.equal(*latents)
    assert torch.equal(bench.tree.denoise(bench.inputs), bench.full)
    after = bench.tree.pipeline.model.state_dict()
    assert all(torch.equal(weights[key], after[key]) for key in weights)


@contextmanager
def failing_in_the_second_call(tree: Tree) -> Iterator[None]:
    """The last block raises when it runs for the second time."""
    calls = []

    def fail(module: Any, args: tuple) -> None:
        calls.append(module)
        if len(calls) == 2:
            raise RuntimeError("in the second call")

    last = getattr(tree.pipeline.model, list(BLOCKS[tree.name])[-1])[-1]
    hook = last.register_forward_pre_hook(fail)
    try:
        yield
    finally:
        hook.remove()


def test_wrong_use_is_refused_with_what_to_do(benches):
    tree, mag = benches["wan"].tree, benches["wan"].peers[MagCache]
    variant = mag.variants(tree)[0]
    with pytest.raises(ValueError, match=r"threshold -0\.1 is not a number from 0"):
        mag.attached(tree, variant, -0.1).__enter__()
    with pytest.raises(ValueError, match="MagCache has no ratios of 12 steps of hunyuan"):
        mag.attached(benches["hunyuan"].tree, variant, 0.1).__enter__()
    with pytest.raises(ValueError, match="TeaCache has no polynomial for 12 steps of wan"):
        TeaCache().attached(tree, TeaCache().variants(tree)[0], 0.1).__enter__()


def test_loop_of_another_length_is_refused(benches):
    bench = benches["hunyuan"]
    peer, before = bench.peers[EasyCache], state_of(bench.tree)
    variant = peer.variants(bench.tree)[0]
    with pytest.raises(ValueError, match="called the model 7 times instead of 12"):
        with peer.attached(bench.tree, variant, 0.1):
            bench.tree.denoise(bench.inputs, steps=7)
    with pytest.raises(ValueError, match="one video of 12 steps: attach anew"):
        with peer.attached(bench.tree, variant, 0.1):
            bench.tree.denoise(bench.inputs)
            bench.tree.denoise(bench.inputs)
    assert state_of(bench.tree) == before
