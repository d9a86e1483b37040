"""Teaches the miniature's guidance embedder what guided sampling does, without a second call.

Classifier-free guidance of strength w predicts v(empty) + w (v(prompt) - v(empty)). The student
starts as the trained transformer, gets w through its guidance embedder and learns that prediction,
as the official distilled checkpoint was made.
"""

import numpy as np
import torch
from loguru import logger
from torch import Tensor

from miniatures import flow, optim
from miniatures.hunyuan import dit

STRENGTHS = (1.0, 8.0)


def train(
    run: optim.Run,
    batch: int,
    compiled: bool,
    lr: float = 5e-4,
) -> None:
    """Distils `dit.pt` of the run into `distil.pt`."""
    rank, world = optim.start_processes(run.device)
    (teacher, trained_steps), (student, _) = (dit.load(run.folder / "dit.pt") for _ in range(2))
    teacher, student = teacher.to(run.device).requires_grad_(False), student.to(run.device).train()
    clock = run.clock()
    average = optim.Average(student, 0.99)
    opts = flow.optimizers(student, dit.matrices_of(student), lr)
    data, check = flow.splits(run)
    batches = flow.Batches(data, batch, rank, world)
    predict = dit.Flow(dit.Prompts(run.folder / "encoders", run.seed, run.device), run.device)
    for model in (teacher, student):
        dit.prepare(model, run.device, compiled)
    logger.info(f"teacher of step {trained_steps}")

    def guided(noisy: Tensor, sigma: Tensor, prompts: list[str], scale: Tensor) -> Tensor:
        """The teacher's guided prediction, both branches in one batch."""
        with torch.no_grad():
            both = predict(
                teacher,
                torch.cat((noisy, noisy)),
                torch.cat((sigma, sigma)),
                [*prompts, *[""] * len(prompts)],
                torch.ones(2 * len(prompts), device=noisy.device),
            )
        cond, empty = both.chunk(2)
        return empty + scale.view(-1, 1, 1, 1, 1) * (cond - empty)

    def error(
        model: torch.nn.Module,
        x0: Tensor,
        noise: Tensor,
        sigma: Tensor,
        prompts: list[str],
        scale: Tensor,
    ) -> tuple[Tensor, Tensor]:
        noisy = flow.noisy_latents(x0, noise, sigma)
        target = guided(noisy, sigma, prompts, scale)
        return predict(model, noisy, sigma, prompts, scale), target

    def batch_loss(rng: np.random.Generator, progress: float) -> Tensor:
        x0, noise, sigma, prompts, _ = batches.draw(rng)
        scale = torch.from_numpy(rng.uniform(*STRENGTHS, len(prompts))).float().to(x0.device)
        # weighed by the strength, whose predictions vary more
        shown, target = error(student, x0, noise, sigma, prompts, scale)
        per_clip = (shown - target).square().mean(dim=(1, 2, 3, 4))
        return (per_clip / scale).mean()

    def report() -> float:
        scale = torch.linspace(*STRENGTHS, 16, device=run.device)
        return flow.held_out_loss(lambda *clip: error(average.model, *clip, scale), check, count=16)

    optim.fit(
        student,
        average,
        opts,
        batch_loss,
        run.folder / "distil.pt",
        run.seed + 1,
        clock,
        warmup=20,
        flat=0.2,
        report=report,
    )
