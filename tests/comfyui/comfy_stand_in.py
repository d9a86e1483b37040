"""A stand-in for ComfyUI: its contract with a node, on tiny models, in our own words.

Wrappers stand around a guider's `outer_sample`, `predict_noise` and every evaluation of the
conditionings; these share a call of the model or not; the walk asks for replacements of blocks; and
HunyuanVideo's blocks write into what they are given.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

WIDTH, CHANNELS = 12, 4


class WanBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, img: torch.Tensor, txt: torch.Tensor, vec: torch.Tensor) -> torch.Tensor:
        return img + torch.tanh(self.linear(img) + txt.mean(1, keepdim=True) + vec)


class DoubleBlock(WanBlock):
    def forward(self, img: torch.Tensor, txt: torch.Tensor, vec: torch.Tensor) -> Any:
        img = img + torch.tanh(self.linear(img) + txt.mean(1, keepdim=True) + vec)
        txt += torch.tanh(self.linear(txt) + vec)  # into the caller's tensor
        return img, txt


class SingleBlock(WanBlock):
    def forward(self, img: torch.Tensor, vec: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        img += torch.tanh(self.linear(img) + vec)  # likewise
        return img


class WanModel(nn.Module):
    """(B, C, T, H, W) in and out."""

    def __init__(self, blocks: int = 6) -> None:
        super().__init__()
        self.dim = WIDTH
        self.enter, self.head = nn.Linear(CHANNELS, WIDTH), nn.Linear(WIDTH, CHANNELS)
        self._build(blocks)

    def _build(self, blocks: int) -> None:
        self.blocks = nn.ModuleList(WanBlock() for _ in range(blocks))

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor, options: dict, control: Any
    ) -> torch.Tensor:
        img = self.enter(x.flatten(2).transpose(1, 2))  # (B, tokens, WIDTH)
        vec = torch.sin(7 * t).reshape(-1, 1, 1)
        img = self._walk(img, context + vec, vec, options, control)
        return self.head(img).transpose(1, 2).reshape(x.shape)

    def _walk(self, img: Any, txt: Any, vec: Any, options: dict, control: Any) -> torch.Tensor:
        for number, block in enumerate(self.blocks):
            inside = {"img": img, "txt": txt, "vec": vec}
            img = _walked("double_block", number, block, inside, options)["img"]
        return img


class HunyuanVideo(WanModel):
    def _build(self, blocks: int) -> None:
        self.double_blocks = nn.ModuleList(DoubleBlock() for _ in range(blocks // 2))
        self.single_blocks = nn.ModuleList(SingleBlock() for _ in range(blocks))

    def _walk(self, img: Any, txt: Any, vec: Any, options: dict, control: Any) -> torch.Tensor:
        for number, block in enumerate(self.double_blocks):
            inside = {"img": img, "txt": txt, "vec": vec}
            out = _walked("double_block", number, block, inside, options)
            img, txt = out["img"], out["txt"]
            if control is not None:
                img += control
        tokens, img = img.shape[1], torch.cat((img, txt), 1)
        for number, block in enumerate(self.single_blocks):
            inside = {"img": img, "vec": vec}
            img = _walked("single_block", number, block, inside, options)["img"]
        return img[:, :tokens]


def _walked(kind: str, number: int, block: nn.Module, inside: dict, options: dict) -> dict:
    names = ("img", "txt") if isinstance(block, DoubleBlock) else ("img",)

    def original(args: dict) -> dict:
        output = block(**{name: args[name] for name in inside})
        return dict(zip(names, output if len(names) > 1 else (output,), strict=True))

    replaced = options.get("patches_replace", {}).get("dit", {}).get((kind, number))
    if replaced is None:
        return original(inside)
    return replaced(inside | {"transformer_options": options}, {"original_block": original})


class CONST:  # its name says that the model is a flow
    shift = 5.0


class Executor:
    """Calls a method through wrappers, the first outermost."""

    def __init__(self, call: Callable[..., Any], owner: Any, wrappers: list) -> None:
        self.call, self.class_obj, self.wrappers = call, owner, wrappers

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.wrappers:
            return self.call(*args, **kwargs)
        first, *rest = self.wrappers
        return first(Executor(self.call, self.class_obj, rest), *args, **kwargs)


def wrapped(kind: str, options: dict, call: Callable[..., Any], owner: Any = None) -> Executor:
    found = options["transformer_options"].get("wrappers", {}).get(kind, {})
    return Executor(call, owner, [w for several in found.values() for w in several])


class Patcher:
    """A MODEL."""

    load_device, offload_device = torch.device("cpu"), torch.device("cpu")

    def __init__(self, diffusion_model: nn.Module) -> None:
        self.model = SimpleNamespace(diffusion_model=diffusion_model, model_sampling=CONST())
        self.model_options: dict[str, Any] = {"transformer_options": {}}
        self.wrappers: dict[str, dict[str, list]] = {}

    def clone(self) -> Patcher:
        other = copy.copy(self)
        other.model_options = copy.deepcopy(self.model_options)
        other.wrappers = copy.deepcopy(self.wrappers)  # functions stay themselves
        return other

    def add_wrapper_with_key(self, kind: str, key: str, wrapper: Callable[..., Any]) -> None:
        self.wrappers.setdefault(kind, {}).setdefault(key, []).append(wrapper)

    def get_model_object(self, name: str) -> Any:
        return getattr(self.model, name)


class Guider:
    """Samples a MODEL with guidance; shared(sigma): do the conditionings share a call there?"""

    def __init__(self, patcher: Patcher, conds: dict[str, list[dict]], cfg: float) -> None:
        self.model_patcher, self.conds, self.cfg = patcher, conds, cfg
        self.model_options = patcher.model_options

    def sample(
        self, noise: Any, latent: Any, sampler: Any, sigmas: Any, mask: Any, see: Any
    ) -> Any:
        plain, transformer = self.model_options, self.model_options["transformer_options"]
        self.model_options = plain | {
            "transformer_options": transformer | {"wrappers": self.model_patcher.wrappers}
        }
        try:
            call = wrapped("outer_sample", self.model_options, self.outer_sample, self)
            return call(noise, latent, sampler, sigmas, mask, see, True, 0, latent_shapes=[0])
        finally:
            self.model_options = plain

    def outer_sample(
        self,
        noise: Any,
        latent: Any,
        sampler: Any,
        sigmas: Any,
        mask: Any,
        see: Any,
        *_: Any,
        **__: Any,
    ) -> torch.Tensor:
        options = self.model_options
        x = sigmas[0] * noise + (1 - sigmas[0]) * latent
        end = 1 - sigmas[-1]  # a part of a run hands over what the next one scales back

        def denoised(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            if mask is not None:
                noisy = (1 - sigma[0]) * latent + sigma[0] * noise
                x = x * mask + noisy * (1 - mask)
            predict = wrapped("predict_noise", options, self.predict_noise, self)
            clean = predict(x, sigma, options, 0)
            return clean if mask is None else clean * mask + latent * (1 - mask)

        return sampler.sampler_function(denoised, x, sigmas, see, **sampler.extra_options) / end

    def predict_noise(self, x: Any, sigma: Any, options: dict, seed: int) -> torch.Tensor:
        conds = [self.conds["positive"], self.conds["negative"] if self.cfg != 1 else None]
        cond, uncond = evaluated(self.model_patcher.model, conds, x, sigma, options)
        clean = cond if uncond is None else uncond + (cond - uncond) * self.cfg
        for function in options.get("sampler_post_cfg_function", []):
            clean = function(cond, clean, self, x, sigma, options)
        return clean


def evaluated(model: Any, conds: list, x: Any, sigma: Any, options: dict) -> list:
    call = wrapped("calc_cond_batch", options, _evaluated)
    windows = options.get("windows")
    if windows is None:
        return call(model, conds, x, sigma, options)
    total = [None if cond is None else torch.zeros_like(x) for cond in conds]
    count = torch.zeros_like(x)
    for window in windows:
        options["transformer_options"]["context_window"] = SimpleNamespace(index_list=window)
        part = call(model, conds, x[:, :, window], sigma, options)
        count[:, :, window] += 1
        for whole, own in zip(total, part, strict=True):
            if whole is not None:
                whole[:, :, window] += own
    return [None if whole is None else whole / count for whole in total]


def _evaluated(model: Any, conds: list, x: Any, sigma: Any, options: dict) -> list:
    todo = [(n, cond) for n, several in enumerate(conds) for cond in several or ()]
    todo.reverse()  # the negative one first
    shared = options.get("shared", lambda sigma: True)(float(sigma[0]))
    found: list[Any] = [None] * len(conds)
    for group in [todo] if shared else [[one] for one in todo]:
        given = options["transformer_options"] | {
            "cond_or_uncond": [n for n, _ in group],
            "uuids": [cond["uuid"] for _, cond in group],
        }
        rows, context = len(group), [cond["context"].expand(len(x), -1, -1) for _, cond in group]
        t = torch.cat([sigma] * rows)
        control = group[0][1].get("control")
        flow = model.diffusion_model(torch.cat([x] * rows), t, torch.cat(context), given, control)
        for (n, _), v in zip(group, flow.chunk(rows), strict=True):
            found[n] = x - sigma.reshape(-1, 1, 1, 1, 1) * v
    return found


def sample_euler(model: Any, x: Any, sigmas: Any, see: Any = None, s_churn: float = 0.0) -> Any:
    for step, (now, after) in enumerate(pairwise(sigmas)):
        clean = model(x, now.expand(len(x)))
        if see is not None:
            see(step)
        x = x + (x - clean) / now * (after - now)
    return x


def sample_dpmpp_2m(model: Any, x: Any, sigmas: Any, see: Any = None) -> Any:
    """DPM-Solver++(2M), arXiv 2211.01095, in lambda = -ln sigma."""
    old = None
    for step, (now, after) in enumerate(pairwise(sigmas)):
        clean = model(x, now.expand(len(x)))
        if see is not None:
            see(step)
        direction = clean
        if old is not None and after > 0:
            r = torch.log(sigmas[step - 1] / now) / torch.log(now / after)
            direction = (1 + 1 / (2 * r)) * clean - old / (2 * r)
        x, old = after / now * x + (1 - after / now) * direction, clean
    return x


def sample_heun(model: Any, x: Any, sigmas: Any, see: Any = None) -> Any:
    raise AssertionError("a sampler that is refused")


for _function in (sample_euler, sample_dpmpp_2m, sample_heun):
    _function.__module__ = "comfy.k_diffusion.sampling"


class World:
    """What the checks ask of ComfyUI; comfy_checkout.py has the same for a checkout."""

    samplers = ("euler", "dpmpp_2m")

    def model(self, kind: str, seed: int = 0, **options: int) -> Patcher:
        torch.manual_seed(seed)
        return Patcher({"wan": WanModel, "hunyuan": HunyuanVideo}[kind](**options))

    def sampler(self, name: str, **options: Any) -> Any:
        function = globals()[f"sample_{name}"]
        return SimpleNamespace(sampler_function=function, extra_options=options)

    def own_sampler(self, loop: Callable[..., Any]) -> Any:
        """A SAMPLER of loop(clean latent of (x, sigma), x, sigmas)."""
        return SimpleNamespace(
            sampler_function=lambda model, x, sigmas, see: loop(model, x, sigmas), extra_options={}
        )

    def sigmas(self, model: Patcher, steps: int) -> torch.Tensor:
        line = torch.linspace(1, 0, steps + 1)
        return 5 * line / (1 + 4 * line)

    def prompts(self, seed: int = 1) -> tuple[list, list]:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(2, 1, 3, WIDTH, generator=generator)
        return tuple([{"uuid": uuid.uuid4(), "context": one}] for one in drawn)  # type: ignore[return-value]

    @torch.no_grad()
    def sample(
        self,
        model: Patcher,
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
        positive, negative = self.prompts()
        if control:
            positive[0]["control"] = 0.3
        noise = torch.randn(clips, CHANNELS, 5, 2, 2, generator=torch.Generator().manual_seed(seed))
        noise = noise if add_noise else torch.zeros_like(noise)
        latent = torch.zeros_like(noise) if latent is None else latent
        guider = Guider(model, {"positive": positive, "negative": negative}, cfg)
        return guider.sample(noise, latent, sampler, sigmas, mask, see)

    def shared(self, model: Patcher, shared: Callable[[float], bool]) -> Patcher:
        model = model.clone()
        model.model_options["shared"] = shared
        return model

    def with_windows(self, model: Patcher) -> Patcher:
        model = model.clone()
        model.model_options["windows"] = [[0, 1, 2], [1, 2, 3], [2, 3, 4]]
        return model

    def with_skipped_layers(self, model: Patcher, kind: str) -> Patcher:
        """Guidance by a further evaluation that leaves a block out."""
        model = model.clone()

        def guided(cond: Any, clean: Any, guider: Guider, x: Any, sigma: Any, options: dict) -> Any:
            transformer = options["transformer_options"]
            dit = transformer.get("patches_replace", {}).get("dit", {})
            skipped = dit | {("double_block", 1): lambda args, extra: args}
            further = options | {
                "transformer_options": transformer | {"patches_replace": {"dit": skipped}}
            }
            weak, _ = evaluated(
                guider.model_patcher.model, [guider.conds["positive"], None], x, sigma, further
            )
            return clean + (cond - weak) * 0.5

        model.model_options["sampler_post_cfg_function"] = [guided]
        return model

    def with_other_cache(self, model: Patcher) -> Patcher:
        model = model.clone()
        model.model_options["transformer_options"]["easycache"] = object()
        return model

    def with_patch(self, model: Patcher, kind: str, number: int, change: Any) -> Patcher:
        """Another node's replacement of a block."""
        model = model.clone()
        options = model.model_options["transformer_options"]
        options.setdefault("patches_replace", {}).setdefault("dit", {})[kind, number] = change
        return model
