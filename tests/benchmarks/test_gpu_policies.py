"""Plans and policies on full-size models: what is measured, at toy sizes on the CPU."""

import pytest
import torch

from benchmarks.lib.rows import Row
from benchmarks.lib.timing import Subject
from benchmarks.speed import policies
from benchmarks.speed.forced_rules import Clock, Driven, forced_rule
from benchmarks.speed.full_models import MODELS as FULL
from benchmarks.speed.full_models import TOYS
from benchmarks.speed.gpu import CPU, HUNYUAN, measurements
from benchmarks.speed.gpu import WAN_SMALL as WAN
from profiling_core.plan.cost import speedup_flops
from profiling_core.plan.model_specs import MODELS
from profiling_core.plan.presets import load_preset

CALLS = {WAN: 100, HUNYUAN: 50}
PEERS = ["TeaCache", "MagCache", "EasyCache", "DiCache"]
OWN = {  # every policy but those of the other solver
    WAN: set(policies.POLICIES) - {"ours corrected"},
    HUNYUAN: set(policies.POLICIES) - {"ours jump"},
}
PARTS = ("call", "attached", "plan", "policy", "compile")


@pytest.fixture(scope="module", params=[WAN, HUNYUAN])
def subject(request) -> Subject:
    return TOYS[request.param].subject(request.param, CPU)


@pytest.fixture(scope="module")
def rows(subject) -> dict[str, Row]:
    return {each.name: each.row(1, CPU) for each in policies.policies(subject)}


def policy(subject: Subject, name: str) -> policies.Policy:
    return next(each for each in policies.policies(subject) if each.name == name)


def test_a_row_takes_the_calls_that_the_timetable_counts(subject, rounds=2) -> None:
    """In full calls of the model, block by block; the timetable knows no weights."""
    runs, lists = [], subject.planned.fingerprint.block_lists
    planned = TOYS[subject.name].subject(subject.name, torch.device("meta"))
    blocks = [block for name in lists for block in getattr(subject.model, name)]
    hooks = [block.register_forward_pre_hook(lambda *_: runs.append(1)) for block in blocks]
    for part in PARTS:
        counted = {each.name: each.calls(rounds) for each in measurements(planned, part)}
        for each in measurements(subject, part):
            runs.clear()
            each.row(rounds, CPU)
            assert len(runs) == pytest.approx(len(blocks) * counted[each.name]), each
    for hook in hooks:
        hook.remove()


def test_plans_part_counts_what_the_plans_say(subject) -> None:
    found = {each.name: each.row(1, CPU) for each in policies.shipped(subject)}
    assert sorted(found) == sorted(subject.presets)
    for preset, row in found.items():
        plan, (loop,) = subject.plan(preset), row["loops"]
        assert row["bytes_held"] == row["bytes_formula"]
        assert (row["bytes_held"] == 0) == (subject.name == WAN and preset == "balanced")
        assert loop["ideal"] == pytest.approx(plan.expected.speedup_flops, rel=1e-4)
        assert row["seconds"]["run"] > 0 and loop["achieved"] > 0
        assert sum(loop["calls"].values()) == len(plan.solver_steps) * len(plan.branches)


@pytest.mark.parametrize(
    ("name", "official"),
    [
        ("wan2.1-t2v-1.3B", "wan2.1-t2v-1.3B"),
        ("wan2.1-t2v-14B", "wan2.1-t2v-14B"),
        ("hunyuan-video-720p", "hunyuan-video-t2v-720p"),
    ],
)
def test_full_sizes_are_those_that_plans_are_shipped_for(name, official) -> None:
    subject, shipped = FULL[name].subject(name, torch.device("meta")), MODELS[official]
    assert subject.planned.clip.tokens == shipped.clip.tokens
    assert subject.planned.clip.latent == shipped.clip.latent
    for preset in subject.presets:
        assert subject.plan(preset).sites == load_preset(official, preset).sites
    assert subject.planned.fingerprint.width == shipped.fingerprint.width


