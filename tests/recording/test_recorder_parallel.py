"""Ranks that share a clip record what one process records; see also tests/parallel."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
import torch.nn.functional as F
from torch import Tensor, nn

from profiling_core.errors import ProfileError
from profiling_core.plan.schema import ModelFingerprint
from profiling_core.profile.profile import Profile, Settings
from profiling_core.recording.recorder import Recorder

WIDTH, HEADS, CHANNELS, GRID = 16, 4, 4, (2, 3, 4)
TOKENS, RANKS, DEPTH, SIGMAS = 24, 2, 3, (0.9, 0.6, 0.3)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(*heads_first).transpose(1, 2)


def gathered(x: Tensor, dim: int, group: dist.ProcessGroup | None) -> Tensor:
    if group is None:
        return x
    parts = [torch.empty_like(x) for _ in range(RANKS)]
    dist.all_gather(parts, x.contiguous(), group=group)
    return torch.cat(parts, dim)


class Block(nn.Module):
    """Tokens are split between blocks, heads in attention (ring: tokens there too)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Parameter(torch.randn(3, WIDTH, WIDTH) * 0.5)
        self.out = nn.Parameter(torch.randn(WIDTH, WIDTH) * 0.3)
        self.group: dist.ProcessGroup | None = None
        self.ring = False

    def forward(self, x: Tensor) -> Tensor:
        whole = gathered(x, 1, self.group)
        q, k, v = ((whole @ w).unflatten(-1, (HEADS, -1)) for w in self.qkv)
        if self.group is None:
            return x + attention(q, k, v).flatten(2) @ self.out
        rank = dist.get_rank(self.group)
        if self.ring:
            q, k, v = (part.chunk(RANKS, dim=1)[rank] for part in (q, k, v))
            return x + attention(q, k, v).flatten(2) @ self.out
        q, k, v = (part.chunk(RANKS, dim=2)[rank] for part in (q, k, v))
        done = gathered(attention(q, k, v), 2, self.group).flatten(2)
        return x + done.chunk(RANKS, dim=1)[rank] @ self.out


class Toy(nn.Module):
    """Latents (1, C, F, H, W) to a prediction of that shape, whole on every rank."""

    patch_size, dim = (1, 1, 1), WIDTH

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Parameter(torch.randn(CHANNELS, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.group: dist.ProcessGroup | None = None

    def share(self, group: dist.ProcessGroup, ring: bool) -> Toy:
        self.group = group
        for block in self.blocks:
            block.group, block.ring = group, ring
        return self

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2) @ self.embed + t.sin()
        if self.group is not None:
            tokens = tokens.chunk(RANKS, dim=1)[dist.get_rank(self.group)]
        for block in self.blocks:
            tokens = block(tokens)
        whole = gathered(tokens, 1, self.group) @ self.embed.T / WIDTH
        return whole.transpose(1, 2).view_as(x)


def record(model: Toy, group: dist.ProcessGroup | None, path: Path | None = None) -> Profile:
    fingerprint = ModelFingerprint(
        family="toy", name="toy", block_lists={"blocks": DEPTH}, width=WIDTH
    )
    recorder = Recorder(
        path,
        Settings(attention_every=1, delta_tokens=TOKENS),
        model=fingerprint,
        steps=len(SIGMAS),
        sigmas=SIGMAS,
        solver="euler",
        shift=1.0,
        branches=("cond",),
    )
    if group is not None:
        recorder.share(RANKS, dist.get_rank())
    x = torch.randn(1, CHANNELS, *GRID, generator=torch.Generator().manual_seed(1))
    with recorder.attached(model), torch.no_grad():
        for step, (sigma, after) in enumerate(zip(SIGMAS, (*SIGMAS[1:], 0.0), strict=True)):
            recorder.begin(step, "cond")
            x = x + (after - sigma) * model(x, torch.tensor(sigma))
    return recorder.finish(x, prompt="p", seed=1)


def _rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    group = dist.group.WORLD
    try:
        record(Toy().share(group, ring=False), group, folder / "two.profile")
        record(Toy().share(group, ring=True), group, folder / "ring.profile")
    except ProfileError as error:
        (folder / f"error{rank}").write_text(str(error))
    finally:
        dist.barrier()  # gloo may abort where one rank leaves while another still talks
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of two processes: a profile with Ulysses, an error with ring attention."""
    folder = tmp_path_factory.mktemp("ranks")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.multiprocessing.start_processes(_rank, (folder,), RANKS, start_method="fork")
    return folder


def test_two_ranks_record_what_one_records(ranks: Path) -> None:
    two, one = Profile.load(ranks / "two.profile"), record(Toy(), None)
    assert len(two.runs) == 1  # one rank writes
    assert two.subject == one.subject
    for name, array in one.arrays.items():
        if name.startswith("delta_gram."):  # packed as cosines of three digits
            lengths = np.sqrt(np.diagonal(array, axis1=1, axis2=2))
            cosines = (two.arrays[name] - array) / (lengths[:, :, None] * lengths[:, None, :])
            assert np.abs(cosines).max() < 2e-3, name
        elif name not in ("block_seconds", "sensitivity"):
            assert np.allclose(two.arrays[name], array, rtol=1e-3, atol=1e-5), name


def test_ring_attention_is_refused(ranks: Path) -> None:
    for rank in range(RANKS):
        text = (ranks / f"error{rank}").read_text()
        assert "block 0 attends to 12 of 24 tokens: this ring attention" in text
    assert not (ranks / "ring.profile").exists()


@pytest.mark.parametrize("count", [1, TOKENS // 2])
def test_a_sample_of_tokens_is_shared_out(count: int) -> None:
    from profiling_core.recording.block_hooks import sampled_tokens

    kept = sampled_tokens(TOKENS, count)
    assert len(set(kept.tolist())) == count and kept.tolist() == sorted(kept.tolist())
    assert torch.equal(kept, sampled_tokens(TOKENS, count))
