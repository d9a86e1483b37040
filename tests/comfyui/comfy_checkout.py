"""The checkout that COMFYUI names, on tiny random models on the CPU; see comfy_stand_in."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import torch

sys.path.insert(0, os.environ["COMFYUI"])
import comfy.cli_args

comfy.cli_args.args.cpu = True
import comfy.context_windows  # noqa: E402
import comfy.controlnet  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.supported_models  # noqa: E402

WIDTH, CHANNELS = 48, 16
WAN = {"image_model": "wan2.1", "model_type": "t2v", "dim": WIDTH, "ffn_dim": 64, "freq_dim": 32}
WAN |= {"text_dim": 24, "out_dim": 16, "num_heads": 2, "in_dim": 16}
HUNYUAN = {
    "image_model": "hunyuan_video",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": [1, 2, 2],
}
HUNYUAN |= {"vec_in_dim": 24, "context_in_dim": 24, "hidden_size": WIDTH, "mlp_ratio": 2.0}
HUNYUAN |= {"num_heads": 2, "axes_dim": [8, 8, 8], "theta": 256, "qkv_bias": True}
HUNYUAN |= {"guidance_embed": True, "byt5": False, "meanflow": False}


class Control(comfy.controlnet.ControlBase):
    def get_control(self, x: Any, *_: Any) -> dict:
        tokens = x.shape[2] * x.shape[3] * x.shape[4] // 4
        return {"input": [torch.full((x.shape[0], tokens, WIDTH), 0.3)], "output": []}

    def inference_memory_requirements(self, dtype: Any) -> int:
        return 0


class World:
    samplers = (
        "euler",
        "dpmpp_2m",
        "uni_pc",
        "uni_pc_bh2",
        "res_multistep",
        "ipndm",
        "deis",
        "lms",
    )

    def model(self, kind: str, seed: int = 0, blocks: int = 6) -> Any:
        if kind == "wan":
            config = comfy.supported_models.WAN21_T2V(WAN | {"num_layers": blocks})
        else:
            depths = {"depth": blocks // 2, "depth_single_blocks": blocks}
            config = comfy.supported_models.HunyuanVideo(HUNYUAN | depths)
        config.unet_config["dtype"] = torch.float32
        config.set_inference_dtype(torch.float32, None)
        model = config.get_model({}, "", device="cpu")
        generator = torch.Generator().manual_seed(seed)
        for name, weight in model.diffusion_model.named_parameters():
            drawn = 0.25 * torch.randn(weight.shape, generator=generator)
            weight.data = drawn + ("norm" in name)
        cpu = torch.device("cpu")
        return comfy.model_patcher.ModelPatcher(model, cpu, cpu)

    def sampler(self, name: str, **options: Any) -> Any:
        found = comfy.samplers.sampler_object(name)
        found.extra_options = options
        return found

    def own_sampler(self, loop: Callable[..., Any]) -> Any:
        def function(model: Any, x: Any, sigmas: Any, extra_args: dict, **others: Any) -> Any:
            return loop(lambda x, sigma: model(x, sigma, **extra_args), x, sigmas)

        return comfy.samplers.KSAMPLER(function)

    def sigmas(self, model: Any, steps: int) -> torch.Tensor:
        sampling = model.get_model_object("model_sampling")
        return comfy.samplers.calculate_sigmas(sampling, "simple", steps)

    @torch.no_grad()
    def sample(
        self,
        model: Any,
        sampler: Any,
        sigmas: torch.Tensor,
        *,
        seed: int = 0,
        cfg: float = 3.0,
        clips: int = 1,
        latent: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        control: bool = False,
        add_noise: bool = True,
        see: Callable[[int], None] | None = None,
    ) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        drawn, pooled = torch.randn(2, 1, 3, 24, generator=generator), torch.zeros(1, 24)
        positive, negative = ([[one, {"pooled_output": pooled}]] for one in drawn)
        if control:
            positive[0][1]["control"] = Control()
        noise = torch.randn(clips, 16, 5, 4, 4, generator=torch.Generator().manual_seed(seed))
        noise = noise if add_noise else torch.zeros_like(noise)
        latent = torch.zeros_like(noise) if latent is None else latent
        return comfy.samplers.sample(
            model,
            noise,
            positive,
            negative,
            cfg,
            model.load_device,
            sampler,
            sigmas.clone(),
            model.model_options,
            latent_image=latent,
            denoise_mask=mask,
            disable_pbar=True,
            seed=seed,
            callback=None if see is None else (lambda step, *_: see(step)),
        )

    def shared(self, model: Any, shared: Callable[[float], bool]) -> Any:
        """Decide from step to step whether there is memory for both conditionings in a call."""
        model = model.clone()

        def wrapper(executor: Any, inner: Any, conds: Any, x: Any, t: Any, options: Any) -> Any:
            needed = 0 if shared(float(t[0])) else 1e30
            inner.memory_required = lambda *_, **__: needed
            try:
                return executor(inner, conds, x, t, options)
            finally:
                del inner.memory_required

        model.add_wrapper_with_key("calc_cond_batch", "memory", wrapper)
        return model

    def with_windows(self, model: Any) -> Any:
        model = model.clone()
        windows = comfy.context_windows
        model.model_options["context_handler"] = windows.IndexListContextHandler(
            context_schedule=windows.get_matching_context_schedule("standard_static"),
            fuse_method=windows.get_matching_fuse_method("flat"),
            context_length=3,
            context_overlap=2,
            dim=2,
        )
        return model

    def with_skipped_layers(self, model: Any, kind: str) -> Any:
        from comfy_extras.nodes_slg import SkipLayerGuidanceDiT

        return SkipLayerGuidanceDiT.execute(model, 0.5, 0.0, 1.0, double_layers="1").result[0]

    def with_other_cache(self, model: Any) -> Any:
        from comfy_extras.nodes_easycache import EasyCacheNode

        return EasyCacheNode.execute(model, 0.2, 0.15, 0.95, False).result[0]

    def with_patch(self, model: Any, kind: str, number: int, change: Any) -> Any:
        model = model.clone()
        model.set_model_patch_replace(change, "dit", kind, number)
        return model
