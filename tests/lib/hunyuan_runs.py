"""A tiny HunyuanVideo pipeline, its clip and its plans: fixtures and parts of several tests."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hyvideo.checks
import hyvideo.pipeline
from hunyuan_toys import TINY, TINY_DIT
from hyvideo.pipeline import HunyuanVideo
from tree_cases import PROMPT, STEPS, hunyuan_case

BLOCKS = TINY_DIT["mm_double_blocks_depth"] + TINY_DIT["mm_single_blocks_depth"]
CLIP = {"size": (32, 32), "video_length": 5, "infer_steps": STEPS, "seed": 3, "progress": False}
CASE = hunyuan_case(Path())  # for its plans alone
tiny_plan, prediction = CASE.plan, CASE.prediction
TEXT, IMAGE = 9, 2 * 2 * 2  # tokens: the words and the template's end; frames x rows x columns


@pytest.fixture(scope="module", autouse=True)
def official_types() -> Iterator[None]:
    """bf16 where it is asked for, also on a processor that has to emulate it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hyvideo.checks, "emulates", lambda dtype, device: False)
        yield


@pytest.fixture(scope="module")
def pipeline(hunyuan_checkpoint: Path) -> HunyuanVideo:
    return HunyuanVideo(TINY, hunyuan_checkpoint, "cpu")


@pytest.fixture(scope="module")
def full(pipeline: HunyuanVideo) -> Tensor:
    return pipeline.generate(PROMPT, **CLIP)


def intervals(*steps: int, kind: str = "single", runs: tuple = ((1, 2),)) -> dict[str, Any]:
    return {
        "kind": "intervals",
        "block_list": f"{kind}_blocks",
        "intervals": [list(run) for run in runs],
        "compute_steps": {"cond": list(steps)},
        "skip": "hold",
    }


def calls_of(pipeline: HunyuanVideo, **changes: Any) -> list[dict[str, Any]]:
    """The keyword arguments of every model call of one clip."""
    seen: list[dict[str, Any]] = []

    def remember(model: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        assert not args
        seen.append(kwargs)

    hook = pipeline.model.register_forward_pre_hook(remember, with_kwargs=True)
    try:
        pipeline.generate(PROMPT, **{**CLIP, **changes})
    finally:
        hook.remove()
    return seen


PLANS = {
    "single": (intervals(0, 1, 3),),
    "double": (intervals(0, 1, 3, kind="double", runs=((0, 1),)),),
    "both": (intervals(0, 1, 3), intervals(0, 2, kind="double", runs=((0, 0), (1, 1)))),
    "hold": (prediction(0, 1, 3, 5, skip="hold"),),
    "linear": (prediction(0, 1, 3, 5, skip="linear"),),
}
