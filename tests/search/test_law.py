"""The law of models that were not profiled: its parts, its search, and how it is judged."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest

from benchmarks.lib.rows import load_rows
from benchmarks.search import law as fitting
from benchmarks.search import spectral_world
from benchmarks.search.law_scores import displacements, flux, held, judged, minimax
from profiling_core.plan.importers import public_document
from profiling_core.plan.model_specs import MODELS
from profiling_core.search import flow_solvers
from profiling_core.search.flow_solvers import Levels
from profiling_core.search.law import NORM, Law, LawSearch, gram, trajectory_of, worlds
from profiling_core.search.segments import Segments

LEVELS = Levels(MODELS["wan2.1-t2v-14B"].sigmas(20))
LAW = Law(early=1.0, late=0.0, turn=0.02, growth=1.0, largest=1e9, power=2.0)


def test_the_turn_is_the_integral_of_powers_of_both_shares():
    alpha = 1 - LEVELS.sigma[:-1]
    assert LAW.changes(LEVELS)[4:] == pytest.approx(0.02 * np.diff(np.log(alpha))[4:])
    late = replace(LAW, early=0.0, late=2.0)
    rise = np.diff(1 / LEVELS.sigma[:-1])
    assert late.changes(LEVELS)[4:] == pytest.approx(0.02 * rise[4:])


def test_a_level_without_any_signal_turns_as_far_as_a_doubling():
    levels = Levels(MODELS["hunyuan-video-t2v-720p"].sigmas(20))
    assert levels.sigma[0] == 1.0
    assert LAW.changes(levels)[0] == pytest.approx(0.02 * np.log(2), rel=1e-4)


def test_products_are_of_equal_norms_and_short_changes_are_those_given():
    change = np.full(19, 0.02)
    products = gram(change)
    assert np.diag(products) == pytest.approx(NORM**2)
    moved = np.sqrt(2 * (NORM**2 - np.diag(products, 1))) / NORM
    assert moved == pytest.approx(change, rel=0.02)
    v = trajectory_of(products, LEVELS, "euler").predictions[:, 0]
    assert v @ v.T == pytest.approx(products, abs=1e-8)


def test_a_held_stretch_is_the_segment_of_the_same_steps_times_its_growth():
    table = Segments(LAW.trajectory(LEVELS, "unipc"), "hold").table
    growth = LEVELS.alpha**-LAW.growth
    found = LAW.held(LEVELS, "unipc")
    for j, n in ((0, 3), (4, 9), (12, 20)):
        length = np.linalg.norm(table.errors[table.row_of[max(j - 1, 0), j, n], 0])
        assert found[j, n] == pytest.approx(length * growth[n], rel=1e-5)
    assert (found[np.arange(20), np.arange(20) + 1] == 0).all() and np.isinf(found[5, 5])


@pytest.mark.parametrize("power", [1.0, 2.0, np.inf])
def test_no_list_has_less_error_than_the_one_that_a_law_takes(power):
    levels = Levels(MODELS["wan2.1-t2v-14B"].sigmas(10))
    search = LawSearch(replace(LAW, power=power), levels, "unipc")
    lists = np.array([(0, *steps) for steps in combinations(range(1, 10), 4)])
    found, least = search.errors(np.array([search.best(5)])), search.errors(lists).min()
    assert found[0] == pytest.approx(least, rel=0.05 if power > 2 else 1e-6)


def test_more_turn_is_computed_more_often():
    early, late = (replace(LAW, early=a, late=b, growth=0) for a, b in ((3.0, 0.0), (0.0, 3.0)))
    for solver in ("unipc", "euler"):
        sums = [sum(LawSearch(law, LEVELS, solver).best(8)) for law in (early, late)]
        assert sums[0] < sums[1]


def test_the_worlds_are_laws_that_differ():
    found = worlds()
    assert len(found) > 2 and len(set(found.values())) == len(found)
    assert all(law.power >= 1 and law.turn > 0 for law in found.values())


def test_the_first_world_meets_what_the_joint_fit_is_judged_by():
    figures = judged(next(iter(worlds().values())), i2v=False)
    far = [value for name, value in figures.items() if name.startswith("lemica")]
    assert np.mean(far) <= 1.5 and len(far) == 8
    ranks = [figures[f"golden {model} {n}"] for model in ("hunyuan", "wan") for n in (21, 13)]
    assert np.mean(ranks) >= 0.75 and min(ranks) >= 0.7
    assert figures["flux median"] <= 0.2 and figures["flux from best"] <= 1


def test_minimax_paths_lower_the_largest_stretch_then_the_next():
    table = np.abs(np.random.default_rng(0).normal(size=(9, 10)))
    table[np.arange(9), np.arange(9) + 1] = 0

    def sorted_errors(steps):
        edges = pairwise(steps)
        return sorted((table[e] for e in edges), reverse=True)

    for count in (3, 4, 5):
        inner = combinations(range(1, 8), count - 2)
        paths = [(0, *steps, 8) for steps in inner]
        short = [p for p in paths if max(np.diff(p)) <= 7]
        assert minimax(table, [count])[count] == list(min(short, key=sorted_errors))


@pytest.mark.parametrize("power", [1.0, 4.0, np.inf])
def test_flux_lists_are_counted_as_one_by_one(power):
    table = held(LAW, "flux.1-dev")
    lists = np.array([(2, *steps, 49) for steps in combinations(range(3, 49), 5)])
    assert len(lists) == 1_370_754
    best = np.pad(public_document()["flux"]["flux.1-dev"], ((0, 0), (1, 1)))
    best[:, 0], best[:, -1] = 2, 49
    every, theirs = (
        np.linalg.norm(table[steps[:, :-1], steps[:, 1:]], ord=power, axis=1)
        for steps in (lists, best)
    )
    found = flux(table, power)
    limit = np.median(theirs**power if np.isfinite(power) else theirs)
    limit = limit ** (1 / power) if np.isfinite(power) else limit
    assert found["flux median"] == pytest.approx(100 * (every < limit).mean(), rel=1e-3)
    assert every.min() == pytest.approx(
        np.linalg.norm(table[[2, *found["flux own list"]], [*found["flux own list"], 49]], power)
    )


def test_a_fit_finds_the_law_that_made_the_lists():
    true = Law(early=0.5, late=1.6, turn=0.004, growth=2.0, largest=1e9, power=4.0)
    lists = minimax(held(true, "wan2.1-t2v-14B"), [25, 20, 17, 14])

    def far(point):
        table = held(fitting.law_of(point, "4"), "wan2.1-t2v-14B")
        return float(np.mean(list(displacements(table, {"own": lists}).values())))

    found = fitting.fit(far, seed=0, rounds=3, walk=5)
    assert found["loss"] == far(found["point"]) < 0.5
    assert len(found["near"]) >= 1 and found["tries"] > 400


def test_a_loss_counts_only_what_the_case_has_seen():
    figures = judged(LAW)
    alone = {case: fitting.loss(figures, seen) for case, seen in fitting.CASES.items()}
    whole = np.mean([alone[f"{source} alone"] for source in ("LeMiCa", "Golden Path", "FLUX")])
    assert alone["everything"] == pytest.approx(whole)
    assert alone["without FLUX"] == pytest.approx(
        (alone["LeMiCa alone"] + alone["Golden Path alone"]) / 2
    )


@pytest.mark.parametrize("solver", ["euler", "unipc"])
def test_the_spectral_world_errs_as_the_exact_denoiser_of_a_gaussian_from_random_noise(solver):
    rng, steps = np.random.default_rng(0), (0, 1, 4, 9, 15)
    axes, noise = np.linalg.qr(rng.normal(size=(3, 3)))[0], rng.normal(size=(3, 100_000))
    variances = np.array([30.0, 4.0, 0.2])
    covariance = axes * variances @ axes.T

    def final(computed):
        held = None

        def predict(step, x):
            nonlocal held
            if step in computed:
                sigma, alpha = LEVELS.sigma[step], LEVELS.alpha[step]
                seen = alpha**2 * covariance + sigma**2 * np.eye(3)
                held = (x - alpha * covariance @ np.linalg.solve(seen, x)) / sigma
            return held

        return flow_solvers.run(solver, LEVELS, LEVELS.sigma[0] * noise, predict)[-1]

    full, world = final(range(20)), spectral_world.SpectralWorld(variances, LEVELS, solver)
    error = np.linalg.norm(final(steps) - full) / np.linalg.norm(full)
    assert world.decibels(world.final(steps)) == pytest.approx(-20 * np.log10(error), abs=0.1)


def test_the_spectral_world_ranks_public_lists_only_at_the_size_of_the_real_models():
    row = load_rows(spectral_world.NAME)[0]
    cells = [(tree, count) for tree in spectral_world.MODELS for count in (21, 13)]

    def mean_rank(numbers=None):
        worlds = {tree: spectral_world.world_of(row, tree, numbers) for tree, _ in cells}
        return np.mean([spectral_world.rank(worlds[tree], tree, count) for tree, count in cells])

    assert mean_rank() >= 0.6
    assert mean_rank(row["numbers"]) < 0.2
