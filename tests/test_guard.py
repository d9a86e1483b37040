"""The drift guard: what it measures, when it reads, and the one step that it may add."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from made_profiles import made_profile
from profiling_core import drift
from profiling_core.cost import bytes_held
from profiling_core.delta_cache import DeltaCache
from profiling_core.drift import Deviation, deviation, mean_share, places
from profiling_core.guard import compared_steps, middles, old_forecasts, with_compute_step
from profiling_core.plan import CachePlan, PlanError
from profiling_core.usual_drift import thresholds, usual_deviations, worst_ratios
from toys import (
    ToyWan,
    bare,
    both,
    cached_call,
    equal,
    intervals,
    prediction,
    run_clip,
    toy_plan,
)

STEPS = (0, 1, 4, 5, 9)
SKIPS = ("hold", "linear", "corrected")
NEVER, ALWAYS = 1e6, 1e-9


def planned(skip: str = "linear", *more: dict) -> CachePlan:
    return toy_plan([prediction(both(*STEPS), skip), *more])


def run(model: ToyWan, plan: CachePlan, cache: DeltaCache | None = None) -> tuple:
    cache = cache or DeltaCache(plan)
    with cache.attached(model):
        return run_clip(model, plan, cached_call(cache, model)), cache


@pytest.fixture
def model() -> ToyWan:
    torch.manual_seed(0)
    return ToyWan()


@pytest.mark.parametrize("skip", SKIPS)
@pytest.mark.parametrize("extra", [False, True])
def test_a_guard_that_stays_quiet_changes_nothing(model: ToyWan, skip: str, extra: bool) -> None:
    plan = planned(skip)
    plain, before = run(model, plan)
    watched, cache = run(model, plan.guarded(NEVER, extra=extra))
    assert equal(plain, watched)
    assert cache.report.extra_step is None and cache.report.block_runs == before.report.block_runs
    assert cache.report.peak_bytes == before.report.peak_bytes
    assert [(d.step, d.branch) for d in cache.report.deviations] == [
        (4, "cond"),
        (4, "uncond"),
        (9, "cond"),
        (9, "uncond"),
    ]


@pytest.mark.parametrize(("skip", "held"), [("hold", True), ("linear", False)])
def test_the_old_forecast_is_compared_with_the_new_prediction(
    model: ToyWan, skip: str, held: bool
) -> None:
    plan = planned(skip).guarded(NEVER)
    outputs, cache = run(model, plan)
    sigma, found = plan.sigmas, {(d.step, d.branch): d.value for d in cache.report.deviations}
    for order, branch in enumerate(plan.branches):
        v = {step: outputs[2 * step + order] for step in STEPS}
        slope = (sigma[9] - sigma[5]) / (sigma[5] - sigma[4])
        forecast = v[5] if held else v[5] + slope * (v[5] - v[4])
        expected = float((forecast - v[9]).norm() / v[9].norm())
        assert found[9, branch] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("skip", SKIPS)
def test_a_run_with_an_extra_step_is_that_of_the_plan_with_this_step(
    model: ToyWan, skip: str
) -> None:
    plan = planned(skip, intervals(both(0, 4), [[1, 2]]))
    watched, cache = run(model, plan.guarded(ALWAYS, extra=True))
    assert cache.report.extra_step == 7  # the middle of 6 to 8; the gap 2, 3 began uncompared
    more = with_compute_step(plan, 7)
    expected, other = run(model, more)
    assert equal(watched, expected)
    assert cache.report.block_runs == other.report.block_runs == more.expected.block_runs
    assert cache.report.model_calls == 2 * (len(STEPS) + 1)
    again, _ = run(model, plan, cache)  # nothing of the first video is left
    assert equal(again, expected) and cache.running is cache.plan


def test_one_step_is_added_at_most_and_held_bytes_stay_as_planned(model: ToyWan) -> None:
    plan = toy_plan([prediction({"cond": [0, 2, 4, 8]}, "linear")])
    watched, cache = run(model, plan.guarded(ALWAYS, extra=True))
    assert cache.report.extra_step == 3 and cache.report.model_calls == 5
    said = bytes_held(plan, tokens=5, stream_itemsize=4, latent_numel=40)
    assert cache.report.peak_bytes == said
    assert not equal(watched, run(model, plan)[0])


def test_thresholds_of_single_steps(model: ToyWan) -> None:
    plan = toy_plan([prediction({"cond": [0, 2, 4, 7, 9]}, "linear")])
    assert compared_steps(plan) == (2, 4, 7, 9)
    quiet = dict.fromkeys(compared_steps(plan), NEVER)
    _, cache = run(model, plan.guarded({**quiet, 4: ALWAYS}, extra=True))
    assert cache.report.extra_step == 5  # of 5 and 6, the gap behind step 4
    _, cache = run(model, plan.guarded({**quiet, 9: ALWAYS}, extra=True))
    assert cache.report.extra_step == 10
    exceeding = [d.step for d in cache.report.deviations if d.exceeds]
    assert exceeding == [9]


def test_nothing_is_read_before_the_step_is_over(
    model: ToyWan, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[tuple[int, int]] = []  # step that was read, last step that had begun
    begun, plain = [-1], Deviation.value.fget

    def value(self: Deviation) -> float:
        reads.append((self.step, begun[0]))
        return plain(self)

    monkeypatch.setattr(Deviation, "value", property(value))
    for extra in (False, True):
        cache, reads[:] = DeltaCache(planned().guarded(NEVER, extra=extra)), []
        call = cached_call(cache, model)

        def told(step: int, *rest: object, call=call) -> object:
            begun[0] = step - 1  # `begin` of a step comes first: the step before is enqueued
            return call(step, *rest)

        with cache.attached(model):
            run_clip(model, cache.plan, told)
        assert reads == ([(4, 6), (4, 6), (9, 9), (9, 9)] if extra else [])


def test_the_log_says_what_was_found(model: ToyWan) -> None:
    plan = planned().guarded(ALWAYS, extra=True, samples=16)
    assert "compares 16 values at 2 compute steps" in plan.summary_lines()[-1]
    _, cache = run(model, plan)
    line = cache.report.lines()[-1]
    worst = drift.largest(cache.report.deviations)
    assert line.startswith(f"guard: 6 old forecasts compared, off by at most {worst.value:.3f} at ")
    assert "; 6 above the threshold" in line and line.endswith("; step 7 was computed in addition")
    assert mean_share(cache.report.deviations) > 1
    assert "guard" not in "".join(run(model, planned())[1].report.lines())


def test_followed_loops_get_the_extra_step_too(model: ToyWan) -> None:
    plan = planned().guarded(ALWAYS, extra=True)
    expected, _ = run(model, plan)
    cache = DeltaCache(plan)
    with cache.attached(model):
        cache.follow()
        followed = run_clip(model, plan, lambda step, branch, x, t, c: model(x, t, c))
        assert cache.report.extra_step == 7
    assert equal(followed, expected)


def test_samples_are_the_same_everywhere_and_of_every_tensor() -> None:
    first, second = places([1000, 50], 200), places([1000, 50], 200)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert sum(len(place) for place in first) == 200 and first[1].max() < 50
    assert [len(place) for place in places([10, 5], 20)] == [10, 5]


def test_few_samples_tell_what_all_values_do() -> None:
    generator = torch.Generator().manual_seed(1)
    new, old = (torch.randn(200_000, generator=generator) for _ in range(2))
    old = new + 0.1 * old
    sampled = {0: old[places([200_000], 4096)[0]]}
    found = deviation(new[places([200_000], 4096)[0]], sampled, ((0, 1.0),))
    assert float(found) == pytest.approx(0.1, rel=0.05)


def test_a_change_of_size_starts_the_samples_anew(model: ToyWan) -> None:
    cache = DeltaCache(toy_plan([prediction({"cond": [0, 2, 4]}, "jump")]).guarded(NEVER))
    with cache.attached(model), torch.no_grad():
        for step, tokens in ((0, 5), (2, 6), (4, 6)):
            cache.begin(step)
            model([torch.ones(tokens, 8)], torch.ones(1), 0.0)
    assert [d.step for d in cache.report.deviations] == []  # 4 needs 0 and 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("threshold", [NEVER, ALWAYS])
def test_a_gpu_measures_the_same(model: ToyWan, threshold: float) -> None:
    plan = planned().guarded(threshold, extra=True)
    _, expected = run(model, plan)
    cache = DeltaCache(plan)
    with cache.attached(model.cuda()):
        call = cached_call(cache, model)

        def moved(step: int, branch: str, x: list, t: torch.Tensor, context: float) -> list:
            return [o.cpu() for o in call(step, branch, [x[0].cuda()], t.cuda(), context)]

        run_clip(model, plan, moved)
    assert cache.report.extra_step == expected.report.extra_step
    for here, there in zip(cache.report.deviations, expected.report.deviations, strict=True):
        assert here.arrived is not None and here.host.device.type == "cpu"
        assert here.value == pytest.approx(there.value, rel=1e-3)


# -- the plan


def test_a_guard_is_part_of_the_file(tmp_path: Path) -> None:
    plan = planned()
    assert '"guard"' not in plan.dumps()
    for threshold in (0.2, {4: 0.1, 9: 0.3}):
        guarded = plan.guarded(threshold, samples=100, extra=True)
        guarded.save(tmp_path / "plan.json")
        assert CachePlan.load(tmp_path / "plan.json") == guarded
        assert guarded.expected == plan.expected
    assert guarded.guard.at(9) == 0.3 and guarded.guard.at(5) == 0.1


@pytest.mark.parametrize(
    ("threshold", "settings", "says"),
    [
        (0, {}, r"guard\.threshold: expected a relative deviation above 0 such as 0\.1.*found 0"),
        (True, {}, r"guard\.threshold: .*found True"),
        ("much", {}, r"guard\.threshold: .*found 'much'"),
        ({4: 0.1}, {}, r"guard\.threshold: step 9 has no threshold; compared are 4, 9"),
        ({4: 0.1, 5: 0.1, 9: 1}, {}, r"guard\.threshold: step 5 is no compared step"),
        (0.1, {"samples": 0}, r"guard\.samples: .*found '0'"),
        (0.1, {"steps": 3}, r"guard\.steps: unknown key"),
    ],
)
def test_bad_guards_are_refused(threshold: object, settings: dict, says: str) -> None:
    with pytest.raises(PlanError, match=says):
        planned().guarded(threshold, **settings)


def test_plans_that_cannot_be_guarded_are_refused() -> None:
    with pytest.raises(PlanError, match="this plan has no prediction site"):
        toy_plan([intervals(both(0, 4), [[1, 2]])]).guarded(0.1)
    with pytest.raises(PlanError, match="no compute step follows a skipped one"):
        toy_plan([prediction(both(0, 1, 2))]).guarded(0.1)
    last = toy_plan([prediction(both(*range(10), 11))])
    assert last.guarded(0.1).guard.extra is False
    with pytest.raises(PlanError, match="no step is skipped after the first compared one"):
        last.guarded(0.1, extra=True)
    site = prediction({"cond": [0, 1, *range(3, 12)]}, "weights")
    fitted = toy_plan([{**site, "weights": {"cond": {"2": [1.5, -0.5]}}}])
    assert old_forecasts(fitted.guarded(0.1), "cond").keys() == {3}
    with pytest.raises(PlanError, match="weights are fitted to the plan's own compute steps"):
        fitted.guarded(0.1, extra=True)


def test_branches_apart_are_compared_apart_and_extended_together() -> None:
    plan = toy_plan([prediction({"cond": [0, 3, 8], "uncond": [0, 5]})])
    assert set(old_forecasts(plan, "cond")) == {3, 8} and set(old_forecasts(plan, "uncond")) == {5}
    assert middles(plan) == {4: 3, 6: 5, 10: 8}
    steps = with_compute_step(plan, 4).prediction.compute_steps
    assert steps == {"cond": (0, 3, 4, 8), "uncond": (0, 4, 5)}


def test_carried_over_a_number_stays_and_thresholds_of_steps_do_not() -> None:
    plan = planned()
    half = plan.sigmas[::2]
    kept = plan.guarded(0.2).at(half, solver="euler", shift=1.0)
    assert kept.guard.threshold == 0.2 and "the guard's threshold is" in "".join(kept.notes)
    lost = plan.guarded({4: 0.1, 9: 0.3}).at(half, solver="euler", shift=1.0)
    assert lost.guard is None and "its guard is left out" in "".join(lost.notes)
    near = tuple(sigma * 0.999 for sigma in plan.sigmas)
    assert plan.guarded({4: 0.1, 9: 0.3}).at(near, solver="euler", shift=1.0).guard is not None


def test_bare_calls_need_no_guard(model: ToyWan) -> None:
    plan = planned()
    assert plan.guard is None and DeltaCache(plan)._guard is None
    assert len(bare(model, plan)) == 2 * plan.steps


# -- ranks


def of_one_rank(rank: int, folder: str) -> None:
    """The branches of a clip on a rank each: only the second branch drifts."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/at", rank=rank, world_size=2)
    plan = toy_plan([prediction(both(0, 2, 4, 8), "linear")]).guarded(0.5, extra=True)
    guard = drift.DriftGuard(plan, dist.group.WORLD)
    branch, found = plan.branches[rank], []
    for step in range(plan.steps):
        if guard.wants(step):
            found.append(step)
        if step in (0, 2, 4, 8):
            value = 1.0 if rank == 0 else (-1.0) ** step * (step + 1) ** 3
            found.append(guard.see([torch.full((8,), value)], step, branch))
    steps = [one for one in found if isinstance(one, int)]
    values = [one.value for one in found if isinstance(one, Deviation)]
    np.savez(f"{folder}/{rank}.npz", steps=steps, values=values)
    dist.destroy_process_group()


