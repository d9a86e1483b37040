"""Schedules: equation 15 in both readings, the ablations, and what bad values give."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiling_core.plan import schedule
from profiling_core.plan.schedule import RELEASED_STEPS, average, explicit, inverse, stepwise

WARMUP = tuple(range(6))


def test_walk_is_the_list_that_the_docstring_gives():
    assert stepwise() == (*WARMUP, 6, 18, 27, 34, 40, 44, 47)
    assert "6 18 27 34 40 44 47 " in schedule.__doc__


def test_modulo_is_the_list_that_the_docstring_gives():
    assert stepwise(reading="modulo") == (*WARMUP, 11, 18, 24, 28, 35, 40, 45, 48)
    assert "11 18 24 28 35 40 45 48 " in schedule.__doc__


def test_released_list_starts_like_the_walk_and_is_kept_as_it_is():
    assert RELEASED_STEPS[:2] == stepwise()[6:8]
    assert "6 18 26 32 38 42 46 48 " in schedule.__doc__


def test_inverse_grows_and_average_stays():
    def gaps(steps):
        return [b - a for a, b in pairwise(steps[6:])]

    assert gaps(inverse()) == sorted(gaps(inverse()))
    assert set(gaps(average())) == {7}


@given(
    steps=st.integers(2, 200), data=st.data(), make=st.sampled_from([stepwise, inverse, average])
)
def test_every_schedule_computes_the_warmup_ascends_and_stays_inside(steps, data, make):
    warmup = data.draw(st.integers(1, steps - 1))
    shortest = data.draw(st.integers(1, 20))
    longest = data.draw(st.integers(shortest, 40))
    reading = data.draw(st.sampled_from(["walk", "modulo"]))
    computed = make(steps, warmup, longest, shortest, reading)
    assert computed[:warmup] == tuple(range(warmup))
    assert explicit(steps, computed) == computed
    if make is stepwise and reading == "walk":
        gaps = [b - a for a, b in pairwise(computed[warmup:])]
        assert gaps == sorted(gaps, reverse=True) and all(g <= longest for g in gaps)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: stepwise(steps=0), "steps is 0"),
        (lambda: stepwise(warmup=0), "warm-up of 0 steps, expected 1..49"),
        (lambda: stepwise(longest=2, shortest=3), "Tmax 2, Tmin 3"),
        (lambda: stepwise(reading="other"), "reading 'other'"),
        (lambda: explicit(5, [0, 2, 2]), "2 follows 2"),
        (lambda: explicit(5, [0, 5]), "step 5 lies outside 0..4"),
    ],
)
def test_bad_values_are_named(call, text):
    with pytest.raises(ValueError, match=text):
        call()
