"""Both miniatures on several processes, against one: says what it saw as JSON.

    torchrun --nproc_per_node=2 tests/lib/parallel_cases.py found.json wan:ulysses=2,fsdp=1 ...

Rank 0 first makes the clips alone, then all make them together. The steps are few; the plans are
made for them, so that they reuse something.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "Wan2.1"), str(ROOT / "HunyuanVideo")]
sys.path.append(str(ROOT / "tests" / "lib"))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from loguru import logger  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

import wan.vae  # noqa: E402
from hyvideo.config import CONFIGS as HUNYUAN  # noqa: E402
from hyvideo.pipeline import HunyuanVideo  # noqa: E402
from hyvideo.sigmas import sigmas_fp32 as hunyuan_sigmas  # noqa: E402
from profiling_core.parallel.degrees import Degrees  # noqa: E402
from profiling_core.parallel.launch import from_first  # noqa: E402
from profiling_core.parallel.ranks import Ranks, ranks_of  # noqa: E402
from profiling_core.parallel.sequence import SequenceShare  # noqa: E402
from profiling_core.parallel.xdit import LayerShare  # noqa: E402
from profiling_core.plan import CachePlan  # noqa: E402
from profiling_core.plan.model_specs import MODELS as MODEL_SPECS  # noqa: E402
from profiling_core.profile.profile import Profile, Settings  # noqa: E402
from profiling_core.recording.recorder import Recorder  # noqa: E402
from profiling_core.runtime.options import resolve_plan  # noqa: E402
from wan.attention import attention  # noqa: E402
from wan.configs import WAN_CONFIGS as WAN  # noqa: E402
from wan.configs import parse_size  # noqa: E402
from wan.image2video import WanFLF2V, WanT2V  # noqa: E402
from wan.sigmas import sigmas_fp32 as wan_sigmas  # noqa: E402
from wan.vace import WanVace  # noqa: E402
from wan_toys import write_checkpoint  # noqa: E402

STEPS, FRAMES, SEED, CFG_SCALE = 6, 5, 7, 2.0
PLANS = (None, "release", "balanced")
PROFILED = (
    "wan:ulysses=2",
    "wan:cfg=2",
    "pictures:cfg=2",
    "hunyuan:ring=2",
    "hunyuan:cfg=2",
)
COLLECTIVES = {"all_to_all": "alltoall", "all_gather": "allgather", "send": "send"}


class Wan:
    """A pipeline of the Wan miniature in fp32."""

    def __init__(self, ranks: Ranks | None, **options: bool) -> None:
        self.config = WAN["t2v-mini"]
        self.pipeline = WanT2V(
            self.config, self.config.ckpt_dir, device="cpu", fp32=True, ranks=ranks, **options
        )
        shift = self.config.sample_shift
        self.grid = {"solver": "unipc", "shift": shift}
        self.sigmas = wan_sigmas("unipc", STEPS, shift)

    def denoise(self, plan: CachePlan | None, cfg_scale: float, **more: Any) -> Tensor:
        config = self.config
        contexts = self.pipeline.encode([config.example_prompt, "a dull picture"])
        shape = config.latent_shape(parse_size(config.default_size), FRAMES)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(SEED))
        run = {"sampling_steps": STEPS, "guide_scale": cfg_scale, "progress": False}
        return self.pipeline.denoise(*contexts, noise, plan=plan, **run, **more)


class Pictures(Wan):
    """The same with a first and a last frame: random weights of the miniature's sizes."""

    kind: type[WanT2V] = WanFLF2V
    task, shape = "flf2v-14B", (16, 2, 8, 8)

    def __init__(self, ranks: Ranks | None, **options: bool) -> None:
        self.config = WAN[self.task]
        with tempfile.TemporaryDirectory() as folder:
            sizes = {"dim": 160, "num_heads": 4, "num_layers": 12, "text_len": 32}
            write_checkpoint(Path(folder), model_type=self.config.model_type, **sizes)
            own = {"device": "cpu", "fp32": True, "ranks": ranks, **options}
            self.pipeline = self.kind(self.config, folder, **own)
        shift = self.config.sample_shift
        self.grid = {"solver": "unipc", "shift": shift}
        self.sigmas = wan_sigmas("unipc", STEPS, shift)

    def denoise(self, plan: CachePlan | None, cfg_scale: float, **more: Any) -> Tensor:
        contexts = self.pipeline.encode(["red circle", "a square"])
        noise = torch.randn(self.shape, generator=torch.Generator().manual_seed(SEED))
        run = {"sampling_steps": STEPS, "guide_scale": cfg_scale, "progress": False}
        run |= {"shift": self.config.sample_shift, "condition": self.condition()}
        return self.pipeline.denoise(*contexts, noise, plan=plan, **run, **more)

    def condition(self) -> dict[str, Any]:
        pictures = [Image.new("RGB", (32, 32), color) for color in ("red", "blue")]
        return self.pipeline.encode_pictures(pictures, (64, 64), FRAMES)