def test_ranks_that_share_a_clip_decide_alike(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(of_one_rank, (str(tmp_path),), nprocs=2)
    first, second = (np.load(tmp_path / f"{rank}.npz") for rank in range(2))
    assert first["steps"].tolist() == second["steps"].tolist() == [3]
    assert first["values"].tolist() == second["values"].tolist()
    assert first["values"].max() > 0.5


# -- thresholds from a profile


def test_usual_deviations_are_those_of_the_recorded_predictions() -> None:
    profile = made_profile(runs=3, steps=12)
    subject, rng = profile.recorded, np.random.default_rng(5)
    vectors = rng.normal(size=(3, profile.arrays["gram"].shape[1], 40))
    vectors[:, 0] *= 3
    profile.arrays["gram"] = vectors @ vectors.transpose(0, 2, 1)
    plan = CachePlan.build(
        name="made",
        **subject.plan_fields,
        sites=[prediction(both(0, 2, 5, 6, 9), "jump")],
        provenance={"made_by": "tests", "source": "by hand"},
    )
    found = usual_deviations(profile, plan)
    assert tuple(found) == compared_steps(plan) == (2, 5, 9)
    for run in range(3):
        expected = []
        for first in (0, 12):  # rows of the branches
            kept = {s: torch.from_numpy(vectors[run, first + s]) for s in (5, 6)}
            new, forecast = torch.from_numpy(vectors[run, first + 9]), old_forecasts(plan, "cond")
            expected.append(float(deviation(new, kept, forecast[9])))
        assert found[9][run] == pytest.approx(max(expected), rel=1e-6)
    given = thresholds(profile, plan, 1.5)
    assert given[5] == pytest.approx(1.5 * np.median(found[5]))
    assert worst_ratios(profile, plan).shape == (3,) and worst_ratios(profile, plan).min() >= 1
    assert plan.guarded(given, extra=True).guard.at(5) == pytest.approx(given[5])
    with pytest.raises(PlanError, match="noise levels or its branches are others"):
        usual_deviations(made_profile(steps=20), plan)
