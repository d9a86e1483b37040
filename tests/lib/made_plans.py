"""Random plans for property tests."""

from hypothesis import strategies as st

from profiling_core.plan import CachePlan
from toys import intervals, prediction, toy_plan

SKIPS = ("hold", "linear")


@st.composite
def plans(draw: st.DrawFn) -> CachePlan:
    steps = draw(st.integers(1, 14))
    depth = draw(st.integers(1, 7))
    branches = draw(st.sampled_from([("cond",), ("cond", "uncond")]))

    def computed(within: dict | None = None) -> dict[str, list[int]]:
        found = {}
        for branch in branches:
            free = st.sampled_from(within[branch] if within else range(steps))
            found[branch] = sorted({0, *draw(st.lists(free, max_size=steps))})
        return found

    sites = []
    inside = None
    if draw(st.booleans()):
        inside = computed()
        skip = draw(st.sampled_from((*SKIPS, "corrected")))
        sites.append(prediction(inside, skip))
    cuts = sorted(draw(st.sets(st.integers(0, depth), max_size=6)))
    runs = [[a, b - 1] for a, b in zip(cuts[::2], cuts[1::2], strict=False)]
    if runs:
        sites.append(intervals(computed(inside), runs, draw(st.sampled_from(SKIPS))))
    return toy_plan(sites, steps, {"blocks": depth})
