"""Encodes the training clips once: latents, prompts and the statistics that normalise latents.

With pictures also the latents that an image-to-video model gets: of the first frame, then grey.
"""

import json
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from miniatures import clips, optim
from miniatures.autoencoder import Autoencoder, start_of, to_tensor

SHAPE = (16, 9, 16, 16)
HELD_OUT = 48
PICTURES = "_pictures"  # behind the name of a split: its first frames' latents
TOGETHER = 2  # one thread has no fast convolution for a single clip


@torch.no_grad()
def encode(
    kind: Autoencoder, run: optim.Run, count: int, checkpoint: Path, pictures: bool = False
) -> None:
    """Writes train.npy, held_out.npy, their prompts and statistics.json.

    Without a trained autoencoder in `run` the one in `checkpoint` encodes.
    """
    rank, world = optim.start_processes(run.device)
    model = start_of(kind, run.folder, checkpoint).eval().requires_grad_(False).to(run.device)
    for name, total in (("train", count), ("held_out", HELD_OUT)):
        for suffix in ("", PICTURES)[: 1 + pictures]:
            _encode_split(kind, run, name + suffix, model, range(total)[rank::world], total)
    if world > 1:
        dist.barrier()
    if rank == 0:
        _write_statistics(run.folder)


def _encode_split(
    kind: Autoencoder,
    run: optim.Run,
    name: str,
    model: nn.Module,
    indices: range,
    count: int,
) -> None:
    path, held_out = run.folder / f"{name}.npy", name.startswith("held_out")
    if indices.start == 0:
        if not path.exists() or len(np.load(path, mmap_mode="r")) != count:
            np.lib.format.open_memmap(path, "w+", np.float16, (count, *SHAPE)).flush()
        prompts = [clips.prompt_of(run.seed, i, held_out) for i in range(count)]
        (run.folder / f"{name}.json").write_text(json.dumps(prompts))
    if dist.is_initialized():
        dist.barrier()
    latents = np.load(path, mmap_mode="r+")
    missing = [i for i in indices if not latents[i].any()]  # the others are from a stopped run
    groups = [missing[i : i + TOGETHER] for i in range(0, len(missing), TOGETHER)]
    for group in tqdm(groups, desc=name, disable=indices.start > 0 or None, mininterval=10):
        drawn = [to_tensor(clips.clip(run.seed, i, held_out).frames) for i in group]
        videos = torch.stack(drawn).to(run.device)
        if name.endswith(PICTURES):
            videos[:, :, 1:] = 0
        with optim.mixed_precision(run.device):
            mean, _ = kind.encode(model, videos)
        latents[group] = mean.float().cpu().numpy()
    latents.flush()


def _write_statistics(run: Path) -> None:
    latents = np.load(run / "train.npy", mmap_mode="r")[:512].astype(np.float64)
    statistics = {
        "latents_mean": latents.mean(axis=(0, 2, 3, 4)).round(4).tolist(),
        "latents_std": latents.std(axis=(0, 2, 3, 4)).round(4).tolist(),
    }
    (run / "statistics.json").write_text(json.dumps(statistics, indent=2) + "\n")
