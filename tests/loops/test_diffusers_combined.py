"""cache_pipeline with what users combine it with: offloading, compile, adapters, other caches."""

from functools import wraps
from types import FunctionType, MethodType, SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import cpu_offload_with_hook
from accelerate.hooks import remove_hook_from_module
from diffusers import (
    CogVideoXDPMScheduler,
    DPMSolverMultistepScheduler,
    FirstBlockCacheConfig,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    LTXConditionPipeline,
    SASolverScheduler,
    WanVACETransformer3DModel,
    WanVideoToVideoPipeline,
)
from diffusers.hooks import (
    apply_first_block_cache,
    apply_group_offloading,
    apply_layerwise_casting,
)
from torch import nn

import toys
from diffusers_plans import intervals, made_plan, prediction
from profiling_core import cache_pipeline, profile_pipeline
from profiling_core.engine.delta_cache import DeltaCache
from profiling_core.errors import PlanError
from profiling_core.loops.diffusers_cache import refuse_intervals, refuse_other_caches
from tiny_pipelines import FRAMES, Tiny, build, picture

PLANS = {"intervals": lambda tiny: intervals(tiny, "linear"), "jump": lambda _: prediction("jump")}


def cached(tiny: Tiny, kind: str = "intervals") -> torch.Tensor:
    with cache_pipeline(tiny.pipe, made_plan(tiny, PLANS[kind](tiny))):
        return tiny.latents()


@pytest.mark.parametrize("kind", PLANS)
def test_models_that_accelerate_moves_in_front_of_every_call(kind: str) -> None:
    tiny = build("wan")
    expected, moved = cached(tiny, kind), []
    model, hook = cpu_offload_with_hook(tiny.pipe.transformer, execution_device="cpu")
    before = hook.hook.pre_forward
    hook.hook.pre_forward = lambda *a, **k: moved.append(1) or before(*a, **k)
    tiny.latents()
    full = len(moved)
    assert torch.equal(cached(tiny, kind), expected)
    calls = len(moved) - 2 * full  # made_plan makes a full run as well
    assert calls == (10 if kind == "jump" else 20) and full == 20  # a jump spares the transfers
    remove_hook_from_module(model, recurse=True)


def test_group_offloading_without_a_stream() -> None:
    tiny = build("wan")
    expected = cached(tiny)
    cpu = torch.device("cpu")
    apply_group_offloading(
        tiny.pipe.transformer,
        onload_device=cpu,
        offload_device=cpu,
        offload_type="block_level",
        num_blocks_per_group=2,
    )
    assert torch.equal(cached(tiny), expected)


def test_group_offloading_with_a_stream_is_refused_for_intervals_alone() -> None:
    tiny = build("wan")
    hook = SimpleNamespace(group=SimpleNamespace(stream=object()))
    registry = SimpleNamespace(get_hook=lambda name: hook)
    plan = made_plan(tiny, intervals(tiny))
    tiny.pipe.transformer.blocks[0]._diffusers_hook = registry
    with pytest.raises(PlanError, match="fetches the next group in a fixed order"):
        refuse_intervals(plan, [tiny.pipe.transformer])


def test_compiled_blocks_add_no_graph_and_no_break() -> None:
    import torch._dynamo as dynamo

    tiny = build("wan")
    plan = made_plan(tiny, intervals(tiny, "linear"))
    with cache_pipeline(tiny.pipe, plan):
        expected = tiny.latents()
    dynamo.reset()
    dynamo.utils.counters.clear()
    tiny.pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    tiny.latents()
    graphs = dynamo.utils.counters["stats"]["unique_graphs"]
    with cache_pipeline(tiny.pipe, plan) as cache:
        found = tiny.latents()
    assert dynamo.utils.counters["stats"]["unique_graphs"] == graphs > 0
    assert not dynamo.utils.counters["graph_break"] and cache.stats.reused_intervals > 0
    torch.testing.assert_close(found, expected)


