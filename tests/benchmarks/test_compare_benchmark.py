"""The comparison of policies: at toy sizes, with made-up peers, and from made-up rows."""

import json
from math import sqrt

import numpy as np
import pytest
import torch
from test_benchmarks import tiny_trees  # noqa: F401

from benchmarks.baselines import MagCache, TeaCache, Variant
from benchmarks.baselines.diffusers_hooks import PACKAGES
from benchmarks.baselines.magcache import MagVariant
from benchmarks.compare import compare, policies, samplers, table, tuning
from benchmarks.lib import calibrate, clips
from benchmarks.lib import rows as row_files
from profiling_core.profile.profile import Profile, Settings

CPU = torch.device("cpu")
THREE = ("fewer steps", "MagCache", "search")
RECORDED: dict[str, bytes] = {}  # profiles of the tiny trees, recorded once


@pytest.fixture
def ready(tiny_trees, tmp_path, monkeypatch):  # noqa: F811
    """Tiny trees with profiles of two calibration prompts; rows go to tmp_path."""
    monkeypatch.setattr(row_files, "RESULTS", tmp_path)
    monkeypatch.setattr(clips, "MODELS", tiny_trees)
    monkeypatch.setattr(calibrate, "PROMPTS", 2)
    monkeypatch.setattr(calibrate, "SETTINGS", Settings(sensitivity=(30,)))
    monkeypatch.setattr(calibrate, "profile_path", lambda tree: tmp_path / f"{tree.name}.profile")
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    return tmp_path


def prepare(name, folder):
    """The tiny tree, its profile in `folder`."""
    tree, path = clips.load(name), folder / f"{name}.profile"
    if name not in RECORDED:
        calibrate.record(tree, path)
        RECORDED[name] = path.read_bytes()
    path.write_bytes(RECORDED[name])
    return tree


def options(folder, *names, tree="wan", prompts=2, budgets=("1.9",)):
    return [
        *("--trees", tree, "--prompts", str(prompts), "--budgets", *budgets),
        *("--tune-prompts", "1", "--calibration-prompts", "2", "--out", str(folder / "out")),
        *(["--policies", *names] if names else []),
    ]


def read(folder):
    lines = [
        line for path in folder.glob("compare_*.jsonl") for line in path.read_text().split("\n")
    ]
    return [json.loads(line) for line in lines if line]


def test_comparison_runs_once_and_goes_on_where_it_stopped(ready, capsys, monkeypatch):
    prepare(tree := "hunyuan", ready)
    assert compare.main(options(ready, *THREE, tree=tree, prompts=1)) == 0
    first = read(ready)
    assert [row["policy"] for row in first] == list(THREE)
    assert compare.main(options(ready, *THREE, tree=tree)) == 0
    rows = read(ready)
    assert rows[:3] == first and len(rows) == 6
    assert len({row["prompt"] for row in rows}) == 2
    assert [row["seed"] for row in rows] == [100] * 3 + [101] * 3
    wanted = {"tree", "weights", "policy", "budget", "prompt", "seed", "settings", "speedup"}
    wanted |= {"bytes_held", "latent_error", "psnr_frames", "psnr_pooled", "ssim", "motion"}
    wanted |= {"flicker", "seconds", "full_seconds", "commit", "device", "torch"}
    assert all(wanted <= row.keys() for row in rows)
    assert all(row["seconds"] > 0 and row["psnr_frames"] > 0 for row in rows)
    exact = [row["speedup"] for row in rows if row["policy"] != "MagCache"]
    assert exact == pytest.approx([50 / 26] * 4, rel=1e-4)
    text = capsys.readouterr().out
    assert f"### {tree}, 1.9x" in text and "**MagCache** (best peer)" in text

    def never(*args, **kwargs):
        raise AssertionError("a row that is there was run again")

    monkeypatch.setattr(compare, "measured", never)
    monkeypatch.setattr(tuning, "measured", never)
    monkeypatch.setattr(MagCache, "calibrate", never)
    assert compare.main(options(ready, *THREE, tree=tree)) == 0
    assert read(ready) == rows
    figures = [f"{name}.{kind}" for name in ("compare", "compare_all") for kind in ("png", "svg")]
    assert {path.name for path in (ready / "out").iterdir() if path.is_file()} <= set(figures)