class Sources(Pictures):
    """The same with hints from a video, a mask and a picture."""

    kind, task, shape = WanVace, "vace-14B", (16, 3, 8, 8)

    def condition(self) -> dict[str, Any]:
        frames = (
            torch.linspace(-1, 1, FRAMES * 64 * 64).reshape(1, FRAMES, 64, 64).repeat(3, 1, 1, 1)
        )
        context = self.pipeline.encode_sources(frames, frames[:1], [frames[:, :1]])
        return {"vace_context": [context]}


class Hunyuan:
    """A pipeline of the HunyuanVideo miniature in fp32."""

    def __init__(self, ranks: Ranks | None, **options: bool) -> None:
        self.config = HUNYUAN["HYVideo-mini"]
        self.pipeline = HunyuanVideo(
            self.config, self.config.model_base, "cpu", fp32=True, ranks=ranks, **options
        )
        self.grid = {"solver": "euler", "shift": self.config.flow_shift}
        self.sigmas = hunyuan_sigmas(STEPS, self.config.flow_shift)

    def denoise(self, plan: CachePlan | None, cfg_scale: float, **more: Any) -> Tensor:
        config, length = self.config, FRAMES
        negative = "a dull picture" if cfg_scale > 1 else None
        prompt = "blue star moving left over red checks"
        conditioning = self.pipeline.encode(prompt, negative, video_length=length)
        shape = config.latent_shape(config.video_size, length)
        noise = self.pipeline.noise(shape, SEED, "cpu")
        run = {"infer_steps": STEPS, "cfg_scale": cfg_scale, "progress": False}
        return self.pipeline.denoise(conditioning, noise, plan=plan, **run, **more)


TREES = {"wan": Wan, "pictures": Pictures, "sources": Sources, "hunyuan": Hunyuan}
MODELS = {"wan": "wan2.1-t2v-mini", "hunyuan": "hunyuan-video-t2v-mini"}
MODELS["pictures"] = MODELS["sources"] = MODELS["wan"]


def plan_of(tree: Wan | Hunyuan, name: str, preset: str | None) -> CachePlan | None:
    """The preset with compute steps at other places: every third step reuses."""
    if preset is None:
        return None
    document = resolve_plan(preset, MODELS[name]).model_dump(mode="json", exclude_none=True)
    document.pop("expected")
    computed = [step for step in range(STEPS) if step in (0, STEPS - 1) or step % 3]
    for site in document["sites"]:
        site["compute_steps"] = dict.fromkeys(site["compute_steps"], computed)
    fields = {key: value for key, value in document.items() if key != "format"}
    return CachePlan.build(**{**fields, "steps": STEPS, "sigmas": tree.sigmas, **tree.grid})