class LowRank(nn.Module):
    """A linear layer with an adapter beside it, as LoRA puts it there."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.base = linear
        self.down = nn.Linear(linear.in_features, 2, bias=False)
        self.up = nn.Linear(2, linear.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(self.down(x))


def test_adapters_in_the_blocks() -> None:
    tiny = build("wan")
    without = cached(tiny)
    torch.manual_seed(9)
    for block in tiny.pipe.transformer.blocks:
        block.attn1.to_q = LowRank(block.attn1.to_q)
    full, found = tiny.latents(), cached(tiny)
    assert not torch.equal(found, without) and not torch.equal(found, full)
    assert torch.equal(found, cached(tiny))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantised_linear_layers() -> None:
    tiny = build("wan")
    quantised = torch.ao.quantization.quantize_dynamic(
        tiny.pipe.transformer.blocks, {nn.Linear}, dtype=torch.qint8
    )
    tiny.pipe.transformer.blocks = quantised
    full, found = tiny.latents(), cached(tiny)
    assert torch.isfinite(found).all() and not torch.equal(found, full)
    assert torch.equal(tiny.latents(), full)


def test_context_parallelism_is_refused_for_intervals() -> None:
    tiny = build("wan")
    plan = made_plan(tiny, intervals(tiny))
    tiny.pipe.transformer._parallel_config = object()
    with cache_pipeline(tiny.pipe, plan), pytest.raises(PlanError, match="shards the tokens"):
        tiny.latents()


def test_hints_between_the_blocks_are_refused_for_intervals() -> None:
    tiny = build("wan")
    vace = WanVACETransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, num_layers=6, vace_layers=[0, 3], ffn_dim=32
    )
    with pytest.raises(PlanError, match="adds its hints between the blocks"):
        refuse_intervals(made_plan(tiny, intervals(tiny)), [vace])


@pytest.mark.parametrize("tokens", [4, 6])  # of the text; the image has 4
def test_fluxs_blocks_are_refused_for_intervals(tokens: int) -> None:
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        **{"in_channels": 4, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 8},
        **{"num_attention_heads": 2, "joint_attention_dim": 16, "pooled_projection_dim": 8},
        axes_dims_rope=(2, 2, 4),
    )
    lists = {"double": "transformer_blocks", "single": "single_transformer_blocks"}
    sites = [toys.intervals(toys.both(0), [[0, 0]], block_list=name) for name in lists]
    ids, given = torch.zeros(tokens, 3), {"pooled_projections": torch.ones(1, 8)}
    given |= {"txt_ids": ids, "img_ids": torch.zeros(4, 3), "timestep": torch.ones(1)}
    given |= {"encoder_hidden_states": torch.ones(1, tokens, 16), "guidance": None}
    for site in sites:
        plan = toys.toy_plan([site], lists={"double": 2, "single": 2})
        plan = plan.replace(model=plan.model.model_copy(update={"width": 16}))
        cache = DeltaCache(plan, lists=lists).attach(model)
        cache.begin(0)
        with (
            torch.no_grad(),
            pytest.raises(PlanError, match=r"in another order|for an argument of"),
        ):
            model(torch.ones(1, 4, 4), **given)
        cache.detach()


def test_other_caches_are_named_and_refused() -> None:
    tiny = build("wan")
    tiny.pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(PlanError, match=r"FirstBlockCacheConfig is enabled.*disable_cache\(\)"):
        cache_pipeline(tiny.pipe, "balanced")
    tiny.pipe.transformer.disable_cache()
    cache = cache_pipeline(tiny.pipe, "balanced")
    tiny.pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(PlanError, match="FirstBlockCacheConfig is enabled"):
        tiny.latents()
    cache.detach()
    tiny.pipe.transformer.disable_cache()
    tiny.pipe.transformer._is_cached = True  # what cache-dit sets
    with pytest.raises(PlanError, match="cache-dit is enabled"):
        cache_pipeline(tiny.pipe, "balanced")
    del tiny.pipe.transformer._is_cached
    with cache_pipeline(tiny.pipe, "fast"), pytest.raises(PlanError, match="cached or profiled"):
        cache_pipeline(tiny.pipe, "balanced")


def counting(own: Any, calls: list[int]) -> Any:
    """As TeaCache's forward: it counts the calls, and its state outlives a clip."""

    def counted_forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return own(self, *args, **kwargs)

    return counted_forward