def test_parts_share_the_held_out_prompts(ready):
    prepare("hunyuan", ready)
    for part in ("1", "0"):
        arguments = options(ready, "fewer steps", "uniform", tree="hunyuan")
        assert compare.main([*arguments, "--parts", "2", "--part", part]) == 0
    rows = read(ready)
    assert [row["seed"] for row in rows] == [101] * 3 + [100] * 3
    assert {row["policy"] for row in rows} == {"fewer steps", "uniform hold", "uniform linear"}


@pytest.mark.parametrize("name", row_files.TREES)
def test_every_policy_settles_on_the_budget_or_says_why_not(name, ready, capsys, monkeypatch):
    """Peers and packages have tests of their own; here they only have to be built."""
    tree = prepare(name, ready)
    weights = samplers.weights_hash(tree)
    references = samplers.References(tree, ready / weights)
    prompt = calibrate.calibration_prompts(1)[0]
    reference = references.get("calibration", 0, prompt, 7)
    scores = tuning.Tuning(tree, [reference], ready / "tuned")
    profile = Profile.load(ready / f"{name}.profile")
    given = policies.Given(tree, profile, scores, 2)
    found = {policy.name: policy for policy in policies.policies_of(given)}
    left_out = set(policies.ALL) - set(found)
    lemica = {name for name in policies.LISTS if name.startswith("lemica")}  # of Wan alone
    others = {"fewer steps dpm++", "search jump", *lemica}
    expected = {"wan": {"search corrected"}, "hunyuan": others}
    assert left_out == {*expected[name], "search fitted"}  # which a profile of few runs lacks
    groups = ("fewer", "uniform", "release", "ours")
    plain = [p for p in found if policies.GROUP_OF[p] in groups and p != policies.SEARCHED]
    plain += ["paper background stepwise"]
    for policy in plain:
        for settled in compare.settle(found[policy], scores, [1.5]):
            row = samplers.measured(tree, settled.sampler, reference)
            if settled.budget:
                assert row["speedup"] == pytest.approx(1.5, rel=0.021)
    said = capsys.readouterr().err.splitlines()
    unreached = [line for line in said if "left out" in line]
    assert all("1.5x is not reached: the nearest is" in line for line in unreached)
    assert len(unreached) < len(plain) / 3


def test_missing_package_is_skipped_and_named(ready, capsys, monkeypatch):
    prepare("wan", ready)
    package = PACKAGES[0]
    monkeypatch.setattr(package, "missing", classmethod(lambda cls: "it is not installed"))
    assert compare.main(options(ready, package.name, "fewer steps", prompts=1)) == 0
    assert f"wan {package.name} left out: it is not installed" in capsys.readouterr().err
    assert [row["policy"] for row in read(ready)] == ["fewer steps"]


def test_other_weights_are_other_rows(ready):
    tree = prepare("wan", ready)
    before = samplers.weights_hash(tree)
    assert before == samplers.weights_hash(clips.load("wan"))
    with torch.no_grad():
        next(tree.pipeline.model.parameters()).add_(1)
    assert samplers.weights_hash(tree) != before


# -- tuning


class FakeTree:
    name, steps = "wan", 50


