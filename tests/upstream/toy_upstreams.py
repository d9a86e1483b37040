"""Loops in the way of the upstream repositories, in our own words, around tiny models of ours."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from hunyuan_toys import tiny_dit as tiny_hunyuan
from hyvideo.rope import rope_tables
from wan_toys import tiny_dit

STEPS, SIZE = 8, (16, 2, 4, 4)


class FlowToyScheduler(UniPCMultistepScheduler):
    """Made by the loop itself; it gets the shift when its timesteps are set."""

    def set_timesteps(self, count: int, device: Any = None, shift: float = 1.0) -> None:
        self.register_to_config(flow_shift=shift)
        super().set_timesteps(count, device)


class WanToy:
    """`generate` calls the model twice per step, cond first."""

    def __init__(self, config: Any = None) -> None:
        self.model, self.decoded = tiny_dit(num_layers=6), []

    def generate(
        self,
        input_prompt: str,
        shift: float = 5.0,
        sampling_steps: int = STEPS,
        guide_scale: float = 3.0,
        seed: int = 3,
        fails_at: int | None = None,
        first: int = 0,
    ) -> torch.Tensor:
        scheduler = FlowToyScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
        scheduler.set_timesteps(sampling_steps, shift=shift)
        latent = torch.randn(SIZE, generator=torch.Generator().manual_seed(seed))
        texts = [torch.full((3, 32), value) for value in (0.3, -0.2)]
        for number, t in enumerate(scheduler.timesteps[first:]):
            if number == fails_at:
                raise RuntimeError("the loop failed")
            timestep = torch.stack([t])
            with torch.no_grad():
                model = self.model_at(t)
                cond, uncond = (
                    model([latent], t=timestep, context=[text], seq_len=8)[0] for text in texts
                )
            guided = uncond + guide_scale * (cond - uncond)
            latent = scheduler.step(guided[None], t, latent[None], return_dict=False)[0][0]
        return latent

    def model_at(self, t: torch.Tensor) -> torch.nn.Module:
        return self.model


class TwoExpertsToy(WanToy):
    """Wan2.2's: another model below a boundary."""

    num_train_timesteps, boundary = 1000, 0.8

    def __init__(self, config: Any = None) -> None:
        super().__init__()
        self.high_noise_model, self.low_noise_model = self.model, tiny_dit(num_layers=6)
        del self.model
        for parameter in self.low_noise_model.parameters():
            parameter.data.mul_(0.7)

    def model_at(self, t: torch.Tensor) -> torch.nn.Module:
        high = t.item() >= self.boundary * self.num_train_timesteps
        return self.high_noise_model if high else self.low_noise_model


class HunyuanToy:
    """`predict` makes a scheduler of its own and calls the model once per step."""

    def __init__(self, **options: Any) -> None:
        self.args = SimpleNamespace(delta_cache=None, delta_profile=None, **options)
        transformer = tiny_hunyuan(mm_double_blocks_depth=4, mm_single_blocks_depth=4)
        scheduler = FlowMatchEulerDiscreteScheduler(shift=7.0)
        self.pipeline = SimpleNamespace(transformer=transformer, scheduler=scheduler)
        self.parallel_args = {"ulysses_degree": 1, "ring_degree": 1}

    def predict(
        self, prompt: str, infer_steps: int = STEPS, guidance_scale: float = 1.0, seed: int = 3
    ) -> dict[str, Any]:
        self.pipeline.scheduler = scheduler = FlowMatchEulerDiscreteScheduler(shift=7.0)
        scheduler.set_timesteps(infer_steps)
        latents = torch.randn(1, *SIZE, generator=torch.Generator().manual_seed(seed))
        cos, sin = rope_tables((2, 2, 2), (8, 8, 8))
        text = {"text_states": torch.full((1, 3, 32), 0.3), "text_states_2": torch.ones(1, 24)}
        text |= {"text_mask": torch.ones(1, 3, dtype=torch.long), "freqs_cos": cos}
        for t in scheduler.timesteps:
            with torch.no_grad():
                guidance = torch.tensor([6000.0])
                given = text | {"freqs_sin": sin, "guidance": guidance}
                output = self.pipeline.transformer(latents, t.repeat(1), **given)["x"]
            latents = scheduler.step(output, t, latents, return_dict=False)[0]
        return {"samples": latents, "seeds": [seed], "prompts": [prompt]}
