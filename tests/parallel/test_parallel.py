"""Several processes make the clip of one: exact, with the plan's number of collectives."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from forked import launched
from profiling_core.parallel.degrees import Degrees
from profiling_core.parallel.sequence import _Merged, with_log_sum
from tree_paths import ROOT
from wan.attention import attention

BLOCKS = {"wan": 12, "pictures": 12, "sources": 12, "hunyuan": 14}
ENCODER_UNITS = 2  # blocks of a text encoder of Wan's, each gathered once a prompt
CASES = {
    2: (
        "wan:ulysses=2",
        "wan:ring=2",
        "wan:cfg=2",
        "wan:ulysses=2,fsdp=1",
        "pictures:ulysses=2,fsdp=1",
        "pictures:ring=2",
        "pictures:cfg=2",
        "sources:ulysses=2,fsdp=1",
        "sources:ring=2",
        "sources:cfg=2",
        "hunyuan:ulysses=2",
        "hunyuan:ring=2",
        "hunyuan:cfg=2",
    ),
    4: (
        "wan:ring=2,cfg=2,fsdp=1",
        "hunyuan:ulysses=2,ring=2",
    ),
}
PLANS = (None, "release", "balanced")
PROFILED = {"wan:ulysses=2", "wan:cfg=2", "pictures:cfg=2", "hunyuan:ring=2", "hunyuan:cfg=2"}


@pytest.fixture(scope="module", params=(2, 4))
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[list]:
    """What every rank saw in every case of one launch."""
    path = tmp_path_factory.mktemp("parallel") / "found.json"
    cases = ROOT / "tests" / "lib" / "parallel_cases.py"
    launched(request.param, cases, path, *CASES[request.param])
    return json.loads(path.read_text())


def numbers_of(case: str) -> dict[str, int]:
    return {k: int(v) for k, v in (pair.split("=") for pair in case.split(":")[1].split(","))}


def clips(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if "plan" in row]


def degrees_of(case: str) -> Degrees:
    return Degrees(**{k: v for k, v in numbers_of(case).items() if k != "fsdp"})


@pytest.mark.slow
def test_the_latents_are_those_of_one_process(found: list[list[dict[str, Any]]]) -> None:
    rows = clips(found[0])
    assert [row["plan"] for row in rows] == list(PLANS) * (len(rows) // len(PLANS))
    for row in rows:
        degrees = degrees_of(row["case"])
        assert row["error"] < 1e-5, row
        # a ring merges in another order, and text of a batch is padded that is not padded alone
        if degrees.ring == 1 and not (row["case"].startswith("hunyuan") and degrees.cfg == 2):
            assert row["equal"], row


LOOSE = {"attention_maps": 1e-3, "sensitivity": 1e-4}  # of 16 bits; a small error, much amplified


@pytest.mark.slow
def test_a_profile_of_several_processes_is_that_of_one(found: list[list[dict[str, Any]]]) -> None:
    rows = [row for row in found[0] if row["case"].startswith("profile:")]
    assert len(rows) == len(PROFILED.intersection(row["case"] for row in clips(found[0])))
    for row in rows:
        exact = "hunyuan" not in row["case"]
        for name, error in row["errors"].items():
            if name == "block_flops" and row["case"].endswith("hunyuan:cfg=2"):
                assert error < 0.05, row  # no row of text that pads the shorter prompt
            elif name != "block_seconds":
                assert error < (1e-12 if exact else LOOSE.get(name, 1e-5)), (name, row)


@pytest.mark.slow
def test_all_ranks_decide_alike(found: list[list[dict[str, Any]]]) -> None:
    for rows in zip(*map(clips, found), strict=True):
        names = ["hash", "collectives", "calls", "block_runs"]
        if not (
            rows[0]["case"].startswith("hunyuan") and "cfg" in rows[0]["case"]
        ):  # prompts of two lengths there
            names.append("peak_bytes")
        for name in names:
            assert len({json.dumps(row[name]) for row in rows}) == 1, (name, rows[0]["case"])


@pytest.mark.slow
def test_collectives_are_the_plans_number(found: list[list[dict[str, Any]]]) -> None:
    first_of_fsdp = {}
    for row in clips(found[0]):
        degrees, calls = degrees_of(row["case"]), row["calls"]
        runs = row["block_runs"] + row["hints"] * calls
        fsdp = numbers_of(row["case"]).get("fsdp", 0)
        gathers = calls * ((degrees.sequence > 1) + (degrees.cfg > 1))
        if fsdp:  # a block's weights before it runs; the rest of a model once, then it stays
            rest = 2 if row["case"] not in first_of_fsdp else 0
            first_of_fsdp[row["case"]] = True
            gathers += runs + 2 * ENCODER_UNITS + rest
        assert row["collectives"] == {
            "all_to_all": 2 * runs * (degrees.ulysses > 1),
            "all_gather": gathers,
            "send": runs * (degrees.ring - 1),
        }, row
        full = row["block_runs_full"]
        runs = row["block_runs"]
        assert runs == full if row["plan"] is None else runs < full
        assert full % BLOCKS[row["case"].split(":")[0]] == 0


@pytest.mark.slow
def test_a_decode_in_tiles_is_that_of_one_process(found: list[list[dict[str, Any]]]) -> None:
    for rank, rows in enumerate(found):
        decodes = [row for row in rows if row["case"].endswith(":decode")]
        assert len(decodes) == 2
        for row in decodes:
            assert (row["has"], row["equal"]) == (rank == 0, rank == 0), row


@pytest.mark.slow
def test_tokens_need_not_divide(found: list[list[dict[str, Any]]]) -> None:
    shares = [row for rows in found for row in rows if row["case"].startswith("share:")]
    assert len(shares) >= 12 * len(found)
    assert all(row["error"] < 1e-6 for row in shares), shares


@pytest.mark.parametrize("blocks", [2, 8])
def test_a_ring_in_bf16_loses_no_more_than_one_call(blocks: int) -> None:
    """Its log-sum-exp stays fp32."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn((3, 1, 4096, 2, 64), generator=generator)
    exact = attention(q, k, v)
    q, k, v = (x.bfloat16() for x in (q, k, v))
    merged = _Merged(q)
    for keys, values in zip(k.chunk(blocks, dim=1), v.chunk(blocks, dim=1), strict=True):
        merged.add(0, *with_log_sum(q, keys, values))
    found = merged.output.bfloat16().float()
    once = attention(q, k, v).float()
    off = [float((x - exact).norm() / exact.norm()) for x in (found, once)]
    assert off[0] < 1.15 * off[1] and off[1] < 6e-3, off


@pytest.mark.slow
def test_yunchangs_layer_gives_the_same(found: list[list[dict[str, Any]]]) -> None:
    layers = [row for rows in found for row in rows if row["case"].startswith("layer:")]
    assert len(layers) == 2 * len(found)
    assert all(row["error"] < 1e-6 for row in layers), layers
