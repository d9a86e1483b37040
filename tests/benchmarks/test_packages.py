"""The real packages on diffusers' transformers that hold a tree's weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from diffusers import FasterCacheConfig, PyramidAttentionBroadcastConfig, TaylorSeerCacheConfig
from diffusers.hooks import SeaCacheConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from benchmarks.baselines.base import BRANCHES, Call, intercepted
from benchmarks.baselines.cache_dit import SCM_PRESETS, DBCache, StepMask, graded_mask
from benchmarks.baselines.diffusers_hooks import (
    PACKAGES,
    FirstBlockCache,
    MagCacheHook,
)
from benchmarks.baselines.diffusers_models import LISTS, PARTS, convert
from benchmarks.baselines.package_run import BatchedGuidance, PackagePeer, PackageRule
from benchmarks.lib.clips import Inputs, Tree, load
from tiny_trees import tiny_trees_fp32

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid")  # diffusers' FasterCache
CPU = torch.device("cpu")
STEPS = 12
PROMPT = "red circle moving right over blue stripes"
TREES = ("wan", "hunyuan")
CASES = [(tree, build) for tree in TREES for build in PACKAGES]


class Bench(NamedTuple):
    tree: Tree
    inputs: Inputs
    full: Tensor  # the latent of our own model's full run

    @property
    def all_runs(self) -> dict[str, int]:
        calls = STEPS * len(BRANCHES[self.tree.name])
        model = self.tree.pipeline.model
        lists = ("blocks",) if self.tree.name == "wan" else ("double_blocks", "single_blocks")
        return {name: calls * len(getattr(model, name)) for name in lists}


@pytest.fixture(scope="module")
def benches(checkpoint: Path, hunyuan_checkpoint: Path) -> dict[str, Bench]:
    trees = tiny_trees_fp32(checkpoint, hunyuan_checkpoint, STEPS)
    inputs = [tree.inputs(PROMPT, 3) for tree in trees]
    return {t.name: Bench(t, i, t.denoise(i)) for t, i in zip(trees, inputs, strict=True)}


@pytest.fixture(scope="module")
def peer_of(benches: dict[str, Bench]) -> Callable[[str, type[PackagePeer]], PackagePeer]:
    """A calibrated peer; skips where its package is not installed."""
    made: dict[tuple[str, type], PackagePeer] = {}

    def build(tree: str, kind: type[PackagePeer]) -> PackagePeer:
        if reason := kind.missing():
            pytest.skip(reason)
        if (tree, kind) not in made:
            made[tree, kind] = kind()
            made[tree, kind].calibrate(benches[tree].tree, [benches[tree].inputs])
        return made[tree, kind]

    return build


@contextmanager
def linears(tree: Tree) -> Iterator[dict[tuple[str, str], int]]:
    """Products that the linears of the blocks take, per block list and part, counted in F.linear.

    All transformers on the tree's weights share their memory, by which a weight is known.
    """
    known = {
        linear.weight.data_ptr(): (name, part)
        for name, blocks in convert(tree).lists.items()
        for block in blocks
        for part in PARTS[name]
        for linear in block.get_submodule(part).modules()
        if isinstance(linear, nn.Linear)
    }
    found, plain = dict.fromkeys(known.values(), 0), F.linear

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if weight.data_ptr() in known:
            found[known[weight.data_ptr()]] += x.numel() * len(weight)
        return plain(x, weight, bias)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "linear", linear)
        yield found


@contextmanager
def dispatched() -> Iterator[dict[tuple[str, str], int]]:
    """FLOPs per block list and part by torch's own counter, attention included; slow."""
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # without a formula there
    formula = {fused: lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value)}
    ours, found = {theirs: name for name, theirs in LISTS.items()}, {}
    with FlopCounterMode(display=False, custom_mapping=formula) as mode:
        yield found
    for name, operations in mode.get_flop_counts().items():
        _, block_list, _, part, *rest = [*name.split("."), "", "", "", ""]
        if block_list in ours and not rest[0] and part in PARTS[ours[block_list]]:
            key = (ours[block_list], part)
            found[key] = found.get(key, 0) + sum(operations.values())


def close(one: Tensor, other: Tensor) -> bool:
    return (one - other).abs().max().item() < 1e-4 * other.abs().max().item()


def one_call(bench: Bench) -> tuple[PackageRule, Call]:
    """A transformer without a cache, and the first call of a video."""
    seen: list[Call] = []

    class First(PackageRule):
        def answer(self, call: Call) -> Any:
            seen.append(call)
            raise InterruptedError

    with pytest.raises(InterruptedError), intercepted(bench.tree, First(bench.tree)):
        bench.tree.denoise(bench.inputs)
    return PackageRule(bench.tree), seen[0]


