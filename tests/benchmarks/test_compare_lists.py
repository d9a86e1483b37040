"""Further rows of the comparison: public lists, searched grids, and its rank correlations."""

from itertools import combinations

import numpy as np
import pytest
import torch
from test_benchmarks import tiny_trees  # noqa: F401
from test_compare_benchmark import made_up, prepare, ready  # noqa: F401

from benchmarks.compare import policies, searched_grid, table, validity
from benchmarks.lib import clips
from benchmarks.lib import rows as row_files
from profiling_core.metrics import latent_error
from profiling_core.plan import CachePlan
from profiling_core.plan.importers import from_steps, public_document
from profiling_core.profile.profile import Profile
from profiling_core.search import flow_solvers
from profiling_core.search.flow_solvers import Levels

EXAMPLE = "red circle moving right over blue stripes"


@pytest.mark.parametrize("name", row_files.TREES)
def test_public_lists_run_what_is_published(name, ready):  # noqa: F811
    tree, model = prepare(name, ready), policies.LISTS_OF[name]
    given = policies.Given(tree, Profile.load(ready / f"{name}.profile"), None, 2)
    found = {policy.name: policy for policy in policies._public(given)}
    document = public_document()
    published = {**document["lemica"].get(model, {}), **document["golden-path"][model]}
    names = [*policies.GROUPS["lists"], *policies.GROUPS["classes"]]
    assert list(found) == [each for each in names if each in published]
    assert len(found) == {"wan": 19, "hunyuan": 15}[name]
    for listed in sorted({"lemica-14", "meancache-9", "random-2-21"} & found.keys()):
        sampler = found[listed].settle(None)
        assert found[listed].one_point and sampler.plan.prediction.skip == "hold"
        computed = set(sampler.plan.prediction.compute_steps.values())
        assert computed == {tuple(published[listed])}
    ran = sampler.run(tree, tree.inputs(EXAMPLE, 1))  # one of them
    assert ran.share == pytest.approx(len(published[listed]) / 50)
    stats = tree.last_run
    assert stats.block_runs * 50 == stats.block_runs_full * len(published[listed])


LEVELS = (1.0, 0.95, 0.88, 0.8, 0.7, 0.55, 0.4, 0.2)


def every_student(solver, start, predict, teacher, count):
    """The final error of every choice of `count` levels, the first among them."""
    for others in combinations(range(1, len(LEVELS)), count - 1):
        levels = (0, *others)
        on = Levels([LEVELS[level] for level in levels])
        final = flow_solvers.run(solver, on, start, lambda k, x, own=levels: predict(own[k], x))[-1]
        yield float(((final - teacher[-1]) ** 2).sum()), list(levels)


def test_searched_grid_is_the_best_of_all_where_errors_add_up():
    """A path that bends one way, whatever the latent: brute force finds the same levels."""
    start = np.ones((2, 3))

    def predict(level, x):
        return np.full_like(x, LEVELS[level] ** 3)

    teacher = flow_solvers.run("euler", Levels(LEVELS), start, predict)
    found = searched_grid.search("euler", LEVELS, teacher, predict, (3, 4, 6))
    assert sorted(found) == [3, 4, 6]
    for count, student in found.items():
        assert (
            list(student.visited) == min(every_student("euler", start, predict, teacher, count))[1]
        )


@pytest.mark.parametrize("solver", ["euler", "unipc", "dpm++"])
def test_searched_grid_is_among_the_best_of_all_students(solver):
    rng = np.random.default_rng(0)
    mix, start = rng.normal(size=(6, 6)), rng.normal(size=(2, 6))

    def predict(level, x):
        return np.tanh(x @ mix.T) * (1 + LEVELS[level])

    levels = (0.999, *LEVELS[1:])
    teacher = flow_solvers.run(solver, Levels(levels), start, predict)
    found = searched_grid.search(solver, levels, teacher, predict, (4,))[4]
    errors = sorted(every_student(solver, start, predict, teacher, 4))
    assert list(found.visited) in [visited for _, visited in errors[:3]]