@pytest.mark.parametrize("hidden", [False, True])  # below accelerate's hook, and named like it
@pytest.mark.parametrize("place", ["object", "block", "class"])
def test_another_cache_that_replaced_a_forward_is_named_and_refused(
    place, hidden, monkeypatch
) -> None:
    tiny = build("wan")
    model = tiny.pipe.transformer
    module = model.blocks[1] if place == "block" else model
    forward = counting(type(module).forward, [])
    if hidden:
        forward = wraps(type(module).forward)(forward)
    if place == "class":
        monkeypatch.setattr(type(module), "forward", forward)
    else:
        module.forward = MethodType(forward, module)
    if hidden:
        cpu_offload_with_hook(model, execution_device="cpu")
    said = rf"{type(module).__name__} was replaced by test_diffusers_combined.counted_forward"
    with pytest.raises(PlanError, match=said):
        cache_pipeline(tiny.pipe, "balanced")
    with pytest.raises(PlanError, match=said):
        profile_pipeline(tiny.pipe, [tiny.arguments], 4)


def test_a_cache_of_a_package_for_parallel_runs_is_refused() -> None:
    tiny, name = build("wan"), "xfuser.model_executor.cache.adapters"
    tiny.pipe.transformer.forward = FunctionType((lambda: 0).__code__, {"__name__": name})
    with pytest.raises(PlanError, match=f"was replaced by {name}"):
        cache_pipeline(tiny.pipe, "balanced")


