"""xDiT's layers by environment: their own errors in full, the self-check, what they refuse."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

from profiling_core.errors import ParallelError
from profiling_core.parallel.ranks import Ranks
from profiling_core.parallel.sequence import SequenceShare
from profiling_core.parallel.xdit import VARIABLE, LayerShare, sequence_share
from wan.attention import attention

CPU = torch.device("cpu")


def fake_xfuser(monkeypatch: pytest.MonkeyPatch, layer: type) -> dict[str, object]:
    """Modules under xfuser's names with `layer` as its attention; what was set up."""
    seen: dict[str, object] = {}
    distributed, layers = ModuleType("xfuser.core.distributed"), ModuleType("layers")
    distributed.init_distributed_environment = lambda **given: seen.update(given)
    distributed.initialize_model_parallel = lambda **given: seen.update(given)
    layers.xFuserLongContextAttention = layer
    for name in ("xfuser", "xfuser.core"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "xfuser.core.distributed", distributed)
    monkeypatch.setitem(sys.modules, "xfuser.core.long_ctx_attention", layers)
    return seen


class Right:
    """What xfuser's layer computes in one process."""

    joint: tuple[Tensor, ...] = ()

    def __call__(self, module: None, q: Tensor, k: Tensor, v: Tensor, **given: object) -> Tensor:
        assert module is None and given["causal"] is False and given["dropout_p"] == 0.0
        if "joint_tensor_query" in given:
            assert given["joint_strategy"] == "rear"
            names = ("query", "key", "value")
            q, k, v = (
                torch.cat((x, given[f"joint_tensor_{n}"]), dim=1)
                for x, n in zip((q, k, v), names, strict=True)
            )
        return attention(q, k, v)


class Wrong(Right):
    def __call__(self, *args: object, **given: object) -> Tensor:
        return super().__call__(*args, **given) * 1.01


class Broken:
    def __init__(self) -> None:
        raise ImportError("cannot import name 'update_npu_out' from 'yunchang.ring.utils'")


def test_ours_is_the_usual_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert type(sequence_share(Ranks(), attention, CPU)) is SequenceShare
    monkeypatch.setenv(VARIABLE, "usp")
    with pytest.raises(ParallelError, match=f"{VARIABLE}=usp: take own, yunchang or xfuser"):
        sequence_share(Ranks(), attention, CPU)


def test_a_layer_takes_image_and_text(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = fake_xfuser(monkeypatch, Right)
    monkeypatch.setenv(VARIABLE, "xfuser")
    share = sequence_share(Ranks(), attention, CPU)
    assert isinstance(share, LayerShare)
    assert (seen["ulysses_degree"], seen["ring_degree"], seen["world_size"]) == (1, 1, 1)
    q, k, v = torch.randn(3, 1, 12, 2, 8)
    share.take(q[:, :9])
    assert torch.equal(share.attention(q, k, v, None, 3), attention(q, k, v))


def test_a_broken_pair_is_named_with_its_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_xfuser(monkeypatch, Broken)
    monkeypatch.setenv(VARIABLE, "xfuser")
    says = r"xfuser 0\.4\.5 with yunchang 0\.6\.4: ImportError: cannot import name 'update_npu_out'"
    with pytest.raises(ParallelError, match=says):
        sequence_share(Ranks(), attention, CPU)


def test_a_layer_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_xfuser(monkeypatch, Wrong)
    monkeypatch.setenv(VARIABLE, "xfuser")
    with pytest.raises(ParallelError, match=r"is off by 0\.01 on random numbers: leave"):
        sequence_share(Ranks(), attention, CPU)


def test_what_a_layer_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_xfuser(monkeypatch, Right)
    share = LayerShare(Ranks(), attention, "xfuser", CPU)
    q = torch.randn(1, 10, 2, 8)
    share.take(q[:, :9])
    with pytest.raises(ParallelError, match="9 tokens do not divide by 1"):
        share.attention(q, q, q)
    share.take(q)
    with pytest.raises(ParallelError, match="it cannot leave out keys"):
        share.attention(q, q, q, (5,))