class FakePeer:
    """Two variants; the speed-up grows with the threshold, by jumps for the second one."""

    name = "fake"

    def variants(self, tree):
        return [Variant("smooth"), Variant("jumps")]

    def span(self, variant):
        return 0.0, 4.0


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A tuning whose runs are made up; `seen` holds what was run."""
    seen = []

    def measured(tree, sampler, reference):
        seen.append((sampler.variant.label, sampler.threshold, reference.prompt))
        speed = 1 + sampler.threshold * (1.1 if reference.prompt == "b" else 1.0)
        if sampler.variant.label == "jumps":
            speed = float(np.floor(speed))
        psnr = {"smooth": 40.0, "jumps": 45.0}[sampler.variant.label] - speed
        return {"speedup": speed, "psnr_frames": psnr}

    monkeypatch.setattr(tuning, "measured", measured)
    clips = [samplers.Reference(p, 7, (), None, None, 1.0) for p in "ab"]
    return tuning.Tuning(FakeTree, clips, tmp_path), seen


@pytest.mark.parametrize("budget", [1.5, 1.9, 2.3])
def test_tuning_reaches_the_budget_in_the_mean_of_the_prompts(fake, budget):
    scores, _ = fake
    with scores.locked("fake"):
        sampler = tuning.tuned(scores, FakePeer(), budget)
        assert sampler.variant.label == "smooth"  # the other has whole speed-ups alone
        assert scores.score(sampler).speedup == pytest.approx(budget, rel=0.0201)
    one, two = 1 + sampler.threshold, 1 + 1.1 * sampler.threshold
    assert scores.score(sampler).speedup == pytest.approx(2 / (1 / one + 1 / two))


def test_tuning_takes_the_better_of_variants_that_meet_the_budget(fake):
    scores, _ = fake
    with scores.locked("fake"):
        assert tuning.tuned(scores, FakePeer(), 3.0).variant.label == "jumps"


def test_tuning_repeats_nothing_after_a_restart_and_shares_between_budgets(fake, tmp_path):
    scores, seen = fake
    with scores.locked("fake"):
        found = [tuning.tuned(scores, FakePeer(), b).key for b in (1.5, 1.9)]
    assert len(seen) == len(set(seen)) == scores.runs
    again = tuning.Tuning(FakeTree, scores.references, tmp_path)
    with again.locked("fake"):
        assert [tuning.tuned(again, FakePeer(), b).key for b in (1.5, 1.9)] == found
    assert again.runs == 0


def test_tuning_says_what_is_out_of_reach(fake):
    scores, _ = fake
    with scores.locked("fake"), pytest.raises(tuning.UnreachableError) as error:
        tuning.tuned(scores, FakePeer(), 8.0)
    assert str(error.value).startswith("8x is not reached: the nearest is 5.")


def test_magcache_schedule_is_priced_without_a_run():
    peer, variant = MagCache(), MagVariant("K 2", 2, 0.2)
    peer.ratios = {"cond": [1.0] * 10}
    # 2 protected of 10, then two skips and one computed step by turns: 2, 5, 8 reused twice each
    assert tuning.magcache_speedup(peer, variant, 1.0) == pytest.approx(10 / 4)
    assert tuning.magcache_speedup(peer, variant, 0.0) == 1


def test_calibration_is_kept_and_comes_back_the_same(tmp_path):
    class Tree:
        name, steps = "wan", 3

    class Calibrating(TeaCache):
        def calibrate(self, tree, inputs, *, solver=None):
            self.tree, self.steps, self.runs = tree.name, tree.steps, len(inputs)
            numbers = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
            steps = [1, 2, 3, 4, 5, 6]
            self.changes = {"embedding": tuning.Changes(steps, numbers, numbers)}

    path = tmp_path / "tea.json"
    made = tuning.calibrated(Calibrating(), Tree, lambda: [()], path)
    read = tuning.calibrated(Calibrating(), Tree, lambda: pytest.fail("ran"), path)
    assert vars(made) == vars(read)
    variant = made.variants(Tree)[0]
    assert np.allclose(made.polynomial(variant), read.polynomial(variant))


# -- rows


def made_up(tree, policy, budget, prompt, psnr, **more):
    return {
        **{"tree": tree, "weights": "w", "policy": policy, "budget": budget, "prompt": prompt},
        **{"seed": 100, "settings": {"threshold": 1}, "psnr_frames": psnr, "psnr_pooled": psnr},
        **{"speedup": budget or 2.0, "bytes_held": 2048, "latent_error": 0.1, "ssim": 0.9},
        **{"motion": 1.0, "flicker": 1.0, "seconds": 5.0, "full_seconds": 10.0, **more},
    }


def made_up_rows(policies=policies.ALL, prompts=4):
    """Four prompts of every policy; a policy further down the list is worse."""
    rows = []
    for tree in row_files.TREES:
        for number, policy in enumerate(policies):
            for budget in [None] if policy == "release" else compare.BUDGETS:
                for prompt in range(prompts):
                    psnr = 56 - 6 * (budget or 2.0) - number / 3 + prompt
                    psnr += 12 * (policy == "search")
                    rows.append(made_up(tree, policy, budget, str(prompt), psnr))
    return rows


def test_paired_difference_is_that_of_the_prompts_both_have():
    ours = [made_up("wan", "search", 1.9, p, v) for p, v in (("a", 40.0), ("b", 50.0), ("d", 9.0))]
    other = [made_up("wan", "TeaCache", 1.9, p, v) for p, v in (("b", 41.0), ("a", 38.0))]
    one, two = table.grouped([*other, *ours])
    assert (one.policy, two.policy) == ("TeaCache", "search")
    found = table.difference(two, one)
    differences = np.array([2.0, 9.0])
    error = differences.std(ddof=1) / sqrt(2)
    assert (found.mean, found.error, found.count) == pytest.approx((5.5, error, 2))
    assert "+5.5 ± 3.5" in table.tables([*other, *ours])


def test_table_marks_the_best_peer_and_places_a_policy_of_its_own_speed():
    text = table.tables(made_up_rows())
    assert text.count("### ") == 8 and text.count("(best peer)") == 8
    assert text.count("**TeaCache** (best peer)") == 8
    sections = text.split("### ")
    assert [s.split("\n")[0] for s in sections if "release, own speed" in s] == [
        "wan, 1.9x",
        "hunyuan, 1.9x",
    ]
    assert all(line.count("|") == 12 for line in text.splitlines() if line.startswith("|"))


def test_summary_has_a_row_per_policy_and_says_what_is_off():
    rows = [
        made_up("wan", "search", b, p, v) for b in (1.5, 3.0) for p, v in (("a", 40), ("b", 50))
    ]
    rows += [made_up("wan", "TeaCache", 1.5, "a", 30.0), made_up("wan", "search jump", 1.5, "a", 9)]
    rows += [made_up("wan", "release", None, "a", 20.0)]
    rows[2]["speedup"] = rows[3]["speedup"] = 2.5
    lines = table.summary(rows).splitlines()
    assert lines[0] == "### wan, 2 prompts"
    assert lines[2] == "| policy | 1.5x | 3x |"
    assert lines[4] == "| **search**, ours | **45.0 (40.0)** | **45.0 (40.0)** at 2.50x |"
    assert lines[5] == "| TeaCache | 30.0 (30.0), n = 1 | - |"
    assert len(lines) == 6


def test_table_takes_the_newest_settings_and_weights_of_policies_that_there_are():
    old = [made_up("wan", "search", 1.9, p, 1.0, settings={"plan": "old"}) for p in "abc"]
    other = [made_up("wan", "search", 1.9, "a", 2.0, weights="old")]
    new = [made_up("wan", "search", 1.9, p, 3.0, settings={"plan": "new"}) for p in "ab"]
    twice = [made_up("wan", "search", 1.9, "b", 4.0, settings={"plan": "new"})]
    gone = [made_up("wan", "search by dice", 1.9, "a", 5.0, weights="newest")]
    kept = table.latest([*old, *other, *new, *twice, *gone])
    assert [(row["prompt"], row["psnr_frames"]) for row in kept] == [("a", 3.0), ("b", 4.0)]


def test_figures_are_drawn_from_rows_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(row_files, "RESULTS", tmp_path)
    rows = made_up_rows(("search", "fewer steps", "TeaCache", "paper split average"))
    for row in rows:
        row_files.append_row(f"compare_{row['tree']}", row)
    assert compare.main(["--table", "--out", str(tmp_path / "figures")]) == 0
    names = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert names == ["compare.png", "compare.svg", "compare_all.png", "compare_all.svg"]
    assert all((tmp_path / "figures" / name).stat().st_size > 5000 for name in names)
    assert "### wan, 3x" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parts", "2", "--part", "2"], "--part 2 of 2 parts: expected 0 to parts - 1"),
        (["--policies", "teacash"], "no policy 'teacash': groups and policies are fewer, "),
        (["--table"], "no rows of wan, hunyuan in "),
    ],
)
def test_bad_arguments_are_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(row_files, "RESULTS", tmp_path)
    assert compare.main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message}") and said.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "text"),
    [("--threads", "0"), ("--prompts", "-1"), ("--tune-prompts", "two"), ("--budgets", "1")],
)
def test_a_value_out_of_range_is_one_line_that_names_it(option, text, capsys):
    with pytest.raises(SystemExit) as stop:
        compare.main([option, text])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1
    assert said.startswith(f"error: argument {option}: found {text}, expected ")