def test_a_cache_that_came_as_a_hook_of_diffusers_is_refused() -> None:
    tiny = build("wan")
    apply_first_block_cache(tiny.pipe.transformer, FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(PlanError, match="hook 'fbc_leader_block_hook', which keeps a state"):
        cache_pipeline(tiny.pipe, "balanced")


def test_forwards_that_hooks_compilers_and_subclasses_replaced_are_no_caches() -> None:
    tiny = build("wan")
    model = tiny.pipe.transformer

    class Own(type(model)):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    model.__class__ = Own
    apply_layerwise_casting(model, torch.float32, torch.float32)
    cpu_offload_with_hook(model, execution_device="cpu")
    model.forward = torch.compile(model.forward)
    assert "forward" in vars(model)  # replaced, as a cache would
    refuse_other_caches([model])


def test_cache_dit_itself_is_refused() -> None:
    cache_dit = pytest.importorskip("cache_dit")
    tiny = build("wan")
    cache_dit.enable_cache(tiny.pipe)
    try:
        with pytest.raises(PlanError, match="cache-dit is enabled"):
            cache_pipeline(tiny.pipe, "balanced")
    finally:
        cache_dit.disable_cache(tiny.pipe)


def test_bad_plans_and_calls_are_said(tmp_path) -> None:
    tiny = build("hunyuan")
    with pytest.raises(PlanError, match="no preset 'paper' for LTXVideo"):
        cache_pipeline(build("ltx").pipe, "paper")
    with pytest.raises(PlanError, match=r"nothing\.json"):
        cache_pipeline(tiny.pipe, tmp_path / "nothing.json")
    wan = build("wan")
    other = made_plan(wan, prediction("hold"))
    with cache_pipeline(tiny.pipe, other), pytest.raises(PlanError, match="has 6 blocks"):
        tiny.latents()
    with pytest.raises(PlanError, match="has no transformer"):
        cache_pipeline(SimpleNamespace(components={"unet": None}), "balanced")


def of_video(denoise_strength: float) -> Any:
    """LTX with conditions; a strength below 1 leaves out the first levels."""
    tiny = build("ltx")
    parts = {
        "tokenizer": None,
        "text_encoder": None,
        "scheduler": FlowMatchEulerDiscreteScheduler(),
    }
    pipe = LTXConditionPipeline(transformer=tiny.pipe.transformer, vae=tiny.pipe.vae, **parts)
    more = {"image": picture(), "denoise_strength": denoise_strength}
    return Tiny(pipe, tiny.arguments | more)


def from_video(strength: float) -> Any:
    tiny = build("wan")
    parts = {"tokenizer": None, "text_encoder": None, "scheduler": tiny.pipe.scheduler}
    pipe = WanVideoToVideoPipeline(transformer=tiny.pipe.transformer, vae=tiny.pipe.vae, **parts)
    own = {name: value for name, value in tiny.arguments.items() if name != "num_frames"}
    return Tiny(pipe, own | {"video": [picture()] * FRAMES, "strength": strength})


@pytest.mark.parametrize("kind", [of_video, from_video])
@pytest.mark.parametrize("strength", [0.4, 0.8])
def test_a_loop_that_begins_in_the_middle_runs_the_steps_of_the_plan_from_there(
    kind, strength
) -> None:
    tiny, calls = kind(strength), []
    tiny.pipe.transformer.register_forward_hook(lambda *_: calls.append(1))
    full = tiny.latents(num_inference_steps=24)
    visited, per_step = int(24 * strength), len(calls) // int(24 * strength)
    whole = made_plan(kind(1.0), prediction("hold", tuple(range(24))), steps=24)
    for skip, exact in (("hold", True), ("jump", True), ("jump", False), ("linear", False)):
        steps = tuple(range(24)) if exact else (0, 1, 2, 3, 5, 8, 11, 12, 15, 18, 21, 23)
        plan = whole.replace(sites=prediction(skip, steps))
        calls.clear()
        with cache_pipeline(tiny.pipe, plan) as cache:
            found = tiny.latents(num_inference_steps=24)
        first = 24 - visited
        assert len(calls) == per_step * len({first, *(step for step in steps if step > first)})
        assert cache.plan.steps == visited and f"takes steps {first} to 23" in cache.plan.notes[-1]
        assert torch.equal(found, full) is exact
    assert torch.equal(tiny.latents(num_inference_steps=24), full)


def by_hand(tiny: Tiny, computed: tuple[int, ...], first: int, skip: str) -> torch.Tensor:
    """Wan's loop from step `first` of 24, from the pipeline's own latent, held or jumped."""
    given: list[dict[str, Any]] = []
    model, scheduler = tiny.pipe.transformer, tiny.pipe.scheduler
    seen = model.register_forward_pre_hook(lambda _, args, kw: given.append(kw), with_kwargs=True)
    tiny.latents(num_inference_steps=24)
    seen.remove()
    scheduler.set_timesteps(24)
    visited = list(range(first, 24)) if skip == "hold" else list(computed)
    scheduler.sigmas = torch.cat([scheduler.sigmas[visited], scheduler.sigmas[-1:]])
    scheduler.timesteps = scheduler.timesteps[visited]
    x = given[0]["hidden_states"]
    for step, t in zip(visited, scheduler.timesteps, strict=True):
        if step in computed:
            call = {"timestep": t.expand(1), "return_dict": False}
            cond, uncond = (
                model(x, **call, encoder_hidden_states=one["encoder_hidden_states"])[0]
                for one in given[:2]
            )
        x = scheduler.step(uncond + 4.0 * (cond - uncond), t, x, return_dict=False)[0]
    return x


@torch.no_grad()
@pytest.mark.parametrize("skip", ["hold", "jump"])
def test_a_clip_from_a_video_equals_a_naive_loop(skip: str) -> None:
    tiny, first = from_video(0.6), 10
    computed = (10, 11, 13, 16, 17, 20, 22, 23)
    whole = made_plan(from_video(1.0), prediction("hold", tuple(range(24))), steps=24)
    with cache_pipeline(tiny.pipe, whole.replace(sites=prediction(skip, (0, 5, *computed[1:])))):
        found = tiny.latents(num_inference_steps=24)
    torch.testing.assert_close(found, by_hand(tiny, computed, first, skip))


FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
V_DDIM = {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}
NOISY = {
    "Euler": ("wan", FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True)),
    "DPM++": ("wan", DPMSolverMultistepScheduler(**FLOW, algorithm_type="sde-dpmsolver++")),
    "at some levels alone": ("wan", SASolverScheduler(**FLOW)),
    "CogVideoX's DPM": ("cogvideox", CogVideoXDPMScheduler(**V_DDIM)),
}


@pytest.mark.parametrize("name", NOISY)
def test_a_sampler_that_adds_noise_at_a_step_is_refused_by_name(name: str) -> None:
    kind, scheduler = NOISY[name]
    tiny = build(kind)
    tiny.pipe.scheduler = scheduler
    said = rf"{type(scheduler).__name__} adds noise at this step"
    with cache_pipeline(tiny.pipe, "quality"), pytest.raises(PlanError, match=said):
        tiny.latents(num_inference_steps=16)
    assert torch.isfinite(tiny.latents(num_inference_steps=16)).all()


def test_a_profile_for_the_search_is_not_recorded_from_a_noisy_sampler() -> None:
    tiny = build("wan")
    tiny.pipe.scheduler = NOISY["Euler"][1]
    with pytest.raises(PlanError, match="adds noise at this step"):
        profile_pipeline(tiny.pipe, [tiny.arguments], 4)
