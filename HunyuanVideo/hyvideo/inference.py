"""The official Python object: a pipeline built from the command line's arguments.

args = sample_video.build_parser().parse_args(["--flow-reverse"])
sampler = HunyuanVideoSampler.from_pretrained("ckpts", args=args)
samples = sampler.predict(prompt="a cat", seed=42)["samples"]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiling_core.errors import InputError

from .config import CONFIGS, HunyuanConfig, round_size

if TYPE_CHECKING:
    import torch

    from profiling_core.plan import CachePlan

    from .pipeline import HunyuanVideo

# options that replace fields of the configuration
SETTINGS = (
    "precision",
    "rope_theta",
    "vae_precision",
    "text_encoder_precision",
    "text_encoder_precision_2",
    "text_len",
    "text_len_2",
    "prompt_template",
    "prompt_template_video",
    "hidden_state_skip_layer",
    "apply_final_norm",
    "load_key",
    "use_fp8",
    "disable_autocast",
)
TEXT_WIDTHS = ("text_states_dim", "text_states_dim_2")


def settings_of(args: argparse.Namespace, config: HunyuanConfig) -> HunyuanConfig:
    """The model's configuration with the values of the command line; None changes nothing."""
    given = {name: value for name, value in vars(args).items() if value is not None}
    widths = {name: given[name] for name in TEXT_WIDTHS if name in given}
    settings = {name: given[name] for name in SETTINGS if name in given}
    return replace(config, transformer={**config.transformer, **widths}, **settings)


class HunyuanVideoSampler:
    """A loaded model and the arguments it was loaded with; `predict` makes clips."""

    def __init__(self, pipeline: HunyuanVideo, args: argparse.Namespace) -> None:
        self.pipeline, self.args = pipeline, args

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_path: str | Path,
        args: argparse.Namespace,
        device: torch.device | str | None = None,
    ) -> HunyuanVideoSampler:
        """Load the checkpoint folder; InputError when it is incomplete or damaged."""
        from .pipeline import HunyuanVideo  # takes seconds; the command line checks values first

        pipeline = HunyuanVideo(
            settings_of(args, CONFIGS[args.model]),
            pretrained_model_path,
            device,
            dit_weight=args.dit_weight,
            use_cpu_offload=args.use_cpu_offload,
        )
        return cls(pipeline, args)

    def predict(
        self,
        prompt: str,
        height: int | None = None,
        width: int | None = None,
        video_length: int | None = None,
        seed: int | Sequence[int] | None = None,
        negative_prompt: str | None = None,
        infer_steps: int | None = None,
        guidance_scale: float = 1.0,
        flow_shift: float | None = None,
        embedded_guidance_scale: float | None = None,
        batch_size: int = 1,
        num_videos_per_prompt: int = 1,
        *,
        plan: CachePlan | None = None,
        progress: bool = True,
    ) -> dict[str, Any]:
        """`samples` (B, 3, F, H, W) in [0, 1], their `seeds`, the `prompts` and the `size`.

        What is not given is the model's own; the direction of the noise levels is that of the
        arguments' flow_reverse. InputError for values that cannot work.
        """
        # drawn here, since the result names them
        from .pipeline import clip_seeds

        if not isinstance(prompt, str):
            raise TypeError(f"prompt is a {type(prompt).__name__}, expected a str")
        if batch_size != 1:
            raise InputError(
                f"batch_size {batch_size}: a batch has one prompt, take num_videos_per_prompt"
            )
        own = self.pipeline.config.video_size
        size = (own[0] if height is None else height, own[1] if width is None else width)
        seeds = clip_seeds(seed, num_videos_per_prompt)
        samples = self.pipeline.generate(
            prompt.strip(),
            size=size,
            video_length=video_length,
            infer_steps=infer_steps,
            flow_shift=flow_shift,
            flow_reverse=self.args.flow_reverse,
            embedded_guidance=embedded_guidance_scale,
            cfg_scale=guidance_scale,
            neg_prompt=negative_prompt,
            seed=seeds,
            num_videos=num_videos_per_prompt,
            plan=plan,
            progress=progress,
        )
        frames = samples.shape[2]
        return {
            "samples": samples,
            "seeds": seeds,
            "prompts": [prompt.strip()] * len(seeds),
            "size": (*round_size(size), frames),
        }
