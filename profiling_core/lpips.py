"""LPIPS, the learned perceptual distance (Zhang et al., arXiv 1801.03924), in torch alone.

AlexNet's five activations of both pictures are normalised to unit length over channels; their
squared difference is weighted by a learned 1x1 head per layer, averaged over space and summed over
layers (equation 1 of that paper, version 0.1 of its weights, heads averaged and not upsampled).

No weights are shipped. Two public files hold them: torchvision's AlexNet state dict
(alexnet-owt-7be5be79.pth) and the heads of the lpips package (lpips/weights/v0.1/alex.pth).
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from profiling_core.errors import LpipsError
from profiling_core.files import PLAIN_TYPES, unreadable

# layer of AlexNet's `features`: (output channels, input channels, kernel), stride, padding
CONVOLUTIONS = {
    0: ((64, 3, 11), 4, 2),
    3: ((192, 64, 5), 1, 2),
    6: ((384, 192, 3), 1, 1),
    8: ((256, 384, 3), 1, 1),
    10: ((256, 256, 3), 1, 1),
}
POOLED_BEFORE = (3, 6)  # a 3x3 maximum of stride 2 stands before these layers
# of the networks that the heads were trained with: input in [-1, 1] to about zero mean, unit spread
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
EPSILON = 1e-10
SMALLEST_SIDE = 31  # pixels: below, the second pooling has nothing left
SUFFIXES = (".pth", ".pt", ".safetensors")
# what torch and safetensors raise for a file that is not theirs
UNREADABLE: tuple[type[Exception], ...] = (OSError, RuntimeError, EOFError, ValueError, LookupError)
UNREADABLE += (pickle.UnpicklingError, SafetensorError)
LARGEST_FILE = 2**30  # bytes; AlexNet with its classifier has 244 MB


def expected_shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that is used, features first."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, ((channels, before, kernel), _, _) in CONVOLUTIONS.items():
        shapes[f"features.{layer}.weight"] = (channels, before, kernel, kernel)
        shapes[f"features.{layer}.bias"] = (channels,)
    for number, ((channels, _, _), _, _) in enumerate(CONVOLUTIONS.values()):
        shapes[f"lin{number}.model.1.weight"] = (1, channels, 1, 1)
    return shapes


class Lpips:
    """The distance with loaded weights; call it on two clips."""

    def __init__(self, state: Mapping[str, Tensor], device: torch.device | str = "cpu") -> None:
        """state: the tensors of `expected_shapes` and no others; LpipsError names the first wrong.

        A classifier (torchvision's file has one) is left out.
        """
        used = {name: t for name, t in state.items() if not name.startswith("classifier.")}
        _check(used)
        self.state = {name: used[name].detach().float() for name in expected_shapes()}
        self.device = torch.device(device)

    @classmethod
    def load(cls, *paths: str | os.PathLike[str], device: torch.device | str = "cpu") -> Lpips:
        """From two files (features and heads, in any order), one with both, or their folder."""
        files = [Path(path) for path in paths]
        if len(files) == 1 and files[0].is_dir():
            return cls(_of_folder(files[0]), device)
        state: dict[str, Tensor] = {}
        for file in files:
            _merge(state, read_tensors(file), file)
        return cls(state, device)

    @property
    def sha256(self) -> str:
        """Digest of all tensors as fp32: runs with the same one measured the same distance."""
        digest = hashlib.sha256()
        for name, tensor in self.state.items():
            digest.update(name.encode() + tensor.contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()

    def __call__(self, video: Tensor, reference: Tensor, *, chunk: int = 8) -> float:
        """Mean over frames of two clips (3, F, H, W) in [-1, 1]."""
        return float(self.frames(video, reference, chunk=chunk).double().mean())

    @torch.no_grad()
    def frames(self, video: Tensor, reference: Tensor, *, chunk: int = 8) -> Tensor:
        """Distance of every frame, fp32 (F,) on the CPU, `chunk` frames at a time."""
        _check_clips(video, reference)
        self.state = {name: t.to(self.device) for name, t in self.state.items()}
        pairs = zip(video.split(chunk, dim=1), reference.split(chunk, dim=1), strict=True)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return torch.cat([self._distance(a, b).cpu() for a, b in pairs])

    def _distance(self, video: Tensor, reference: Tensor) -> Tensor:
        """(3, f, H, W) twice to (f,)."""
        total = torch.zeros(video.shape[1], device=self.device)
        layers = zip(self._features(video), self._features(reference), strict=True)
        for number, (one, other) in enumerate(layers):
            difference = (_unit(one) - _unit(other)) ** 2  # (f, C, h, w)
            weighted = functional.conv2d(difference, self.state[f"lin{number}.model.1.weight"])
            total = total + weighted.mean(dim=(1, 2, 3))
        return total

    def _features(self, video: Tensor) -> list[Tensor]:
        """The five activations after their ReLU, each (f, C, h, w)."""
        x = video.movedim(1, 0).to(self.device, torch.float32).clamp(-1, 1)  # (f, 3, H, W)
        shift, scale = (x.new_tensor(c).view(1, 3, 1, 1) for c in (SHIFT, SCALE))
        x = (x - shift) / scale
        found = []
        for layer, (_, stride, padding) in CONVOLUTIONS.items():
            if layer in POOLED_BEFORE:
                x = functional.max_pool2d(x, kernel_size=3, stride=2)
            weight, bias = (self.state[f"features.{layer}.{part}"] for part in ("weight", "bias"))
            x = functional.conv2d(x, weight, bias, stride, padding).relu()
            found.append(x)
        return found


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .pth or .safetensors file; LpipsError when it holds anything else."""
    if not path.is_file():
        raise LpipsError(f"LPIPS weights {path}: no such file")
    if path.stat().st_size > LARGEST_FILE:
        raise LpipsError(
            f"LPIPS weights {path}: larger than 1 GiB, so not AlexNet's: name it alone"
        )
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise LpipsError(f"LPIPS weights: {unreadable(path, 'weight file', error)}") from None
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise LpipsError(f"LPIPS weights {path}: expected a state dict of tensors alone")
    coded = {str(t.dtype).removeprefix("torch.") for t in state.values()} - PLAIN_TYPES
    if coded:
        raise LpipsError(f"LPIPS weights {path}: {coded.pop()} needs scales: take fp32 weights")
    return state


def _of_folder(folder: Path) -> dict[str, Tensor]:
    """All tensors of the folder's files; heads of other networks beside them are skipped."""
    state: dict[str, Tensor] = {}
    shapes = expected_shapes()
    found = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    for path in found:
        if path.stat().st_size > LARGEST_FILE:
            continue  # no AlexNet
        own = {name: t for name, t in read_tensors(path).items() if name in shapes}
        if own and all(tuple(t.shape) == shapes[name] for name, t in own.items()):
            _merge(state, own, path)
    if not state:
        raise LpipsError(
            f"LPIPS weights {folder}: none of its {len(found)} weight files holds AlexNet's "
            "features or heads; expected alexnet-owt-7be5be79.pth and lpips' alex.pth"
        )
    return state


def _merge(state: dict[str, Tensor], more: dict[str, Tensor], path: Path) -> None:
    for name in more:
        if name in state:
            raise LpipsError(f"LPIPS weights {path}: {name} is in another file, too: name one each")
    state.update(more)


def _check(state: Mapping[str, Tensor]) -> None:
    shapes = expected_shapes()
    for name, shape in shapes.items():
        if name not in state:
            where = "torchvision's alexnet" if name.startswith("features") else "lpips' alex.pth"
            raise LpipsError(f"LPIPS weights: {name} is missing, it is in {where}: give that, too")
        found = tuple(state[name].shape)
        if found != shape:
            raise LpipsError(f"LPIPS weights: {name} has shape {found}, expected {shape} (AlexNet)")
        if not state[name].isfinite().all():
            raise LpipsError(f"LPIPS weights: {name} holds numbers that are not finite")
    for name in state:
        if name not in shapes:
            raise LpipsError(f"LPIPS weights: {name} is no tensor of AlexNet's features or heads")


def _check_clips(video: Tensor, reference: Tensor) -> None:
    if video.shape != reference.shape:
        found = f"{tuple(video.shape)} and {tuple(reference.shape)}"
        raise LpipsError(f"videos of shape {found} cannot be compared")
    if video.ndim != 4 or video.shape[0] != 3 or video.shape[1] < 1:
        raise LpipsError(f"expected videos (3, F, H, W), found shape {tuple(video.shape)}")
    if min(video.shape[2:]) < SMALLEST_SIDE:
        height, width = video.shape[2:]
        raise LpipsError(
            f"LPIPS needs frames of {SMALLEST_SIDE} x {SMALLEST_SIDE} pixels, found "
            f"{height} x {width}: leave --lpips-weights out"
        )


def _unit(features: Tensor) -> Tensor:
    """Unit length over channels at every place."""
    return features / (features.square().sum(dim=1, keepdim=True).sqrt() + EPSILON)
