"""benchmarks/speed/scaling*.py: the model's limits, its fits and its tables; no runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.speed import scaling
from benchmarks.speed.scaling import memory_table
from benchmarks.speed.scaling_model import (
    GPUS,
    H100,
    HUNYUAN,
    PUBLISHED_SECONDS,
    PUBLISHED_SPEEDUPS,
    WAN_14B,
    Clip,
    Machine,
    Rest,
    clip_seconds,
    fit_paper,
    fit_seconds,
    grid_tiles,
    loop_seconds,
    official_tiles,
    sent,
    speedups,
)
from profiling_core.parallel.degrees import Degrees

CLIP = Clip(720, 1280, 129)


def test_tokens_and_flops_are_the_known_ones() -> None:
    assert (CLIP.tokens, Clip(480, 832, 81).tokens) == (118800, 32760)
    assert HUNYUAN.flops(CLIP) == pytest.approx(12e15, rel=0.02)


def test_without_communication_ranks_divide_the_loop() -> None:
    free = Machine("free", H100.flops, H100.link * 1e9, latency=0.0)
    one, eight = (loop_seconds(HUNYUAN, CLIP, Degrees(ulysses=n), free) for n in (1, 8))
    assert one / eight == pytest.approx(8, rel=1e-6)


def test_a_plan_divides_the_loop_and_not_the_rest() -> None:
    rest, degrees = Rest(10.0, 0.5), Degrees(ulysses=4)
    plain, planned = (clip_seconds(WAN_14B, CLIP, degrees, H100, rest, s) for s in (1.0, 2.0))
    around = rest.seconds(WAN_14B, CLIP, 4, False)
    assert plain - around == pytest.approx(2 * (planned - around))
    assert max(speedups(WAN_14B, CLIP, H100, rest, 2.0)) < 2.0


def test_bytes_are_those_of_the_layers() -> None:
    ulysses, ring = (sent(WAN_14B, CLIP, Degrees(**{n: 2})) for n in ("ulysses", "ring"))
    half = CLIP.tokens / 2 * WAN_14B.width * 2  # bytes of one tensor of a rank
    gather = CLIP.tokens / 2 * 64 * 4
    assert ulysses == 40 * 4 * half / 2 + gather and ring == 40 * 2 * half + gather
    assert sent(WAN_14B, CLIP, Degrees(cfg=2)) == 0


@pytest.mark.parametrize("tiles", [official_tiles, grid_tiles])
def test_more_ranks_decode_no_slower(tiles) -> None:
    shares = [tiles(CLIP, n) for n in GPUS]
    assert shares == sorted(shares, reverse=True) and shares[-1] < 0.25


def test_fits_explain_what_was_published() -> None:
    fit = fit_seconds()
    assert fit.error < 0.06 and 0.28 < fit.compute < 0.5
    assert fit.seconds == pytest.approx(PUBLISHED_SECONDS, rel=0.08)
    paper = fit_paper(fit)
    assert paper.error < 0.16
    first = next(iter(PUBLISHED_SPEEDUPS))
    assert paper.modelled[first] == pytest.approx(PUBLISHED_SPEEDUPS[first], abs=0.12)


def test_tables_and_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["scaling.py", "--out", str(tmp_path)])
    assert scaling.main() == 0
    said = capsys.readouterr().out
    assert "Wan2.1 14B 1280x720, 81 frames: decode on all" in said
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
    assert memory_table(Clip(480, 832, 81)).count("\n") == 8
