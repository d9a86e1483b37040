"""The call that patches insert: what it attaches to, and what it leaves behind."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch

import toy_upstreams
from naive_walk import naive
from profiling_core.errors import PlanError, ProfileError, UserError
from profiling_core.loops.official_repos import check_options, check_used, hunyuan_run, wan_run
from profiling_core.loops.recorded_loop import LoopProfile
from profiling_core.loops.scheduler_grid import grid_of, when_set
from profiling_core.plan import CachePlan
from profiling_core.plan.model_specs import known_model
from profiling_core.plan.restrict import part_of
from profiling_core.profile.profile import Profile
from profiling_core.search.search import Budget, PlanSearch
from toy_upstreams import STEPS, FlowToyScheduler, HunyuanToy, TwoExpertsToy, WanToy


def options(cache: str | None = None, profile: str | None = None, **more: object) -> Namespace:
    return Namespace(delta_cache=cache, delta_profile=profile, **more)


def generate(args: Namespace, fails_at: int | None = None) -> torch.Tensor:
    """As the patched generate.py does it."""
    if args.delta_cache or args.delta_profile:
        check_options(args)
    pipeline = WanToy(config="a config")
    if args.delta_cache or args.delta_profile:
        wan_run(pipeline, args)
    result = pipeline.generate("a lamp", fails_at=fails_at)
    if args.delta_cache or args.delta_profile:
        check_used(args)
    return result


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


@pytest.mark.parametrize("how", ["other pipeline", "failed run", "other model", "never called"])
def test_a_run_that_was_asked_for_a_plan_and_did_not_use_it_ends_with_an_error(
    plan: Path, how: str
) -> None:
    args, pipeline, other = options(str(plan)), WanToy(), WanToy()
    generate(args)  # an earlier command in this process
    check_options(args)
    wan_run(pipeline, args)
    if how == "other pipeline":
        other.generate("a lamp")
    elif how == "failed run":
        with pytest.raises(RuntimeError, match="the loop failed"):
            pipeline.generate("a lamp", fails_at=3)
    elif how == "other model":
        pipeline.model_at = lambda t: other.model
        plain = WanToy().generate("a lamp")
        assert torch.equal(pipeline.generate("a lamp"), plain)  # what was made is not lost
    reason = "the loop never called its WanModel" if how == "other model" else "of a full run"
    with pytest.raises(PlanError, match=f"--delta_cache {plan}: no run went by it.*{reason}"):
        check_used(args)


def test_a_run_that_was_asked_for_a_profile_and_recorded_none_ends_with_an_error(
    tmp_path: Path,
) -> None:
    args = options(None, str(tmp_path / "toy.profile"))
    check_options(args)
    WanToy().generate("a lamp")
    with pytest.raises(PlanError, match=r"--delta_profile .*: no run went by it"):
        check_used(args)


def test_a_profile_that_cannot_be_written_leaves_the_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(profile: LoopProfile, **facts: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(LoopProfile, "finish", full_disk)
    args, pipeline = options(None, str(tmp_path / "toy.profile")), WanToy()
    check_options(args)
    wan_run(pipeline, args)
    assert torch.equal(pipeline.generate("a lamp"), WanToy().generate("a lamp"))
    with pytest.raises(PlanError, match=r"--delta_profile .*: no space left on device"):
        check_used(args)


@pytest.mark.parametrize("first", [1, 3])
def test_a_loop_that_begins_in_the_middle_runs_the_steps_of_the_plan_from_there(
    plan: Path, first: int
) -> None:
    cached, walked = WanToy(), WanToy()
    wan_run(cached, options(str(plan)))
    part = part_of(CachePlan.load(plan), range(first, STEPS))
    with naive(part, walked.model, {"blocks": "blocks"}, 2):
        expected = walked.generate("a lamp", first=first)
    assert torch.equal(cached.generate("a lamp", first=first), expected)
    assert not torch.equal(expected, walked.generate("a lamp", first=first))
    steps = {"cond": [0, 1, 4, 5, 6], "uncond": [0, 1, 4, 5, 6]}
    jump = [{"kind": "prediction", "skip": "jump", "compute_steps": steps}]
    CachePlan.load(plan).replace(sites=jump).save(plan)
    with pytest.raises(
        PlanError, match=r"a plan that jumps, .* need a loop that begins at the fir"
    ):
        cached.generate("a lamp", first=first)


@pytest.mark.parametrize("boundary", [0.95, 0.8, 0.5])
def test_two_experts_run_by_a_plan_that_is_parted_at_their_boundary(
    plan: Path, boundary: float
) -> None:
    cached, walked = TwoExpertsToy(), TwoExpertsToy()
    cached.boundary = walked.boundary = boundary
    wan_run(cached, options(str(plan)))
    found = cached.generate("a lamp")
    parted, models = CachePlan.load(plan), (walked.high_noise_model, walked.low_noise_model)
    high = sum(int(1000 * level) >= 1000 * boundary for level in parted.sigmas)
    assert 0 < high < STEPS
    blocks = {"blocks": "blocks"}
    with naive(parted, models[0], blocks, 2), naive(parted, models[1], blocks, 2, high):
        expected = walked.generate("a lamp")
    assert torch.equal(found, expected)
    plain = walked.generate("a lamp")
    assert not torch.equal(found, plain)
    unpatched = TwoExpertsToy()
    unpatched.boundary = boundary
    assert torch.equal(unpatched.generate("a lamp"), plain)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (options("paper", task="s2v-14B"), "--task s2v-14B: audio, poses or faces"),
        (options(None, "new.profile", task="animate-14B"), "--task animate-14B: audio"),
        (options(None, "new.profile", task="i2v-A14B"), "i2v-A14B guides each of its two models"),
        (options(None, "new.profile", task="ti2v-5B", image="a.png"), "sets the picture's frame"),
        (
            options(None, "new.profile", i2v_mode=True, i2v_condition_type="token_replace"),
            "sets the picture's frame",
        ),
    ],
)
def test_what_no_plan_or_profile_serves_is_refused_before_a_weight_is_loaded(
    args: Namespace, said: str
) -> None:
    with pytest.raises((PlanError, ProfileError), match=said):
        check_options(args)


def test_a_pipeline_without_a_known_model_is_refused_by_name() -> None:
    pipeline = WanToy()
    del pipeline.model
    wan_run(pipeline, options("paper"))
    with pytest.raises(PlanError, match="WanToy has neither a model nor high_noise_model"):
        pipeline.generate("a lamp")
