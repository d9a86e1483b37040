"""Forecasts that are made good at the next computed step."""

from __future__ import annotations

import math

import pytest
import torch

from profiling_core.engine.delta_cache import DeltaCache
from profiling_core.errors import PlanError
from profiling_core.plan import CachePlan
from profiling_core.plan.cost import bytes_held
from profiling_core.plan.regrid import regrid
from profiling_core.plan.site_schedule import corrections
from toys import ToyWan, both, prediction, toy_plan

COMPUTED = (0, 1, 4, 5, 9)


def corrected_plan() -> CachePlan:
    return toy_plan([prediction({"cond": list(COMPUTED)}, "corrected")])


def test_the_latent_moves_along_a_line_in_log_snr_once_the_next_prediction_is_known() -> None:
    """Euler with the cache, against Euler whose latent is corrected by hand."""
    torch.manual_seed(1)
    plan, model = corrected_plan(), ToyWan()
    levels = [*plan.sigmas, 0.0]
    start = torch.randn(5, 8, dtype=torch.float64)
    model.double()
    with DeltaCache(plan).attached(model) as cache, torch.no_grad():
        x = start
        for step in range(plan.steps):
            cache.begin(step)
            x = x + (levels[step + 1] - levels[step]) * velocity(model, x, levels[step])
    with torch.no_grad():
        assert torch.allclose(x, by_hand(model, start, levels), atol=1e-6)


def velocity(model: ToyWan, x: torch.Tensor, sigma: float) -> torch.Tensor:
    return model([x], torch.tensor([sigma], dtype=torch.float64), 0.3)[0]


def by_hand(model: ToyWan, x: torch.Tensor, levels: list[float]) -> torch.Tensor:
    known: dict[int, torch.Tensor] = {}
    base, moved = x, torch.zeros_like(x)  # latent after the last computed step, and since
    for step in range(len(levels) - 1):
        own = levels[step + 1] - levels[step]
        if step not in COMPUTED:
            moved = moved + own * line(known, levels, step, sorted(known)[-2:])
            continue
        new = velocity(model, base + moved, levels[step])
        if known and max(known) < step - 1:
            known[step] = new
            ends, moved = [max(k for k in known if k < step), step], torch.zeros_like(x)
            for s in range(ends[0] + 1, step):
                moved = moved + (levels[s + 1] - levels[s]) * line(known, levels, s, ends)
        known[step] = new
        base, moved = base + moved + own * new, torch.zeros_like(x)
    return base + moved


def line(
    known: dict[int, torch.Tensor], levels: list[float], step: int, through: list[int]
) -> torch.Tensor:
    """The value at a level of the line in log-SNR through two known predictions.

    The first level is 1, and a line from it holds its end.
    """
    a, b = through
    if a == 0:
        return known[b]
    here, start, end = (math.log(1 / levels[number] - 1) for number in (step, a, b))
    share = (here - start) / (end - start)
    return known[a] + share * (known[b] - known[a])


def test_two_predictions_are_held_at_most_and_said_before() -> None:
    torch.manual_seed(1)
    plan, model = corrected_plan(), ToyWan()
    with DeltaCache(plan).attached(model) as cache, torch.no_grad():
        for step in range(plan.steps):
            cache.begin(step)
            model([torch.ones(5, 8)], torch.ones(1), 0.0)
        said = bytes_held(plan, tokens=5, stream_itemsize=4, latent_numel=40)
        assert cache.stats.peak_bytes == said == 2 * 40 * 4
        assert cache.bytes_held == 0


def test_the_first_gap_has_one_anchor() -> None:
    plan = toy_plan([prediction({"cond": [0, 3, 11]}, "corrected")])
    found = corrections(plan, "cond")
    assert [step for step, _ in found[3]] == [3, 0]
    assert [step for step, _ in found[11]] == [11, 3]  # at 0 all is noise, and 3 was held
    for terms in found.values():  # what does not change is not changed
        assert sum(weight for _, weight in terms) == pytest.approx(1.0)


def test_neighbours_need_no_correction() -> None:
    assert set(corrections(corrected_plan(), "cond")) == {4, 9}
    assert corrections(toy_plan([prediction(both(0, 4), "linear")]), "cond") == {}


def test_a_change_of_size_within_a_gap_is_refused() -> None:
    plan, model = corrected_plan(), ToyWan()
    with DeltaCache(plan).attached(model) as cache, torch.no_grad():
        for step, tokens in enumerate((5, 5)):
            cache.begin(step)
            model([torch.ones(tokens, 8)], torch.ones(1), 0.0)
        cache.begin(4)
        with pytest.raises(ValueError, match="the size may not change"):
            model([torch.ones(6, 8)], torch.ones(1), 0.0)


def test_other_solvers_are_refused() -> None:
    document = corrected_plan().model_dump(mode="json", exclude={"expected"})
    with pytest.raises(PlanError, match="'corrected' is made for Euler's steps, this plan's solve"):
        CachePlan.from_dict({**document, "solver": "unipc"})
    plan = corrected_plan()
    with pytest.raises(PlanError, match="'corrected' is made for Euler's steps"):
        regrid(plan, plan.sigmas, solver="dpm++", shift=1.0)


def test_it_is_carried_over_by_sigma() -> None:
    plan = corrected_plan()
    more = torch.linspace(plan.sigmas[0], plan.sigmas[-1], 15).tolist()
    carried = regrid(plan, more, solver="euler", shift=1.0)
    assert carried.prediction.skip == "corrected"
    assert corrections(carried, "cond")