def test_every_policy_has_a_loop_for_every_budget(subject, rows) -> None:
    assert list(rows) == [name for name in policies.POLICIES if name in OWN[subject.name]]
    for row in rows.values():
        assert [loop["budget"] for loop in row["loops"]] == list(policies.BUDGETS)


def test_calls_are_those_of_a_clip_and_meet_the_budget(subject, rows) -> None:
    for name, row in rows.items():
        for loop in row["loops"]:
            calls = sum(loop["calls"].values())
            skips = name in ("fewer steps", "ours jump")
            assert calls < CALLS[subject.name] if skips else calls == CALLS[subject.name]
            assert all(row["seconds"][kind] > 0 for kind in loop["calls"])
            if name != "paper":
                assert loop["ideal"] == pytest.approx(loop["budget"], rel=0.03)
            seconds = sum(count * row["seconds"][kind] for kind, count in loop["calls"].items())
            assert loop["loop_seconds"] == pytest.approx(seconds, abs=1e-3)


def test_decisions_are_paid_for_by_peers_alone(rows) -> None:
    for name, row in rows.items():
        assert ("decision" in row["parts"]) == (name in PEERS)


def test_bytes_held_are_those_of_all_branches(subject, rows) -> None:
    held = {name: row["bytes_held"] for name, row in rows.items()}
    clip, branches = subject.planned.clip, CALLS[subject.name] // 50
    wide = subject.model.patch_embedding.weight if subject.name == WAN else None
    latent = clip.latent * (4 if subject.name == WAN else 2)
    assert held["uniform hold"] == branches * latent
    assert held["ours linear"] == 2 * branches * latent
    assert held["fewer steps"] == 0
    image = 2 * 2 * 2 * 48 * (2 if wide is None else 4)
    assert held["MagCache"] == branches * image
    assert held["DiCache"] >= 5 * branches * image


def test_the_papers_plan_comes_as_near_to_the_budget_as_it_can(subject) -> None:
    for budget in (1.5, 1.9):
        plan = policies.paper(subject, budget)
        assert speedup_flops(plan) == pytest.approx(budget, rel=0.03)
        lists = {site.block_list for site in plan.interval_sites}
        assert lists == set(subject.planned.fingerprint.block_lists)


def test_a_correcting_call_is_a_kind_of_its_own() -> None:
    subject = TOYS[HUNYUAN].subject(HUNYUAN, CPU)
    plan = policies.whole(subject, "corrected", False, 3.0)
    kinds = policies.kinds_of(plan, "cond")
    _, _, steps = policies.walk(plan)
    assert [kinds[step] for step in steps][-2:] == ["reuse", "correct"]
    costs = policy(subject, "ours corrected").costs(1, CPU)
    assert {"run", "keep", "reuse", "correct"} <= costs.seconds.keys()


def test_a_forced_rule_gives_the_forced_answer(subject) -> None:
    """On a reused call the blocks behind the decision do not run."""
    runs = []
    hooks = [
        block.register_forward_pre_hook(lambda *_: runs.append(1))
        for name in subject.planned.fingerprint.block_lists
        for block in getattr(subject.model, name)
    ]
    depth, before = len(hooks), subject.model.__dict__.copy()
    for name in PEERS:
        one = policy(subject, name)
        rule = forced_rule(subject.model, one.tree, one.peer, one.variant, Clock(CPU))
        driven, counts = Driven(subject, rule), []
        for step, reusing in ((0, False), (1, False), (20, True), (21, False)):
            runs.clear()
            driven.call(step, "cond", reusing=reusing)
            counts.append(len(runs))
        assert counts == [depth, depth, 1 if name == "DiCache" else 0, depth], name
    for hook in hooks:
        hook.remove()
    assert subject.model.__dict__.keys() == before.keys()
