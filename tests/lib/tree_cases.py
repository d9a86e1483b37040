"""Both trees on tiny checkpoints as the contract in tests/trees sees them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import generate
import hunyuan_toys
import hyvideo.checkpoint
import hyvideo.checks
import hyvideo.pipeline
import hyvideo.sigmas
import hyvideo.video
import hyvideo.weights
import sample_video
import wan.checks
import wan.sigmas
import wan.text2video
import wan.video
import wan.weights
import wan_toys
from hyvideo.config import CONFIGS as HUNYUAN_CONFIGS
from profiling_core.plan import CachePlan
from tree_paths import ROOT
from wan.configs import WAN_CONFIGS

STEPS = 6
PROMPT = "a red circle moving right over blue stripes"
NOW = datetime(2026, 1, 2, 3, 4, 5)


@dataclass(frozen=True, kw_only=True)
class TreeCase:
    """One tree: its modules, the names it gives to what both trees have, and a tiny model."""

    name: str
    checkpoint: Path  # no test may change it
    script: ModuleType  # generate.py, sample_video.py
    script_path: Path
    module: ModuleType  # with the pipeline and its DeltaCache
    video: ModuleType
    options: dict[str, str]  # of what both scripts take
    arguments: dict[str, str]  # of what both generate() take
    fixed: tuple[str, ...]  # the options of every run
    loads: tuple[str, ...]  # what the pipeline loads weights with
    block_lists: dict[str, int]
    width: int
    stream_bytes: int  # of the residual stream of `sample`: tokens x width x bytes a number
    branches: tuple[str, ...]
    solver: str
    shift: float
    fps: int
    black: float  # pixels go from here to 1
    failed_write: str  # an error's first words
    batched: bool  # clips have a batch dimension
    plan_model: str
    mini: str  # the bundled model
    open_pipeline: Callable[..., Any]
    check_plan: Callable[[CachePlan, Path], CachePlan]
    fitted: Callable[[CachePlan], CachePlan]  # on 30 steps
    sigmas: tuple[float, ...]
    default_name: Callable[..., str]
    weight_file: Callable[[Path], Path]
    write_deeper_weights: Callable[[Path], None]
    state: Callable[[], dict[str, Tensor]]  # of the checkpoint's transformer
    load_single: Callable[[Path, dict[str, Tensor]], nn.Module]  # one .safetensors of that state
    weights: tuple[str, ...]  # files
    official: str  # the repository that errors name
    parts: dict[str, str] = field(default_factory=dict)  # file -> what its absence is called

    def argv(self, **values: object) -> list[str]:
        """An image of two steps on the tiny checkpoint; values by the names of `options`."""
        base = {"prompt": "red circle", "frames": 1, "steps": 2, "folder": self.checkpoint}
        words = list(self.fixed)
        for name, value in (base | values).items():
            words += [self.options[name], str(value)]
        return words

    def sample(self, pipeline: Any, prompt: str = PROMPT, **changes: Any) -> Tensor:
        """A clip of five frames; changes by the names of `arguments`, or the tree's own."""
        clip = {"size": (32, 32), "frames": 5, "steps": STEPS, "seed": 3, "progress": False}
        given = (clip | changes).items()
        return pipeline.generate(prompt, **{self.arguments.get(k, k): v for k, v in given})

    def computed(self, *steps: int) -> dict[str, list[int]]:
        return {branch: list(steps) for branch in self.branches}

    def intervals(self, *steps: int) -> dict[str, Any]:
        """Blocks 1 and 2 of the last list."""
        return {
            "kind": "intervals",
            "block_list": list(self.block_lists)[-1],
            "intervals": [[1, 2]],
            "compute_steps": self.computed(*steps),
            "skip": "hold",
        }

    def prediction(self, *steps: int, skip: str) -> dict[str, Any]:
        return {"kind": "prediction", "compute_steps": self.computed(*steps), "skip": skip}

    def plan(self, *sites: dict[str, Any], **fields: Any) -> CachePlan:
        """A plan for the tiny transformer on the grid of `sample`."""
        model = {
            "family": self.plan_model.split("-t2v")[0].removesuffix("-tiny"),
            "name": self.plan_model,
            "block_lists": self.block_lists,
            "width": self.width,
        }
        given = {"name": "tiny", "solver": self.solver, "sigmas": list(self.sigmas)} | fields
        return CachePlan.build(
            model=model,
            steps=STEPS,
            shift=self.shift,
            sites=list(sites),
            provenance={"made_by": "tests", "source": "by hand"},
            **given,
        )

    @property
    def calls(self) -> int:
        """Model calls of a full run."""
        return STEPS * len(self.branches)

    @property
    def blocks(self) -> int:
        return sum(self.block_lists.values())

    def lists_of(self, model: nn.Module) -> list[nn.Module]:
        return [getattr(model, name) for name in self.block_lists]

    def moving_clip(self, frames: int = 9, height: int = 40, width: int = 56) -> Tensor:
        columns = torch.linspace(0, 1, width).expand(3, frames, height, width).clone()
        for frame in range(frames):
            columns[:, frame, 8:24, 4 * frame : 4 * frame + 12] = 0.75
        return columns * (1 - self.black) + self.black

    def copy_checkpoint(self, folder: Path) -> Path:
        return shutil.copytree(self.checkpoint, folder)


