"""Makers of small clips for tests of the batch: no model, and what can go wrong."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from profiling_core.commands.batch.clips import Clip, Made
from profiling_core.commands.batch.jobs import Job
from profiling_core.errors import BatchError

SECONDS = "seconds="  # in a prompt: how long it takes


def clip_of(prompt: str, number: int = 0, plan: str | None = None, model: str = "m") -> Clip:
    job = Job(prompt=prompt, tree="wan", seed=number, plan=plan)
    key = f"{abs(hash((prompt, number, plan))):016x}"
    return Clip(job, key, f"{prompt}-{number}", model, plan or "full")


class Writer:
    """Stands for the model that saves its clip."""

    def save(self, video: torch.Tensor, path: Path) -> None:
        path.write_bytes(video.numpy().tobytes())


class ToyMaker:
    """A clip whose pixels follow from prompt, seed and plan.

    Prompts: "poison" raises, "die once DIR" kills its process the first time, "seconds=N" takes so
    long; every clip leaves a line in the file that TOY_LOG names.
    """

    def __init__(self) -> None:
        self.ranks: Any = None

    def make(self, clip: Clip, write: Any) -> Made | None:
        prompt = clip.job.prompt
        if prompt == "poison":
            raise BatchError("this prompt is poison")
        if prompt.startswith("die once ") and not (mark := Path(prompt[9:])).exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if SECONDS in prompt:
            time.sleep(float(prompt.split(SECONDS)[1].split()[0]))
        generator = torch.Generator().manual_seed(len(prompt) * 1000 + clip.job.seed)
        video = torch.rand(3, 2, 16, 16, generator=generator) * 2 - 1
        if clip.job.plan is not None:
            video = video + 0.01
        if self.ranks is not None and self.ranks.world > 1:
            dist.all_reduce(video)
            if not self.ranks.first:
                return None
        write(Writer(), video)
        if log := os.environ.get("TOY_LOG"):
            with open(log, "a") as file:
                file.write(f"{prompt} {os.getpid()} {os.getenv('OMP_WAIT_POLICY')}\n")
        return Made(0.1, 0.1, 0.0, 5, 10, 2, 0, "toy")