@pytest.mark.parametrize("name", row_files.TREES)
def test_student_of_a_searched_grid_is_what_the_tree_runs(name, tiny_trees):  # noqa: F811
    tree = clips.load(name, fp32=True, steps=6)
    inputs, sampling, model = tree.inputs(EXAMPLE, 1), tree.sampling, tiny_trees[tree.plan_model]
    (student,) = searched_grid.students_of(tree, [inputs], (3,)).values()
    skip = {"euler": "hold", "unipc": "jump"}[sampling.solver]
    plan = CachePlan.build(
        name="student",
        model=model.fingerprint,
        steps=6,
        sigmas=tree.sigmas(sampling),
        solver=sampling.solver,
        shift=sampling.shift,
        sites=from_steps(6, student.visited, model.family.branches, skip),
        provenance={"made_by": "tests", "source": "a searched grid"},
    )
    latent = np.tensordot(student.factors, np.stack(student.terms), 1)[0]
    ran = tree.denoise(inputs, plan).flatten()
    assert latent_error(torch.from_numpy(latent).float(), ran) < 1e-4
    off = float(((ran - tree.denoise(inputs).flatten()) ** 2).sum())
    assert len(student.visited) == 3 and student.error == pytest.approx(off, rel=1e-2)


# -- ranks, published and here


def test_rank_correlation_shares_ranks_of_equal_values_and_wants_three():
    """By hand: ranks 1, 2.5, 2.5, 4 and 1 to 4 have 4.5 / sqrt(4.5 * 5)."""
    assert validity.ranked([1, 2, 2, 3], [10, 20, 30, 40]) == "+0.95 (n = 4)"
    assert validity.ranked([3, 2, 1], [1, 2, 3]) == "-1.00 (n = 3)"
    assert validity.ranked([1, 2], [1, 2]) == validity.ranked([1, 1, 1], [1, 2, 3]) == "-"


def test_published_figure_stands_beside_the_miniatures_at_the_same_speedup(monkeypatch):
    """Half way between 1.9x and 2.5x on a log scale; MagCache's points end before."""
    figures = (("TeaCache", 4.75**0.5, 30.0), ("MagCache", 2.2, 20.0), ("DiCache", 2.0, 25.0))
    monkeypatch.setattr(validity, "PUBLISHED", {("one", "wan"): figures})
    known = {"TeaCache": (40.0, 30.0), "MagCache": (44.0,), "DiCache": (42.0, 30.0)}
    rows = [
        made_up("wan", policy, budget, "a", psnr)
        for policy, of in known.items()
        for budget, psnr in zip((1.9, 2.5), of, strict=False)
    ]
    pairs = validity.paired(table.grouped(rows))
    same = [pair.ours.get(("wan", validity.SAME)) for pair in pairs]
    later = 42 - 12 * np.log(2 / 1.9) / np.log(2.5 / 1.9)
    assert same == [pytest.approx(35.0), None, pytest.approx(later)]
    assert [pair.ours["wan", validity.AT_BUDGET] for pair in pairs] == [40.0, 44.0, 42.0]
    assert validity.correlation(pairs, "wan", validity.AT_BUDGET) == "-1.00 (n = 3)"
    assert validity.correlation(pairs, "wan", validity.SAME) == "-"
    assert validity.alike(pairs, "wan", validity.AT_BUDGET) == "0 of 3"
    assert validity.alike(pairs, "wan", validity.SAME) == "0 of 1"
    text = validity.validity(rows)
    assert "| Wan2.1, one | TeaCache | 2.18x | 30.0 | 35.0 | - |" in text
    assert "| Wan2.1, one | - | -1.00 (n = 3) | - | - |" in text


def test_classes_are_ranked_on_the_prompts_that_all_lists_have():
    """One list has no row of the second prompt, so the first counts alone."""
    names = ("meancache-21", "seacache-21", "uniform-21", "random-1-21")
    rows = [made_up("hunyuan", n, None, "a", 40.0 - k) for k, n in enumerate(names)]
    rows += [made_up("hunyuan", n, None, "b", 9.0 * k) for k, n in enumerate(names[:3])]
    assert validity.classed(rows, "hunyuan") == dict(
        zip(names, (40.0, 39.0, 38.0, 37.0), strict=True)
    )
    assert "| rank correlation |  | - | +1.00 (n = 4) |" in validity.validity(rows)


def test_summary_has_one_line_for_the_lists_of_a_method():
    rows = [made_up("wan", "search", budget, "a", 50.0) for budget in (1.9, 3.0)]
    for name, speed in (("lemica-25", 2.0), ("lemica-17", 2.94), ("lemica-14", 3.57)):
        rows.append(made_up("wan", name, None, "a", 80 / speed, speedup=speed))
    rows.append(made_up("wan", "random-1-21", None, "a", 9.0, speedup=2.0))
    lines = table.summary(rows).splitlines()
    cells = "40.0 (40.0) at 2.00x | 27.2 (27.2); 22.4 (22.4) at 3.57x"
    assert lines[5:] == [f"| lemica lists | {cells} |"]
