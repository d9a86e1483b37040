"""Plans on the grid of a tiny diffusers pipeline's own scheduler."""

from profiling_core.loops.diffusers_models import fingerprint_of, loop_models
from profiling_core.loops.scheduler_grid import grid_of, when_set
from profiling_core.plan import CachePlan
from tiny_pipelines import STEPS, Tiny

RELEASE_LIKE = (0, 1, 2, 5, 8)


def made_plan(tiny: Tiny, sites: list[dict], steps: int = STEPS) -> CachePlan:
    """A plan on the grid of the pipeline's own scheduler."""
    seen = {}

    def note(scheduler, given):
        seen["grid"] = grid_of(scheduler, given)

    with when_set(tiny.pipe.scheduler, note):
        tiny.latents(num_inference_steps=steps)
    grid = seen["grid"]
    model = fingerprint_of(loop_models(tiny.pipe).models[0])
    return CachePlan.build(
        name="made",
        model=model,
        steps=grid.steps,
        sigmas=grid.sigmas,
        solver=grid.solver,
        shift=grid.shift,
        sites=sites,
        provenance={"made_by": "tests", "source": "by hand"},
    )


def intervals(tiny: Tiny, skip: str = "hold", computed=RELEASE_LIKE, runs=((1, 2),)) -> list[dict]:
    """A run of blocks in every list."""
    steps = {"cond": computed, "uncond": computed}
    more = {"compute_steps": steps, "intervals": runs, "skip": skip}
    lists = loop_models(tiny.pipe).lists
    return [{"kind": "intervals", "block_list": name, **more} for name in lists]


def prediction(skip: str, computed=RELEASE_LIKE) -> list[dict]:
    steps = {"cond": computed, "uncond": computed}
    return [{"kind": "prediction", "compute_steps": steps, "skip": skip}]
