from __future__ import annotations

import json
from importlib import resources

import numpy as np
import pytest

from profiling_core.errors import PlanError
from profiling_core.plan.model_specs import MODELS
from profiling_core.search.flow_solvers import Levels
from profiling_core.search.level_prior import (
    FILE,
    NORM,
    changes,
    gram,
    published_ratios,
    step_search,
    trajectory_of,
)
from profiling_core.search.preset_search import PROFILES

LEVELS = Levels(MODELS["wan2.1-t2v-14B"].sigmas(20))


def test_every_official_model_has_ratios_of_every_step_and_their_source():
    for name in set(MODELS) - set(PROFILES):
        ratios = published_ratios(name)
        assert ratios.shape == (49,) and (0.7 < ratios).all() and (ratios < 1.3).all()
    document = json.loads(
        (resources.files("profiling_core.search") / FILE).read_text(encoding="utf-8")
    )
    assert "MagCache" in document["source"] and document["licence"] == "Apache License 2.0"
    with pytest.raises(PlanError, match=r"ratios of mine: there are wan2\.1"):
        published_ratios("mine")


def test_changes_are_those_of_vectors_with_the_ratio_and_the_angle():
    ratios = np.random.default_rng(0).uniform(0.8, 1.2, 19)
    assert changes(LEVELS, ratios, 0.0) == pytest.approx(np.abs(1 - ratios))
    alpha = 1 - LEVELS.sigma[:-1]
    angle = 0.5 * np.log(alpha[5] / alpha[4])
    before = np.array([1.0, 0.0])
    after = ratios[4] * np.array([np.cos(angle), np.sin(angle)])
    assert changes(LEVELS, ratios, 0.5)[4] == pytest.approx(np.linalg.norm(after - before))


def test_a_level_without_any_signal_turns_as_far_as_a_doubling():
    levels = Levels(MODELS["hunyuan-video-t2v-720p"].sigmas(20))
    assert levels.sigma[0] == 1.0
    found = changes(levels, np.ones(19), 1.0)
    assert np.isfinite(found).all() and found[0] == pytest.approx(2 * np.sin(np.log(2) / 2))


def test_products_are_of_equal_norms_and_short_changes_are_those_given():
    change = np.full(19, 0.02)
    products = gram(change)
    assert np.diag(products) == pytest.approx(NORM**2)
    moved = np.sqrt(2 * (NORM**2 - np.diag(products, 1))) / NORM
    assert moved == pytest.approx(change, rel=0.02)
    path = trajectory_of(products, LEVELS, "euler")
    v = path.predictions[:, 0]
    assert v @ v.T == pytest.approx(products, abs=1e-8)


def test_more_change_is_computed_more_often():
    calm, restless = np.full(19, 0.01), np.full(19, 0.01)
    restless[8:12] = 0.3
    for solver, skip in (("unipc", "jump"), ("euler", "corrected")):
        counts = [
            len({8, 9, 10, 11, 12} & set(step_search(gram(c), LEVELS, solver, skip).best(8).steps))
            for c in (calm, restless)
        ]
        assert counts[1] > counts[0]


def test_another_number_of_ratios_is_refused():
    with pytest.raises(PlanError, match="49 magnitude ratios for 20 noise levels: expected 19"):
        changes(LEVELS, published_ratios("wan2.1-t2v-14B"))
