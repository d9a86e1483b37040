"""The HunyuanVideo diffusion transformer, with the parameter names of the official checkpoints.

Double-stream blocks carry image and text apart, single-stream blocks carry both as one sequence.
Shapes: B samples, N image tokens, L text tokens, D width; see layers.py for the types.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .layers import (
    DoubleStreamBlock,
    FinalLayer,
    KeyLens,
    PatchEmbed,
    SingleStreamBlock,
    TimestepEmbedder,
    TokenRefiner,
    VectorEmbedder,
)
from .rope import factors

if TYPE_CHECKING:
    from profiling_core.parallel.sequence import SequenceShare

GUIDANCE_SCALE = 1000.0  # the guidance embedder takes guidance x 1000, multiplied in the DiT's type


def emulates(dtype: torch.dtype, device: torch.device) -> bool:
    """Does this processor lack instructions for `dtype`? It would be ten times slower than fp32."""
    if device.type != "cpu" or dtype == torch.float32:
        return False
    kind = {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    supported = getattr(torch.ops.mkldnn, f"_is_mkldnn_{kind}_supported", None)
    return supported is None or not supported()


class HYVideoDiffusionTransformer(nn.Module):
    """Velocity of noisy video latents, given the timestep, encoded text and a guidance strength."""

    def __init__(
        self,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        in_channels: int = 16,
        out_channels: int = 16,
        hidden_size: int = 3072,
        heads_num: int = 24,
        mlp_width_ratio: float = 4.0,
        mm_double_blocks_depth: int = 20,
        mm_single_blocks_depth: int = 40,
        rope_dim_list: tuple[int, int, int] = (16, 56, 56),
        text_states_dim: int = 4096,
        text_states_dim_2: int = 768,
        token_refiner_depth: int = 2,
        guidance_embed: bool = False,
    ) -> None:
        super().__init__()
        if hidden_size % heads_num:
            raise ValueError(f"hidden_size {hidden_size} does not split into {heads_num} heads")
        if sum(rope_dim_list) != hidden_size // heads_num or any(d % 2 for d in rope_dim_list):
            raise ValueError(
                f"rope_dim_list {tuple(rope_dim_list)}: expected three even numbers that add up to "
                f"the head width {hidden_size // heads_num}"
            )
        self.patch_size, self.rope_dim_list = tuple(patch_size), tuple(rope_dim_list)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.hidden_size, self.heads_num = hidden_size, heads_num
        self.text_states_dim, self.text_states_dim_2 = text_states_dim, text_states_dim_2
        self.guidance_embed = guidance_embed

        dim, heads, ratio = hidden_size, heads_num, mlp_width_ratio
        self.img_in = PatchEmbed(self.patch_size, in_channels, dim)
        self.txt_in = TokenRefiner(text_states_dim, dim, heads, token_refiner_depth, ratio)
        self.time_in = TimestepEmbedder(dim)
        self.vector_in = VectorEmbedder(text_states_dim_2, dim)
        self.guidance_in = TimestepEmbedder(dim) if guidance_embed else None
        self.double_blocks = nn.ModuleList(
            DoubleStreamBlock(dim, heads, ratio) for _ in range(mm_double_blocks_depth)
        )
        self.single_blocks = nn.ModuleList(
            SingleStreamBlock(dim, heads, ratio) for _ in range(mm_single_blocks_depth)
        )
        patch_values = out_channels * self.patch_size[0] * self.patch_size[1] * self.patch_size[2]
        self.final_layer = FinalLayer(dim, patch_values)
        self.share: SequenceShare | None = None  # of the image, where several processes have it

    def share_tokens(self, share: SequenceShare) -> None:
        """Run on this process's share of the image tokens from now on; the text stays whole."""
        self.share = share
        for block in (*self.double_blocks, *self.single_blocks):
            block.attend = share.attention

    @torch.no_grad()
    def init_weights(self) -> None:
        """Start of a training: Xavier linears; gates, modulation and prediction start at zero."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
                if name.endswith(("_mod.linear", "modulation.linear", "adaLN_modulation.1")):
                    nn.init.zeros_(module.weight)
            elif isinstance(module, TimestepEmbedder):
                nn.init.normal_(module.mlp[0].weight, std=0.02)
                nn.init.normal_(module.mlp[2].weight, std=0.02)
        nn.init.xavier_uniform_(self.img_in.proj.weight.flatten(1))
        nn.init.zeros_(self.img_in.proj.bias)
        nn.init.zeros_(self.final_layer.linear.weight)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        text_states: Tensor,
        text_mask: Tensor,
        text_states_2: Tensor,
        freqs_cos: Tensor,
        freqs_sin: Tensor,
        guidance: Tensor | None = None,
        return_dict: bool = True,
    ) -> dict[str, Tensor] | Tensor:
        """Predict the flow.

        x: latents (B, C, T, H, W); t: (B,) timesteps in 0..1000; text_states (B, L, width) with
        text_mask (B, L), 1 for valid tokens, all of them before the padding; text_states_2
        (B, pooled width); freqs_cos, freqs_sin: rope tables (N, head_dim); guidance: (B,) strength
        x 1000 where the model embeds one. Returns {"x": (B, C, T, H, W)}, or the tensor alone.

        Text is cut to the longest prompt of the batch, which changes no result (padded text is
        never attended to) and leaves nothing to mask when the prompts are equally long. A text_mask
        on the CPU spares reading one from the GPU at every call. ValueError when guidance is
        missing or not expected, or sizes do not fit.
        """
        if (guidance is None) == self.guidance_embed:
            what = "needs a guidance strength" if self.guidance_embed else "embeds no guidance"
            raise ValueError(f"this model {what}; guidance is {guidance}")
        grid = self.grid_of(x)
        if len(freqs_cos) != grid[0] * grid[1] * grid[2]:
            raise ValueError(
                f"rope tables of {len(freqs_cos)} rows for {grid[0]}x{grid[1]}x{grid[2]} tokens"
            )
        lens = text_lens(text_mask)
        text_states, mask = self.cut_text(text_states, text_mask, lens)

        vec = self.time_in(t) + self.vector_in(text_states_2)  # (B, D)
        if self.guidance_in is not None:
            vec = vec + self.guidance_in(guidance)
        img = self.img_in(x)  # (B, N, D)
        mask = mask.to(x.device, torch.float32, non_blocking=True)  # no wait for the device
        txt = self.txt_in(text_states, t, mask, self.key_lens(lens, 0))  # (B, L, D)
        rope, key_lens = factors(freqs_cos, freqs_sin), self.key_lens(lens, img.shape[1])
        if self.share is not None:
            img = self.share.take(img)
            rope = self.share.take(rope, dim=0)

        for block in self.double_blocks:
            img, txt = block(img, txt, vec, rope, key_lens)
        tokens, n, txt_len = torch.cat((img, txt), dim=1), img.shape[1], txt.shape[1]
        del img, txt
        for block in self.single_blocks:
            tokens = block(tokens, vec, txt_len, rope, key_lens)

        patches = self.final_layer(tokens[:, :n], vec)
        if self.share is not None:
            patches = self.share.gather(patches)
        flow = self.unpatchify(patches, grid)
        return {"x": flow} if return_dict else flow

    def cut_text(
        self, states: Tensor, mask: Tensor, lens: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """Text and mask without what pads the batch's longest prompt as well."""
        return states[:, : max(lens)], mask[:, : max(lens)]

    def key_lens(self, lens: tuple[int, ...], before: int) -> KeyLens:
        """Keys per sample: `before` tokens, then its valid text; None where nothing is padded."""
        return None if min(lens) == max(lens) else tuple(before + n for n in lens)

    def grid_of(self, x: Tensor) -> tuple[int, int, int]:
        """Tokens along frames, rows and columns."""
        sizes = tuple(x.shape[2:])
        if any(size % patch for size, patch in zip(sizes, self.patch_size, strict=True)):
            raise ValueError(f"latent of {sizes} does not split into patches of {self.patch_size}")
        return tuple(size // patch for size, patch in zip(sizes, self.patch_size, strict=True))

    def unpatchify(self, x: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """(B, N, C * pt * ph * pw) to (B, C, T, H, W)."""
        x = x.unflatten(-1, (self.out_channels, *self.patch_size)).unflatten(1, grid)
        x = x.permute(0, 4, 1, 5, 2, 6, 3, 7)  # (B, C, t, pt, h, ph, w, pw)
        return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def text_lens(mask: Tensor) -> tuple[int, ...]:
    """Valid text tokens per sample; ValueError when a prompt has none."""
    lens = tuple(int(n) for n in mask.sum(dim=1).tolist())
    if min(lens) < 1:
        raise ValueError(f"text_mask leaves a prompt without a valid token: {lens}")
    return lens
