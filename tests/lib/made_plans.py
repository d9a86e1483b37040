"""Random plans for property tests."""

from hypothesis import strategies as st

from profiling_core.plan import CachePlan
from toys import intervals, prediction, toy_plan

SKIPS = ("hold", "linear", "weights")


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

    def weighted(site: dict) -> dict:
        if site["skip"] == "weights":
            site["weights"] = {}
            for branch, own in site["compute_steps"].items():
                site["weights"][branch] = {}
                for step in set(range(steps)) - set(own):
                    most = min(3, sum(c < step for c in own))
                    numbers = st.floats(-3, 3, allow_nan=False)
                    row = draw(st.lists(numbers, min_size=1, max_size=most))
                    site["weights"][branch][str(step)] = row
        return site

    sites = []
    inside = None
    if draw(st.booleans()):
        inside = computed()
        skip = draw(st.sampled_from((*SKIPS, "corrected")))
        sites.append(weighted(prediction(inside, skip)))
    cuts = sorted(draw(st.sets(st.integers(0, depth), max_size=6)))
    runs = [[a, b - 1] for a, b in zip(cuts[::2], cuts[1::2], strict=False)]
    if runs:
        sites.append(weighted(intervals(computed(inside), runs, draw(st.sampled_from(SKIPS)))))
    return toy_plan(sites, steps, {"blocks": depth})