def wan_case(checkpoint: Path) -> TreeCase:
    def deeper(folder: Path) -> None:
        wan_toys.write_dit(folder, wan_toys.tiny_dit(num_layers=4))

    def single(folder: Path, state: dict[str, Tensor]) -> nn.Module:
        for old in folder.glob("*.safetensors"):
            old.unlink()
        save_file(state, folder / "wan2.1_t2v_tiny_bf16.safetensors")
        return wan.weights.load_transformer(folder, "cpu")

    grid = {"solver": "unipc", "steps": STEPS, "shift": 5.0}
    options = {"model": "task", "frames": "frame_num", "steps": "sample_steps"}
    options |= {"shift": "sample_shift", "guidance": "sample_guide_scale", "seed": "base_seed"}
    options |= {"folder": "ckpt_dir", "target": "save_file", "prompt": "prompt"}
    options |= {"ulysses": "ulysses_size", "ring": "ring_size", "cfg": "cfg_size"}
    script = ROOT / "Wan2.1" / "generate.py"
    t5 = "models_t5_umt5-xxl-enc-bf16.pth"
    files = ("config.json", "Wan2.1_VAE.pth", t5, "diffusion_pytorch_model.safetensors")
    tokenizer = "google/umt5-xxl"
    return TreeCase(
        name="wan",
        checkpoint=checkpoint,
        script=generate,
        script_path=script,
        module=wan.text2video,
        video=wan.video,
        options={name: f"--{option}" for name, option in options.items()},
        arguments={"frames": "frame_num", "steps": "sampling_steps", "guidance": "guide_scale"},
        fixed=("--task", "t2v-mini"),
        loads=("TextEncoder", "VideoVAE", "load_transformer"),
        block_lists={"blocks": wan_toys.TINY_DIT["num_layers"]},
        width=wan_toys.TINY_DIT["dim"],
        stream_bytes=2 * 2 * 2 * wan_toys.TINY_DIT["dim"] * 4,
        branches=("cond", "uncond"),
        solver="unipc",
        shift=5.0,
        fps=16,
        black=-1.0,
        failed_write="save_file",
        batched=False,
        plan_model="wan2.1-t2v-mini",
        mini="t2v-mini",
        open_pipeline=lambda folder=checkpoint, device="cpu", **options: wan.text2video.WanT2V(
            WAN_CONFIGS["t2v-mini"], folder, device=device, **options
        ),
        check_plan=lambda plan, folder: wan.checks.check_plan(plan, folder, **grid),
        fitted=lambda plan: wan.checks.plan_for_run(plan, "dpm++", 30, 3.0),
        sigmas=tuple(wan.sigmas.sigmas_fp32("unipc", STEPS, 5.0)),
        default_name=lambda prompt, still=False: wan.video.default_name(
            "t2v-14B", "1280*720", 1, 1, prompt, still=still, now=NOW
        ),
        weight_file=lambda folder: folder / "diffusion_pytorch_model.safetensors",
        write_deeper_weights=deeper,
        state=lambda: dict(wan_toys.tiny_dit().state_dict()),
        load_single=single,
        weights=files[1:],
        official="Wan-AI/Wan2.1-T2V-14B",
        parts={name: name for name in files}
        | {f"{tokenizer}/tokenizer{end}.json": tokenizer for end in ("", "_config")},
    )


