"""Further rows of the comparison: public lists, searched grids, and its rank correlations."""

from itertools import combinations

import numpy as np
import pytest
import torch
from test_benchmarks import tiny_trees  # noqa: F401
from test_compare_benchmark import prepare, ready  # noqa: F401

from benchmarks.compare import policies, searched_grid
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
    for listed in {"lemica-14", "meancache-9", "random-2-21"} & found.keys():
        sampler = found[listed].settle(None)
        assert found[listed].one_point and sampler.plan.prediction.skip == "hold"
        computed = set(sampler.plan.prediction.compute_steps.values())
        assert computed == {tuple(published[listed])}
        assert sampler.run(tree, tree.inputs(EXAMPLE, 1)).share == pytest.approx(
            len(published[listed]) / 50
        )
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