def case_of(text: str) -> tuple[str, dict[str, int]]:
    """'wan:ulysses=2,fsdp=1' to its tree and numbers."""
    name, _, rest = text.partition(":")
    return name, {key: int(value) for key, value in (pair.split("=") for pair in rest.split(","))}


class Counter(TorchDispatchMode):
    """Counts the collectives that this process takes part in, by sort."""

    def __init__(self) -> None:
        super().__init__()
        self.found = dict.fromkeys(COLLECTIVES, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func.overloadpacket._qualified_op_name.split("::")[1].strip("_")
            for sort, part in COLLECTIVES.items():
                self.found[sort] += name.replace("_", "").startswith(part)
        return func(*args, **(kwargs or {}))


def run_case(text: str, alone: dict[Any, dict[Any, Any]]) -> list[dict]:
    name, numbers = case_of(text)
    fsdp = bool(numbers.pop("fsdp", 0))
    ranks = ranks_of(Degrees(**numbers))
    guided = name == "hunyuan" and ranks.degrees.cfg > 1
    cfg_scale = CFG_SCALE if guided or name != "hunyuan" else 1.0
    if (name, guided) not in alone:
        alone[name, guided] = from_first(
            {plan: tree.denoise(plan_of(tree, name, plan), cfg_scale) for plan in PLANS}
            if ranks.first and (tree := TREES[name](None))
            else None
        )
    options = {"dit_fsdp": True, "t5_fsdp": True} if fsdp else {}
    tree, found = TREES[name](ranks, **options), []
    for preset in PLANS:
        plan, want = plan_of(tree, name, preset), alone[name, guided][preset]
        with Counter() as counter:
            latent = tree.denoise(plan, cfg_scale)
        stats = tree.pipeline.last_run
        found.append(
            {
                "case": text,
                "plan": preset,
                "error": float((latent - want).norm() / want.norm()),
                "equal": torch.equal(latent, want),
                "hash": hashlib.sha256(latent.numpy().tobytes()).hexdigest(),
                "collectives": counter.found,
                "calls": stats.model_calls,
                "block_runs": stats.block_runs,
                "block_runs_full": stats.block_runs_full,
                "hints": len(getattr(tree.pipeline.model, "vace_blocks", ())),
                "peak_bytes": stats.peak_bytes,
            }
        )
    if text in PROFILED:
        found.append(profile_case(text, tree, alone))
    return found


def profile_of(tree: Wan | Hunyuan, name: str, cfg_scale: float) -> Profile:
    """A recorded run, with attention at two steps and the sensitivity of one."""
    planned = MODEL_SPECS[MODELS[name]]
    settings = Settings(attention_every=4, sensitivity=(3,))
    sampling = {"steps": STEPS, "sigmas": tree.sigmas, **tree.grid}
    recorder = Recorder(
        None,
        settings,
        model=planned.fingerprint,
        branches=planned.family.branches,
        **sampling,
    )
    latent = tree.denoise(None, cfg_scale, recorder=recorder)
    recorder.measure_sensitivity(
        latent, lambda perturbed: tree.denoise(None, cfg_scale, recorder=perturbed)
    )
    return recorder.finish(latent, prompt="p", seed=SEED, guidance=cfg_scale)


def profile_case(
    text: str, tree: Wan | Hunyuan, alone: dict[Any, dict[Any, Any]]
) -> dict[str, Any]:
    """A run that all ranks record, against one that a process alone does: errors of its arrays."""
    name, ranks = case_of(text)[0], tree.pipeline.ranks
    cfg_scale = CFG_SCALE if name != "hunyuan" or ranks.degrees.cfg > 1 else 1.0
    if ("profile", name, cfg_scale) not in alone:
        one = profile_of(TREES[name](None), name, cfg_scale).arrays if ranks.first else None
        alone["profile", name, cfg_scale] = from_first(one)
    errors = {}
    for key, found in profile_of(tree, name, cfg_scale).arrays.items():
        want = alone["profile", name, cfg_scale][key].astype(float)
        known = np.isfinite(found)
        assert (known == np.isfinite(want)).all(), key
        off = np.where(known, found - want, 0.0)
        errors[key] = float(np.abs(off).max() / np.abs(np.where(known, want, 0.0)).max())
    return {"case": f"profile:{text}", "errors": errors}


def layer_cases() -> list[dict[str, Any]]:
    """yunchang's attention layer, through its self-check and against one process."""
    world, found = dist.get_world_size(), []
    for degrees in (Degrees(ulysses=world), Degrees(ring=world)):
        share = LayerShare(ranks_of(degrees), attention, "yunchang", torch.device("cpu"))
        share.check(torch.device("cpu"))
        generator = torch.Generator().manual_seed(0)
        q, k, v = torch.randn((3, 1, 64, 4, 16), generator=generator)
        got = share.gather(share.attention(*(share.take(x) for x in (q, k, v))))
        want = attention(q, k, v)
        error = float((got - want).abs().max())
        found.append({"case": f"layer:{degrees}", "error": error})
    return found


SHARES = (  # image tokens, text tokens, key_lens, samples
    (64, 0, None, 1),
    (75, 0, None, 2),
    (75, 0, (75, 40), 2),
    (75, 9, None, 1),
    (77, 9, (81, 86), 2),
    (3, 0, None, 1),
)


def share_cases() -> list[dict[str, Any]]:
    """Our attention on random numbers: token counts that do not divide, text, hidden keys."""
    world, found = dist.get_world_size(), []
    ways = [Degrees(ulysses=world), Degrees(ring=world)]
    ways += [Degrees(ulysses=2, ring=2)] if world == 4 else []
    for degrees in ways:
        share = SequenceShare(ranks_of(degrees), attention)
        for tokens, text, lens, samples in SHARES:
            generator = torch.Generator().manual_seed(0)
            q, k, v = torch.randn((3, samples, tokens + text, 4, 16), generator=generator)
            own = [torch.cat((share.take(x[:, :tokens]), x[:, tokens:]), 1) for x in (q, k, v)]
            out = share.attention(*own, lens, text)
            image, joint = out.split((out.shape[1] - text, text), dim=1)
            got = torch.cat((share.gather(image), joint), dim=1)
            error = float((got - attention(q, k, v, lens)).abs().max())
            found.append({"case": f"share:{degrees}, {tokens} + {text}", "error": error})
    return found


def decode_case(name: str) -> dict[str, Any]:
    """A decode in tiles of all ranks, against the same tiles in one process; small tiles."""
    ranks = ranks_of(Degrees(ulysses=dist.get_world_size()))
    tree = TREES[name](None)
    vae, latent = tree.pipeline.vae, tree.denoise(None, 1.0)
    if name == "wan":
        wan.vae.OVERLAP, wan.vae.LEAST_TILE = 32, 32
        grid = vae._tiles(latent.shape[-2:], ranks.world)
        assert grid[0] * grid[1] == ranks.world, grid
        with vae._tiled(latent.shape[-2:], *grid):
            alone = vae.decode(latent)
    else:
        vae.model.enable_tiling(64, 64, 16, 48, 48, 12)
        latent = latent[0]
        alone = vae.decode(latent)
    shared = vae.decode_shared(latent, ranks)
    whole = shared is not None and torch.equal(shared, alone)
    return {"case": f"{name}:decode", "has": shared is not None, "equal": whole}


def main(target: str, *cases: str) -> None:
    torch.set_num_threads(1)
    logger.remove()
    dist.init_process_group("gloo")
    alone: dict[Any, dict[Any, Any]] = {}  # what one process makes
    own = [row for case in cases for row in run_case(case, alone)]
    own += [decode_case(name) for name in ("wan", "hunyuan")]
    own += share_cases() + layer_cases()
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, own)
    if dist.get_rank() == 0:
        Path(target).write_text(json.dumps(every))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
