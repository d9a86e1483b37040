"""The call that patches insert: what it attaches to, and what it leaves behind."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch

import toy_upstreams
from profiling_core.errors import PlanError, ProfileError, UserError
from profiling_core.loops.official_repos import check_options, hunyuan_run, wan_run
from profiling_core.loops.scheduler_grid import grid_of, when_set
from profiling_core.plan import CachePlan
from profiling_core.plan.model_specs import known_model
from profiling_core.profile.profile import Profile
from profiling_core.search.search import Budget, PlanSearch
from toy_upstreams import STEPS, FlowToyScheduler, HunyuanToy, WanToy


def options(cache: str | None = None, profile: str | None = None) -> Namespace:
    return Namespace(delta_cache=cache, delta_profile=profile)


def generate(args: Namespace, fails_at: int | None = None) -> torch.Tensor:
    """As the patched generate.py does it."""
    if args.delta_cache or args.delta_profile:
        check_options(args)
    pipeline = WanToy(config="a config")
    if args.delta_cache or args.delta_profile:
        wan_run(pipeline, args)
    return pipeline.generate("a lamp", fails_at=fails_at)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """A plan of intervals on the loop's grid."""
    seen = []
    with when_set(FlowToyScheduler, lambda *given: seen.append(grid_of(*given))):
        WanToy().generate("a lamp")
    steps = {"cond": [0, 1, 4], "uncond": [0, 1, 4]}
    site = {"kind": "intervals", "block_list": "blocks", "intervals": [[1, 3]], "skip": "hold"}
    path = tmp_path / "plan.json"
    CachePlan.build(
        name="toy",
        model=known_model("wan2.1", {"blocks": 6}, 48),
        **seen[0].sampling,
        sites=[{**site, "compute_steps": steps}],
        provenance={"made_by": "tests", "source": "toy"},
    ).save(path)
    assert (seen[0].steps, seen[0].solver, seen[0].shift) == (STEPS, "unipc", 5.0)
    return path


def test_a_plan_runs_and_everything_is_as_it_was(plan: Path) -> None:
    names, plain = dict(vars(WanToy)), generate(options())
    kept = vars(FlowToyScheduler)["set_timesteps"], type(WanToy().model)
    cached = generate(options(str(plan)))
    assert not torch.equal(cached, plain) and torch.isfinite(cached).all()
    assert dict(vars(WanToy)) == names
    assert (vars(FlowToyScheduler)["set_timesteps"], type(WanToy().model)) == kept
    assert "generate" not in vars(WanToy()) and torch.equal(generate(options()), plain)
    assert torch.equal(generate(options(str(plan))), cached)


def test_a_failed_run_leaves_nothing_behind(plan: Path) -> None:
    plain, cached = generate(options()), generate(options(str(plan)))
    with pytest.raises(RuntimeError, match="the loop failed"):
        generate(options(str(plan)), fails_at=3)
    assert torch.equal(generate(options()), plain)
    assert torch.equal(generate(options(str(plan))), cached)


def test_another_pipeline_of_the_class_has_no_plan(plan: Path) -> None:
    plain, cached = generate(options()), generate(options(str(plan)))
    one, other = WanToy(), WanToy()
    wan_run(one, options(str(plan)))
    assert torch.equal(other.generate("a lamp"), plain)
    assert torch.equal(one.generate("a lamp"), cached)
    assert torch.equal(other.generate("a lamp"), plain)


def test_one_pipeline_object_stays_cached_between_its_calls_only(plan: Path) -> None:
    pipeline = WanToy()
    wan_run(pipeline, options(str(plan)))
    first = pipeline.generate("a lamp")
    plain = type(pipeline.model)
    assert plain is type(WanToy().model)
    assert torch.equal(pipeline.generate("a lamp"), first)
    with pytest.raises(TypeError, match="unexpected"):
        pipeline.generate("a lamp", colour="red")


@pytest.mark.parametrize("preset", ["paper", "release", "quality", "balanced", "fast"])
def test_presets_run_on_a_model_of_any_size(preset: str) -> None:
    assert torch.isfinite(generate(options(preset))).all()


def test_bad_options_end_before_anything_is_built(tmp_path: Path) -> None:
    cases = [
        (options("nothing.json"), "nothing.json"),
        (options("sky"), "plan file sky"),
        (options("paper", "my.profile"), "a profile needs a full run"),
        (options(None, str(tmp_path)), "name a file"),
    ]
    for args, said in cases:
        with pytest.raises(UserError, match=said):
            check_options(args)
        pipeline = WanToy()
        with pytest.raises(UserError, match=said):
            wan_run(pipeline, args)
        assert "generate" not in vars(pipeline)


def test_a_plan_of_another_model_is_refused_before_the_first_step(tmp_path: Path, plan) -> None:
    other = CachePlan.load(plan).model_dump(mode="json", exclude_none=True)
    other["model"]["block_lists"]["blocks"] = 7
    other.pop("expected")
    path = tmp_path / "other.json"
    CachePlan.from_dict(other).save(path)
    with pytest.raises(PlanError, match="has 7 blocks, this model 6"):
        generate(options(str(path)))


def test_hunyuan_runs_by_plan_and_is_recorded(tmp_path: Path) -> None:
    plain = HunyuanToy().predict("a lamp")["samples"]
    path = tmp_path / "toy.profile"
    sampler = HunyuanToy()
    sampler.args.delta_profile = str(path)
    hunyuan_run(sampler)
    assert torch.equal(sampler.predict("a lamp")["samples"], plain)
    assert not torch.equal(sampler.predict("a lamp", seed=4)["samples"], plain)
    profile = Profile.load(path)
    assert [run.seed for run in profile.runs] == [3, 4]
    search = PlanSearch(profile)
    search.plan(Budget(speedup=2.0)).save(tmp_path / "two.json")
    cached = HunyuanToy()
    cached.args.delta_cache = str(tmp_path / "two.json")
    hunyuan_run(cached)
    found = cached.predict("a lamp")["samples"]
    assert 0 < float((found - plain).norm() / plain.norm()) < 0.5
    assert type(cached.pipeline.transformer) is type(HunyuanToy().pipeline.transformer)


def test_wan_is_recorded_with_both_branches(tmp_path: Path) -> None:
    path = tmp_path / "toy.profile"
    plain = generate(options())
    assert torch.equal(generate(options(None, str(path))), plain)
    profile = Profile.load(path)
    assert profile.recorded.branches == ("cond", "uncond") and profile.has_attention
    assert (profile.runs[0].prompt, profile.runs[0].guidance) == ("a lamp", 3.0)


def test_a_failed_recording_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "toy.profile"
    with pytest.raises(RuntimeError, match="the loop failed"):
        generate(options(None, str(path)), fails_at=5)
    assert not list(tmp_path.iterdir())


def test_noise_is_not_recorded(tmp_path: Path, monkeypatch) -> None:
    class Rising(toy_upstreams.FlowMatchEulerDiscreteScheduler):
        def __init__(self, shift: float) -> None:
            super().__init__(shift=shift, invert_sigmas=True)

    monkeypatch.setattr(toy_upstreams, "FlowMatchEulerDiscreteScheduler", Rising)
    sampler = HunyuanToy()
    sampler.args.delta_profile = str(tmp_path / "toy.profile")
    hunyuan_run(sampler)
    with pytest.raises(ProfileError, match="--flow-reverse"):
        sampler.predict("a lamp")