def hunyuan_case(checkpoint: Path) -> TreeCase:
    def deeper(folder: Path) -> None:
        model = hunyuan_toys.tiny_dit(mm_single_blocks_depth=4)
        torch.save({"module": model.state_dict()}, hunyuan_toys.dit_file(folder))

    def single(folder: Path, state: dict[str, Tensor]) -> nn.Module:
        file = folder / "hunyuan_tiny_bf16.safetensors"
        save_file(state, file)
        config = hunyuan_toys.tiny_config(precision="fp32")
        return hyvideo.weights.load_transformer(hyvideo.checkpoint.find_dit(file), config, "cpu")

    options = {"model": "model", "frames": "video-length", "steps": "infer-steps"}
    options |= {"shift": "flow-shift", "guidance": "cfg-scale", "seed": "seed"}
    options |= {"folder": "model-base", "target": "save-path", "prompt": "prompt"}
    options |= {"ulysses": "ulysses-degree", "ring": "ring-degree", "cfg": "cfg-size"}
    official = "hunyuan-video-t2v-720p"
    llm = "xtuner's llava-llama-3-8b-v1_1-transformers: load that repository with transformers'"
    clip = "it is OpenAI's clip-vit-large-patch14, the whole repository"
    return TreeCase(
        name="hunyuan",
        checkpoint=checkpoint,
        script=sample_video,
        script_path=ROOT / "HunyuanVideo" / "sample_video.py",
        module=hyvideo.pipeline,
        video=hyvideo.video,
        options={name: f"--{option}" for name, option in options.items()},
        arguments={
            "frames": "video_length",
            "steps": "infer_steps",
            "shift": "flow_shift",
            "guidance": "cfg_scale",
            "n_prompt": "neg_prompt",
        },
        fixed=("--model", "HYVideo-tiny", "--flow-reverse"),
        loads=("LanguageModel", "PooledClip", "VideoVAE", "load_transformer"),
        block_lists={"double_blocks": 2, "single_blocks": 3},
        width=hunyuan_toys.TINY_DIT["hidden_size"],
        stream_bytes=(2 * 2 * 2 + 9) * hunyuan_toys.TINY_DIT["hidden_size"] * 2,
        branches=("cond",),
        solver="euler",
        shift=7.0,
        fps=24,
        black=0.0,
        failed_write="saving",
        batched=True,
        plan_model="hunyuan-video-tiny",
        mini="HYVideo-mini",
        open_pipeline=lambda folder=checkpoint, device="cpu", **options: (
            hyvideo.pipeline.HunyuanVideo(hunyuan_toys.TINY, folder, device, **options)
        ),
        check_plan=lambda plan, folder: hyvideo.checks.check_plan(
            plan, hunyuan_toys.TINY, STEPS, 7.0
        ),
        fitted=lambda plan: hyvideo.checks.plan_for_run(plan, 30, 5.0),
        sigmas=tuple(hyvideo.sigmas.sigmas_fp32(STEPS, 7.0)),
        default_name=lambda prompt, still=False: hyvideo.video.default_name(
            prompt, 42, still=still, now=NOW
        ),
        weight_file=hunyuan_toys.dit_file,
        write_deeper_weights=deeper,
        state=lambda: dict(hunyuan_toys.tiny_dit().state_dict()),
        load_single=single,
        weights=(
            f"{official}/transformers/mp_rank_00_model_states.pt",
            f"{official}/vae/pytorch_model.pt",
            "text_encoder/model.safetensors",
            "text_encoder_2/model.safetensors",
        ),
        official="tencent/HunyuanVideo",
        parts={
            f"{official}/vae/config.json": "config.json is missing: download it",
            f"{official}/vae/pytorch_model.pt": "pytorch_model.pt is missing: download",
            f"{official}/transformers/mp_rank_00_model_states.pt": "or give --dit-weight",
            "text_encoder": llm,
            "text_encoder/config.json": "text_encoder has no config.json",
            "text_encoder/model.safetensors": "text_encoder has no weight file",
            "text_encoder/tokenizer.json": "text_encoder has no tokenizer",
            "text_encoder_2": f"text_encoder_2 is missing: {clip}",
            "text_encoder_2/model.safetensors": "text_encoder_2 has no weight file",
        },
    )


@contextmanager
def official_setting() -> Iterator[None]:
    """bf16 also where the processor emulates it; one process; the tiny model by its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hyvideo.checks, "emulates", lambda dtype, device: False)
        patch.setitem(HUNYUAN_CONFIGS, "HYVideo-tiny", hunyuan_toys.TINY)
        for name in ("MODEL_BASE", "WORLD_SIZE", "RANK"):
            patch.delenv(name, raising=False)
        yield
