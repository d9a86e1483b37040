"""What a sampler of ComfyUI computes by a plan, on the stand-in and on the checkout of COMFYUI."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch

from integrations.comfyui.nodes import Plan, Sigmas
from integrations.comfyui.run import Run
from profiling_core.plan import CachePlan
from profiling_core.plan.describe import format_bytes
from profiling_core.plan.site_schedule import corrections, forecasts

STEPS = 14
ALL = [*range(STEPS)]
SOME = [0, 1, 2, 4, 7, 10, 12, 13]
MIDDLE = [[1, 1], [3, 4]]  # intervals of blocks


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def seen_levels(world: Any, model: Any) -> tuple[Any, list[float]]:
    """The MODEL, and a list of the noise levels at which it will be evaluated."""
    found: list[float] = []
    return world.shared(model, lambda sigma: found.append(sigma) is None), found


@pytest.mark.parametrize("intervals", [None, MIDDLE])
def test_a_plan_that_computes_everything_changes_no_bit(
    world: Any, kind: str, planner: Any, intervals: Any
) -> None:
    model = world.model(kind)
    sigmas = world.sigmas(model, STEPS)
    planned = planner(model, sigmas, ALL, "hold", intervals=intervals)
    for name in world.samplers:
        bare = world.sample(model, world.sampler(name), sigmas)
        assert torch.equal(world.sample(planned, world.sampler(name), sigmas), bare)
        assert torch.equal(world.sample(model, world.sampler(name), sigmas), bare)


def own_loop(plan: CachePlan) -> Callable[..., torch.Tensor]:
    """Euler's steps along the flows of a plan of the prediction."""
    drawn, corrected = forecasts(plan, plan.prediction, "cond"), corrections(plan, "cond")

    def loop(clean: Callable[..., Any], x: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        flows: dict[int, torch.Tensor] = {}
        for step, (now, after) in enumerate(pairwise(levels)):
            if step not in drawn:
                flows[step] = (x - clean(x, now.expand(len(x)))) / now
            weights = drawn.get(step) or corrected.get(step) or ((step, 1.0),)
            x = x + (after - now) * sum(weight * flows[anchor] for anchor, weight in weights)
        return x

    return loop


@pytest.mark.parametrize("skip", ["hold", "linear", "corrected"])
def test_a_reused_prediction_equals_an_own_loop(
    world: Any, kind: str, planner: Any, said: Any, skip: str
) -> None:
    model = world.model(kind)
    sigmas = world.sigmas(model, STEPS)
    plan = planner.plan(model, sigmas, SOME, skip)
    planned = planner.put(plan, model)
    got = world.sample(planned, world.sampler("euler"), sigmas)
    assert far(got, world.sample(model, world.own_sampler(own_loop(plan)), sigmas)) < 1e-6
    text = said(planned)
    assert "computed 8 of 14 steps" in text and "57.1 % of the blocks ran, expected 57.1 %" in text
    assert f"held at most {format_bytes((1 if skip == 'hold' else 2) * got.nbytes)} in" in text


def test_a_jump_is_a_run_of_the_shortened_levels(world: Any, kind: str, planner: Any) -> None:
    model = world.model(kind)
    sigmas = world.sigmas(model, STEPS)
    plan = planner.plan(model, sigmas, SOME, "jump", "unipc")
    planned = planner.put(plan, model)
    shortened, text = Sigmas().shorten(sigmas, "wan2.1-t2v-14B", plan_file=str(planner.file))
    by_hand = sigmas[[*SOME, STEPS]]
    assert torch.equal(shortened, by_hand) and "stepped over by the solver" in text
    half, _ = Sigmas().shorten(sigmas[:8], "wan2.1-t2v-14B", plan_file=str(planner.file))
    assert torch.equal(half, sigmas[[0, 1, 2, 4, 7]])  # step 7 is only where the half ends
    assert Sigmas().shorten(sigmas[-1:], "wan2.1-t2v-14B") == (sigmas[-1:], "no steps")
    for name in set(world.samplers) & {"dpmpp_2m", "uni_pc"}:
        bare = world.sample(model, world.sampler(name), by_hand)
        assert torch.equal(world.sample(planned, world.sampler(name), sigmas), bare)
    assert sigmas[-1] == 0


def naive(world: Any, model: Any, plan: CachePlan) -> Any:
    """The intervals of a plan that holds, a delta for a conditioning in a window."""
    (site,) = plan.sites
    kind = {"single_blocks": "single_block"}.get(site.block_list, "double_block")
    kept: dict[Any, Any] = {}
    calls: dict[Any, int] = {}

    def change(first: int, last: int, number: int) -> Callable[..., Any]:
        def replaced(args: dict, extra: dict) -> dict:
            options = args["transformer_options"]
            (place,), window = options["cond_or_uncond"], options.get("context_window")
            key = (first, place, *(window.index_list if window else ()))
            if number == first:
                calls[key] = calls.get(key, -1) + 1
            if calls[key] not in site.compute_steps["cond"]:
                return {"img": args["img"] + kept[key] if number == first else args["img"]}
            if number == first:
                kept[key] = args["img"].clone()
            output = extra["original_block"](args)
            if number == last:
                kept[key] = output["img"] - kept[key]
            return output

        return replaced

    for first, last in site.intervals:
        for number in range(first, last + 1):
            model = world.with_patch(model, kind, number, change(first, last, number))
    return model


@pytest.mark.parametrize("windows", [False, True])
def test_reused_blocks_equal_a_naive_walk(
    world: Any, kind: str, planner: Any, said: Any, windows: bool
) -> None:
    model = world.model(kind)
    model = world.with_windows(model) if windows else model
    sigmas, euler = world.sigmas(model, STEPS), world.sampler("euler")
    plan = planner.plan(model, sigmas, SOME, "hold", intervals=MIDDLE)
    apart = world.shared(model, lambda sigma: False)
    expected = world.sample(naive(world, apart, plan), euler, sigmas)
    assert far(expected, world.sample(apart, euler, sigmas)) > 1e-3
    share = 100 * plan.expected.block_runs / plan.expected.block_runs_full
    for shared in (lambda sigma: False, lambda sigma: True, lambda sigma: sigma > 0.9):
        planned = planner.put(plan, world.shared(model, shared))
        got = world.sample(planned, euler, sigmas)
        assert far(got, expected) < 1e-5
        assert f"{share:.1f} % of the blocks ran, expected {share:.1f} %" in said(planned)
    again = planner.put(plan, apart)
    assert torch.equal(world.sample(again, euler, sigmas), expected)


def test_blocks_are_forecast_by_a_line_as_well(world: Any, kind: str, planner: Any) -> None:
    model = world.model(kind)
    sigmas, euler = world.sigmas(model, STEPS), world.sampler("euler")
    full = world.sample(model, euler, sigmas)
    hold, line = (
        world.sample(planner(model, sigmas, SOME, skip, intervals=MIDDLE), euler, sigmas)
        for skip in ("hold", "linear")
    )
    assert far(line, full) < 0.5 and far(line, hold) > 1e-4


def test_context_windows_share_one_reused_prediction(
    world: Any, kind: str, planner: Any, said: Any
) -> None:
    model, levels = seen_levels(world, world.with_windows(world.model(kind)))
    sigmas, euler = world.sigmas(model, STEPS), world.sampler("euler")
    planned = planner(model, sigmas, SOME, "linear")
    world.sample(planned, euler, sigmas)
    assert len(levels) == 3 * len(SOME) and "computed 8 of 14 steps" in said(planned)
    everything = planner(model, sigmas, ALL, "linear")
    bare = world.sample(model, euler, sigmas)
    assert torch.equal(world.sample(everything, euler, sigmas), bare)


def test_two_parts_of_a_run_compute_what_the_whole_one_does(
    world: Any, kind: str, planner: Any
) -> None:
    """Two models of Wan 2.2, KSamplerAdvanced: the same steps, and the second part's first."""
    model, levels = seen_levels(world, world.model(kind))
    sigmas, euler = world.sigmas(model, STEPS), world.sampler("euler")
    plan = planner.plan(model, sigmas, SOME, "linear")
    parts = sigmas[:9], sigmas[8:]  # the first one ends with step 7, which corrects two others
    for whole, there in ((sigmas, [*SOME, 8]), (None, [*SOME, 8])):
        levels.clear()
        planned = planner.put(plan, model, whole_run=whole)
        latent = world.sample(planned, euler, parts[0])
        world.sample(planned, euler, parts[1], latent=latent, add_noise=False)
        assert levels == pytest.approx([float(sigmas[step]) for step in sorted(there)])
    plan = planner.plan(model, sigmas, SOME, "corrected")
    planned = planner.put(plan, model, whole_run=sigmas)
    expected = world.sample(model, world.own_sampler(own_loop(plan)), parts[0])
    assert far(world.sample(planned, euler, parts[0]), expected) < 1e-6
    everything = planner.put(planner.plan(model, sigmas, ALL, "hold"), model, whole_run=sigmas)
    one, two = (
        world.sample(
            each, euler, parts[1], latent=world.sample(each, euler, parts[0]), add_noise=False
        )
        for each in (everything, model)
    )
    assert torch.equal(one, two)


def test_below_full_denoising_every_planned_step_there_is_computed(
    world: Any, kind: str, planner: Any, said: Any
) -> None:
    model, levels = seen_levels(world, world.model(kind))
    sigmas, euler = world.sigmas(model, STEPS)[5:], world.sampler("euler")
    whole = world.sigmas(model, STEPS)
    latent = torch.ones_like(world.sample(model, euler, whole))
    levels.clear()
    world.sample(planner(model, whole, SOME, "hold"), euler, sigmas, latent=latent)
    there = [5, *(step for step in SOME if step > 5)]
    assert levels == pytest.approx([float(whole[step]) for step in there])
    everything = planner(model, world.sigmas(model, 20), [*range(20)], "hold")
    bare = world.sample(model, euler, sigmas, latent=latent)
    assert torch.equal(world.sample(everything, euler, sigmas, latent=latent), bare)


def test_masks_and_batches_of_clips_are_sampled_as_without(
    world: Any, kind: str, planner: Any
) -> None:
    model = world.model(kind)
    sigmas, euler = world.sigmas(model, STEPS), world.sampler("euler")
    latent = 0.5 * torch.ones_like(world.sample(model, euler, sigmas, clips=2))
    mask = torch.zeros_like(latent)
    mask[:, :, :3] = 1
    everything = planner(model, sigmas, ALL, "hold")
    given = {"latent": latent, "mask": mask, "clips": 2}
    bare = world.sample(model, euler, sigmas, **given)
    assert torch.equal(world.sample(everything, euler, sigmas, **given), bare)
    for intervals in (None, MIDDLE):
        some = planner(model, sigmas, SOME, "hold", intervals=intervals)
        got = world.sample(some, euler, sigmas, **given)
        assert torch.allclose(got[:, :, 3:], bare[:, :, 3:], atol=1e-5)
        assert 1e-4 < far(got, bare) < 1


@pytest.mark.parametrize("intervals", [None, MIDDLE])
def test_a_guidance_nodes_own_evaluation_is_left_alone(
    world: Any, kind: str, planner: Any, said: Any, intervals: Any
) -> None:
    model, levels = seen_levels(world, world.with_skipped_layers(world.model(kind), kind))
    sigmas, euler = world.sigmas(model, STEPS), world.sampler("euler")
    bare = world.sample(model, euler, sigmas)
    everything = planner(model, sigmas, ALL, "hold", intervals=intervals)
    assert torch.equal(world.sample(everything, euler, sigmas), bare)
    plan = planner.plan(model, sigmas, SOME, "hold", intervals=intervals)
    planned = planner.put(plan, model)
    levels.clear()
    assert far(world.sample(planned, euler, sigmas), bare) < 1
    assert len(levels) == 2 * (STEPS if intervals else len(SOME))
    share = 100 * plan.expected.block_runs / plan.expected.block_runs_full
    assert f"{share:.1f} % of the blocks ran, expected {share:.1f} %" in said(planned)


@pytest.mark.parametrize("intervals", [None, MIDDLE])
def test_a_cancelled_run_leaves_nothing_and_the_next_is_whole(
    world: Any, kind: str, planner: Any, intervals: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[Run] = []
    settled = Run.settled
    monkeypatch.setattr(Run, "settled", lambda *given: runs.append(settled(*given)) or runs[-1])
    model = world.model(kind)
    sigmas, euler = world.sigmas(model, STEPS), world.sampler("euler")
    planned = planner(model, sigmas, SOME, "linear", intervals=intervals)
    first = world.sample(planned, euler, sigmas)

    def held() -> list[int]:
        return [run.cache.bytes_held + (run.deltas.nbytes if run.deltas else 0) for run in runs]

    def cancel(step: int) -> None:
        if step == 5:
            assert held()[0] == 0 < held()[1]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        world.sample(planned, euler, sigmas, see=cancel)
    assert held() == [0, 0]
    assert torch.equal(world.sample(planned, euler, sigmas), first)
    other = world.sample(planned, euler, sigmas, seed=1)  # the next prompt of a queue
    fresh = planner(model, sigmas, SOME, "linear", intervals=intervals)
    assert torch.equal(other, world.sample(fresh, euler, sigmas, seed=1))


def test_weights_that_are_offloaded_in_the_middle_change_no_bit(
    world: Any, kind: str, planner: Any, said: Any
) -> None:
    model = world.model(kind)
    sigmas, euler = world.sigmas(model, STEPS), world.sampler("euler")
    planned = planner(model, sigmas, SOME, "hold", intervals=MIDDLE)
    first = world.sample(planned, euler, sigmas)
    assert "in device memory" in said(planned)

    def offload(step: int) -> None:
        for weight in model.model.diffusion_model.parameters():
            weight.data = weight.data.clone()

    planned.offload_device = torch.device("meta")  # another one than that of the latents
    assert torch.equal(world.sample(planned, euler, sigmas, see=offload), first)
    assert "in host memory" in said(planned)


def test_a_controlnet_runs_with_a_reused_prediction(world: Any, planner: Any) -> None:
    model, levels = seen_levels(world, world.model("hunyuan"))
    sigmas, euler = world.sigmas(model, STEPS), world.sampler("euler")
    world.sample(planner(model, sigmas, SOME, "hold"), euler, sigmas, control=True)
    assert len(levels) == len(SOME)
    blocks = planner(model, sigmas, SOME, "hold", intervals=MIDDLE)
    with pytest.raises(ValueError, match="a ControlNet adds to the stream between the blocks"):
        world.sample(blocks, euler, sigmas, control=True)


def test_below_twelve_steps_nothing_changes_and_the_report_says_so(
    world: Any, kind: str, said: Any
) -> None:
    model = world.model(kind)
    (planned,) = Plan().apply(model, "fast")
    for name in world.samplers:
        sigmas = world.sigmas(model, 8)
        bare = world.sample(model, world.sampler(name), sigmas)
        assert torch.equal(world.sample(planned, world.sampler(name), sigmas), bare)
        assert "a run of few steps has nothing to skip" in said(planned)


@pytest.mark.parametrize(("preset", "calls"), [("quality", 13), ("balanced", 10), ("fast", 6)])
def test_presets_keep_their_speed_on_any_sampler(
    world: Any, kind: str, preset: str, calls: int
) -> None:
    model, levels = seen_levels(world, world.model(kind))
    (planned,) = Plan().apply(model, preset)
    for name in world.samplers:
        levels.clear()
        world.sample(planned, world.sampler(name), world.sigmas(model, 20))
        assert len(levels) == calls


def test_a_replacement_by_another_node_stands_for_the_block(
    world: Any, kind: str, planner: Any
) -> None:
    ours = "single_block" if kind == "hunyuan" else "double_block"
    ran: list[int] = []

    def other(args: dict, extra: dict) -> dict:
        ran.append(1)
        return extra["original_block"](args)

    model = world.with_patch(world.model(kind), ours, 3, other)
    sigmas, euler = world.sigmas(model, STEPS), world.sampler("euler")
    planned = planner(model, sigmas, SOME, "hold", intervals=MIDDLE)
    world.sample(planned, euler, sigmas)
    assert len(ran) == len(SOME)


@pytest.mark.parametrize(("speedup", "calls"), [(1.0, 20), (2.5, 8), (4.0, 5)])
def test_a_speed_of_ones_own_spreads_the_steps_of_a_preset(
    world: Any, kind: str, said: Any, speedup: float, calls: int
) -> None:
    model, levels = seen_levels(world, world.model(kind))
    sigmas = world.sigmas(model, 20)
    (planned,) = Plan().apply(model, "balanced", speedup=speedup)
    for name in ("euler", "dpmpp_2m"):
        levels.clear()
        world.sample(planned, world.sampler(name), sigmas)
        assert len(levels) == calls and levels[0] == sigmas[0]
        assert f"is spread to {speedup:g}x, not searched" in said(planned)
    shortened, _ = Sigmas().shorten(sigmas, "wan2.1-t2v-14B", speedup=speedup)
    assert len(shortened) == calls + 1