@pytest.mark.parametrize("name", TREES)
def test_the_converted_model_predicts_what_ours_does(benches, name):
    bench, seen = benches[name], []

    class Both(PackageRule):
        def answer(self, call: Any) -> Any:
            ours, theirs = call.run(), super().answer(call)
            seen.append([each["x"] if name == "hunyuan" else each[0] for each in (ours, theirs)])
            return ours

    with intercepted(bench.tree, Both(bench.tree)):
        bench.tree.denoise(bench.inputs)
    assert len(seen) == STEPS * len(BRANCHES[name])
    for ours, theirs in seen:
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        assert ours.std() > 0.1 and (ours - theirs).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("name", "kind"), [("wan", PackageRule), ("hunyuan", PackageRule), ("wan", BatchedGuidance)]
)
@pytest.mark.parametrize("in_parts", [False, True])
def test_without_a_cache_the_loop_gives_the_full_run(benches, name, kind, in_parts):
    bench = benches[name]
    rule = kind(bench.tree, in_parts)
    with intercepted(bench.tree, rule), rule.watching(bench.tree):
        latent = bench.tree.denoise(bench.inputs)
    assert close(latent, bench.full)
    assert rule.meter.runs == pytest.approx(bench.all_runs)
    assert rule.reused_calls == 0 and not list(rule.held())


@pytest.mark.slow
@pytest.mark.parametrize("name", TREES)
def test_miniatures_run_on_diffusers_as_on_ours(name):
    tree = load(name, fp32=True, steps=4)
    inputs = tree.inputs(PROMPT, 3)
    full = tree.denoise(inputs)
    with intercepted(tree, PackageRule(tree)):
        assert close(tree.denoise(inputs), full)


@pytest.mark.parametrize("name", TREES)
@torch.no_grad()
def test_shares_of_a_block_are_those_of_its_flops(benches, name):
    rule, call = one_call(benches[name])
    with dispatched() as flops:
        rule.converted(call.arguments)
    for block_list, shares in rule.converted.shares(call.arguments).items():
        whole = sum(flops[block_list, part] for part in shares)
        measured = {part: flops[block_list, part] / whole for part in shares}
        assert shares == pytest.approx(measured, rel=1e-6)


@pytest.mark.parametrize(("name", "build"), CASES)
def test_the_most_careful_setting_is_the_full_run(benches, peer_of, name, build):
    bench, peer = benches[name], peer_of(name, build)
    variant = peer.variants(bench.tree)[0]
    for threshold in {0.0, peer.span(variant)[0]}:
        with peer.attached(bench.tree, variant, threshold) as spent:
            latent = bench.tree.denoise(bench.inputs)
        assert close(latent, bench.full)
        assert spent.list_runs == pytest.approx(bench.all_runs) == spent.list_runs_full
        assert spent.reused_calls == 0
        assert spent.model_calls == STEPS * len(BRANCHES[name])


@pytest.mark.parametrize(("name", "build"), CASES)
def test_every_variant_saves_what_the_linears_say(benches, peer_of, name, build):
    bench, peer = benches[name], peer_of(name, build)
    rule, call = one_call(bench)
    with linears(bench.tree) as full, torch.no_grad():
        rule.converted(call.arguments)
    weights = rule.converted.shares(call.arguments)
    for variant in peer.variants(bench.tree):
        if getattr(variant, "warmup", 0) > STEPS:
            continue  # made for longer videos
        eager = peer.span(variant)[1]
        with linears(bench.tree) as done, peer.attached(bench.tree, variant, eager) as spent:
            latent = bench.tree.denoise(bench.inputs)
        assert latent.isfinite().all() and not close(latent, bench.full), variant
        assert 0 < spent.block_runs < spent.block_runs_full, variant
        assert 0 < spent.reused_calls < spent.model_calls and spent.bytes_held > 0, variant
        for block_list, runs in spent.list_runs.items():
            calls = [
                share * done[block_list, part] / full[block_list, part]
                for part, share in weights[block_list].items()
            ]
            depth = len(rule.converted.lists[block_list])
            assert runs == pytest.approx(depth * sum(calls), abs=2e-6), variant
            assert peer.in_parts or isinstance(runs, int)


@pytest.mark.parametrize(("name", "build"), CASES)
def test_a_second_video_starts_clean_and_nothing_stays(benches, peer_of, name, build):
    bench, peer = benches[name], peer_of(name, build)
    tree, pipeline = bench.tree, bench.tree.pipeline
    before = {key: value.clone() for key, value in pipeline.model.state_dict().items()}
    entries = set(vars(pipeline.model)), set(vars(pipeline))
    variant = peer.variants(tree)[0]
    eager, videos = peer.span(variant)[1], []
    with pytest.raises(KeyError, match="stop"), peer.attached(tree, variant, eager):
        pipeline.model.register_forward_pre_hook(stop_at(5))
        tree.denoise(bench.inputs)
    pipeline.model._forward_pre_hooks.clear()
    for _ in range(2):
        with peer.attached(tree, variant, eager) as spent:
            videos.append((tree.denoise(bench.inputs), spent))
    (first, bill), (second, other) = videos
    assert torch.equal(first, second) and bill == other
    assert (set(vars(pipeline.model)), set(vars(pipeline))) == entries
    after = pipeline.model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert torch.equal(tree.denoise(bench.inputs), bench.full)


