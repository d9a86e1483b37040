"""Stand-ins for what upstream needs beside its transformers, so that its loops run on a CPU.

Packages that are not installed become empty modules; attention is torch's; text encoders, image
encoders and VAEs are fixed small functions. What a check is about stays upstream's own: command
lines, pipelines, loops, schedulers, transformers.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

OPTIONAL = (
    *("cv2", "dashscope", "decord", "deepspeed", "easydict", "flash_attn", "librosa", "peft"),
    *("torchdiffeq", "torchvision"),
)
TEXT_TOKENS, TEXT_WIDTH = 6, 16


class _Anything(types.ModuleType):
    """A package whose every name is another such object."""

    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(f"{self.__name__}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the packages of OPTIONAL that are not installed."""

    def __init__(self) -> None:
        self.missing = [name for name in OPTIONAL if importlib.util.find_spec(name) is None]

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.split(".")[0] not in self.missing:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Anything(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        if module.__name__ == "easydict":
            module.EasyDict = _Dots
        if module.__name__ == "torchvision.transforms":
            module.Compose = lambda steps: lambda image: fixed(3, *image.size[::-1], seed=4)
        if module.__name__ == "torchvision.transforms.functional":
            module.to_tensor = lambda image: torch.from_numpy(
                np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 255
            )


class _Dots(dict):
    """A dict whose keys are attributes."""

    __setattr__ = dict.__setitem__

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@contextmanager
def missing_packages() -> Iterator[None]:
    """Inside the with block OPTIONAL imports, and CUDA is asked for its device and to wait."""
    # these ask once what is installed, and should not find stand-ins
    from diffusers import AutoencoderKL, DiffusionPipeline  # noqa: F401

    finder = _Finder()
    sys.meta_path.append(finder)
    try:
        with mock.patch.multiple(
            torch.cuda, current_device=lambda: 0, synchronize=lambda *device: None
        ):
            yield
    finally:
        sys.meta_path.remove(finder)


def fixed(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attention(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Attention of every query (B, L, heads, d) to all keys, without masks and lengths."""
    q, k, v = (tensor.transpose(1, 2).float() for tensor in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


class Text:
    """A T5 that says something else for every prompt."""

    def __init__(self) -> None:
        self.model = nn.Identity()

    def __call__(self, prompts: list[str], device: Any) -> list[Tensor]:
        return [fixed(TEXT_TOKENS, TEXT_WIDTH, seed=len(prompt)) for prompt in prompts]


class Clip:
    """An image encoder: 257 tokens of every image."""

    def __init__(self) -> None:
        self.model = nn.Identity()

    def visual(self, images: list[Tensor]) -> Tensor:
        return fixed(len(images), 257, 1280, seed=3)


class Vae:
    """Latents are means of pixels, decoding hands them on."""

    def __init__(self, held: Callable[[], int]) -> None:
        self.model, self.stride = types.SimpleNamespace(z_dim=16), 8
        self.held, self.alive = held, []  # bytes of anchors whenever it decoded

    def encode(self, videos: list[Tensor]) -> list[Tensor]:
        return [self._encoded(video) for video in videos]

    def decode(self, latents: list[Tensor]) -> list[Tensor]:
        self.alive.append(self.held())
        return [latent.clone() for latent in latents]

    def _encoded(self, video: Tensor) -> Tensor:
        _, frames, height, width = video.shape
        size = ((frames - 1) // 4 + 1, height // self.stride, width // self.stride)
        small = F.adaptive_avg_pool3d(video[None], size)[0]
        return small.repeat(16, 1, 1, 1)[: self.model.z_dim]


class HunyuanText(nn.Module):
    """Registered with the pipeline; what it would say comes from encode_prompt."""

    dtype, device = torch.float32, torch.device("cpu")


class HunyuanVae(nn.Module):
    """What the pipeline asks of its VAE."""

    def __init__(self, vae: Vae) -> None:
        super().__init__()
        self.vae, self.dtype, self.device = vae, torch.float32, torch.device("cpu")
        self.config = types.SimpleNamespace(
            scaling_factor=1.0, shift_factor=None, block_out_channels=(1, 1, 1, 1)
        )

    def enable_tiling(self) -> None:
        """Nothing to cut."""

    def encode(self, pictures: Tensor) -> Any:
        latents = torch.stack(self.vae.encode(list(pictures.float())))
        mode = types.SimpleNamespace(mode=lambda: latents)
        return types.SimpleNamespace(latent_dist=mode)

    def decode(self, latents: Tensor, **more: Any) -> list[Tensor]:
        return [torch.stack(self.vae.decode(list(latents)))]


def encode_prompt(pipe: Any, prompt: list[str], *args: Any, **more: Any) -> tuple[Any, ...]:
    """In place of the pipeline's method of that name."""
    tokens = (TEXT_TOKENS, TEXT_WIDTH) if more.get("text_encoder") is None else (TEXT_WIDTH,)
    mask = torch.ones(1, TEXT_TOKENS, dtype=torch.long)
    return fixed(1, *tokens, seed=1), fixed(1, *tokens, seed=2), mask, mask


def hollow(name: str, **names: Any) -> None:
    """Put a module of these names where upstream imports one."""
    module = types.ModuleType(name)
    module.__path__ = []
    vars(module).update(names)
    sys.modules[name] = module
