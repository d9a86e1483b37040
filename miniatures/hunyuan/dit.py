"""The HunyuanVideo miniature's transformer, trained on cached latents with flow matching.

First as an ordinary conditional model whose guidance embedder always sees the strength 1; the
stage `distil` then teaches that embedder the strengths 1 to 8.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from miniatures import flow, optim
from miniatures.hunyuan import text

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "HunyuanVideo"))  # the scripts of a tree run from inside it

import hyvideo.layers  # noqa: E402
from hyvideo.config import CONFIGS, NEGATIVE_PROMPT, TEMPLATES  # noqa: E402
from hyvideo.model import GUIDANCE_SCALE, HYVideoDiffusionTransformer  # noqa: E402
from hyvideo.rope import rope_tables  # noqa: E402
from hyvideo.text_encoder import LanguageModel, PooledClip  # noqa: E402

FILE = Path("hunyuan-video-t2v-720p") / "transformers" / "mp_rank_00_model_states.pt"
CONFIG = CONFIGS["HYVideo-mini"]
GRID = (9, 8, 8)  # tokens along frames, rows and columns


class Prompts:
    """Encoded prompts, each encoded once, by the tree's own encoders."""

    def __init__(self, folder: Path, seed: int, device: str) -> None:
        if not dist.is_initialized() or dist.get_rank() == 0:
            write_text_encoders(folder, seed)
        if dist.is_initialized():
            dist.barrier()
        self.llm = LanguageModel(folder / "text_encoder", CONFIG, "cpu")
        self.clip = PooledClip(folder / "text_encoder_2", CONFIG, "cpu")
        self.known: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self.device = device

    def batch(self, prompts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """States (B, L, width), mask (B, L; on the CPU) and pooled vectors (B, width)."""
        for prompt in prompts:
            if prompt not in self.known:
                states, mask = self.llm(prompt, CONFIG.video_length)
                self.known[prompt] = (states, mask, self.clip(prompt))
        states, mask, pooled = (
            torch.cat(parts) for parts in zip(*(self.known[p] for p in prompts), strict=True)
        )
        return states.to(self.device), mask, pooled.to(self.device)


def write_text_encoders(folder: Path, seed: int) -> None:
    """`text_encoder/` and `text_encoder_2/`, models and tokenizers."""
    templates = tuple(template.text for template in TEMPLATES.values())
    tokenizer = text.build_llama_tokenizer(templates)
    text.build_llama(seed, tokenizer).save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "text_encoder")
    tokenizer = text.build_clip_tokenizer()
    text.build_clip(seed, tokenizer).save_pretrained(folder / "text_encoder_2")
    tokenizer.save_pretrained(folder / "text_encoder_2")


class Flow:
    """Calls the transformer on noisy latents, prompts and guidance strengths."""

    def __init__(self, prompts: Prompts, device: str) -> None:
        self.prompts = prompts
        self.rope = rope_tables(GRID, CONFIG.transformer["rope_dim_list"], device=device)

    def __call__(
        self, model: nn.Module, noisy: Tensor, sigma: Tensor, prompts: list[str], scale: Tensor
    ) -> Tensor:
        """Predicted velocity, fp32 (B, 16, f, h, w); sigma, scale: (B,)."""
        states, mask, pooled = self.prompts.batch(prompts)
        with optim.mixed_precision(noisy.device):
            guidance = scale * GUIDANCE_SCALE
            flow = model(noisy, 1000 * sigma, states, mask, pooled, *self.rope, guidance)["x"]
        return flow.float()


class PaddedTransformer(HYVideoDiffusionTransformer):
    """Keeps padded text and hides it by a bias: compiled blocks see one shape for every prompt."""

    def cut_text(
        self, states: Tensor, mask: Tensor, lens: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        return states, mask

    def key_lens(self, lens: tuple[int, ...], before: int) -> Tensor:
        return flow.hiding_bias(tuple(before + n for n in lens), before + CONFIG.text_len)


def build() -> PaddedTransformer:
    return PaddedTransformer(**CONFIG.transformer)


def matrices_of(model: PaddedTransformer) -> list[nn.Parameter]:
    """Matrices of the blocks, but those of the modulation, which start at zero."""
    blocks = nn.ModuleList([*model.double_blocks, *model.single_blocks])
    return [p for name, p in blocks.named_parameters() if p.ndim == 2 and "mod" not in name]


def prepare(model: nn.Module, device: str, compiled: bool) -> None:
    """What makes training fast here: plain attention on a CPU, compiled blocks on request."""
    if device == "cpu":
        hyvideo.layers.attention = flow.plain_attention
    if compiled:
        for block in (*model.double_blocks, *model.single_blocks):
            block.compile(dynamic=False)


def train(
    run: optim.Run,
    batch: int,
    compiled: bool,
    lr: float = 1.5e-3,
    checkpoint: Path | None = None,
) -> None:
    """Trains the transformer into `dit.pt`, from the weights of `checkpoint` if given."""
    optim.start_processes(run.device)
    torch.manual_seed(run.seed)
    model = build()
    model.init_weights()
    if checkpoint is not None:
        model.load_state_dict(read(checkpoint))
    model.to(run.device)
    predict = Flow(Prompts(run.folder / "encoders", run.seed, run.device), run.device)
    prepare(model, run.device, compiled)

    def velocities(
        net: nn.Module, x0: Tensor, noise: Tensor, sigma: Tensor, prompts: list[str]
    ) -> tuple[Tensor, Tensor]:
        noisy = flow.noisy_latents(x0, noise, sigma)
        return predict(net, noisy, sigma, prompts, torch.ones_like(sigma)), noise - x0

    settings = {"batch": batch, "lr": lr, "decay": 0.99, "negative": NEGATIVE_PROMPT}
    flow.train(run, model, matrices_of(model), velocities, **settings)


def read(folder: Path) -> dict[str, Tensor]:
    """The transformer's weights in a checkpoint folder of ours, fp32."""
    state = torch.load(folder / FILE, weights_only=True, map_location="cpu")["module"]
    return {name: tensor.float() for name, tensor in state.items()}


def load(path: Path, averaged: bool = True) -> tuple[PaddedTransformer, int]:
    """Model of a training under way (`run/dit.pt` or `run/distil.pt`) and its step."""
    state = torch.load(path, weights_only=True, map_location="cpu")
    model = build()
    model.load_state_dict(state["average" if averaged else "model"])
    return model.eval(), state["step"]