def stop_at(call: int) -> Callable[..., None]:
    left = iter(range(call))

    def hook(module: Any, args: Any) -> None:
        if next(left, None) is None:
            raise KeyError("stop")

    return hook


@pytest.mark.parametrize("name", TREES)
def test_mag_cache_is_calibrated_by_its_own_hook(benches, name):
    bench, peer = benches[name], MagCacheHook()
    (variant, *_) = peer.variants(bench.tree)
    with pytest.raises(ValueError, match="not calibrated"):
        peer.span(variant)
    with pytest.raises(ValueError, match=f"no ratios of {STEPS} steps of {name}"):
        peer.attached(bench.tree, variant, 0.1).__enter__()
    peer.calibrate(bench.tree, [bench.inputs, bench.inputs])
    (ratios,) = peer.ratios.values()
    assert len(ratios) == STEPS and ratios[0] == 1.0 and all(0.1 < r < 10 for r in ratios)


@pytest.mark.parametrize("build", [DBCache, StepMask])
def test_a_package_that_is_not_installed_is_named(benches, monkeypatch, build):
    monkeypatch.setattr("benchmarks.baselines.cache_dit.find_spec", lambda name: None)
    assert "requirements-bench.txt" in build.missing() and FirstBlockCache.missing() is None
    peer, tree = build(), benches["wan"].tree
    with pytest.raises(ModuleNotFoundError, match="cache-dit is not installed"):
        peer.attached(tree, peer.variants(tree)[0], 0.1).__enter__()


@pytest.mark.skipif(StepMask.missing() is not None, reason=str(StepMask.missing()))
def test_masks_go_through_the_presets_of_the_package():
    import cache_dit

    for grade, preset in enumerate(SCM_PRESETS, 1):
        assert graded_mask(grade, 50) == cache_dit.steps_mask(total_steps=50, mask_policy=preset)
    counts = [sum(graded_mask(grade / 8, 50)) for grade in range(41)]
    assert counts == sorted(counts, reverse=True) and counts[0] == 50 and counts[-1] < 10
    assert all(graded_mask(grade / 8, 50)[::49] == [1, 1] for grade in range(41))


# What diffusers_hooks.py says it configures around.


def test_default_patterns_of_taylorseer_hook_nothing_on_wan(benches):
    for name, hooked in (("wan", 0), ("hunyuan", 5)):
        rule = PackageRule(benches[name].tree)
        rule.transformer.enable_cache(TaylorSeerCacheConfig())
        names = [n for n, m in rule.transformer.named_modules() if hasattr(m, "_diffusers_hook")]
        assert len([n for n in names if n]) == hooked


@torch.no_grad()
def test_sequential_guidance_is_wrong_for_caches_without_branches(benches):
    rule, call = one_call(benches["wan"])
    arguments = rule.converted.translated(call.arguments)
    other = {**arguments, "encoder_hidden_states": arguments["encoder_hidden_states"].flip(1) + 1}
    runs: list[str] = []
    attention = rule.transformer.blocks[0].attn1
    attention.to_q.register_forward_hook(lambda *_: runs.append(rule.branch))
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
    )
    rule.transformer.enable_cache(config)
    for rule.branch, given in 3 * (("cond", arguments), ("uncond", other)):
        with rule.transformer.cache_context(rule.branch):
            rule.transformer(**given)
    assert runs == ["cond"] * 3

    rule, _ = one_call(benches["wan"])
    rule.transformer.enable_cache(FasterCacheConfig(current_timestep_callback=lambda: 500))
    with pytest.raises(IndexError), rule.transformer.cache_context("cond"):
        rule.transformer(**arguments)


@torch.no_grad()
def test_faster_cache_cannot_skip_in_the_first_call_of_a_distilled_model(benches):
    rule, call = one_call(benches["hunyuan"])
    rule.transformer.enable_cache(
        FasterCacheConfig(is_guidance_distilled=True, current_timestep_callback=lambda: 500)
    )
    with pytest.raises(TypeError), rule.transformer.cache_context("cond"):
        rule.converted(call.arguments)


@torch.no_grad()
def test_sea_cache_computes_everything_without_the_step(benches):
    rule, call = one_call(benches["wan"])
    rule.transformer.enable_cache(SeaCacheConfig(threshold=100.0, max_consecutive_cached=0))
    for _ in range(4):
        with rule.transformer.cache_context("cond"):
            rule.converted(call.arguments)
    assert rule.meter.total == 4 * rule.converted.depth
