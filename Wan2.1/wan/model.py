"""The Wan2.1 diffusion transformer, with the parameter names of the official checkpoints.

Under bf16 autocast the large linears and attention run in bf16; the residual stream, every norm,
the modulation, the time embedding and the head stay in fp32. Shapes: B samples, L tokens
(padded), D width, T text rows.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import attention
from .rope import apply_rope, rotation

if TYPE_CHECKING:
    from profiling_core.parallel.sequence import SequenceShare

Grid = tuple[int, int, int]  # frames, rows and columns of tokens
PICTURES = {"t2v": 0, "i2v": 1, "flf2v": 2, "vace": 0}  # model type -> those that CLIP reads


def no_autocast(device: torch.device) -> AbstractContextManager:
    """A region that computes in the types it is given; the meta device knows no autocast."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def emulates_bf16(device: torch.device) -> bool:
    """Is this a processor without bf16 instructions? It runs bf16 ten times slower than fp32."""
    mkldnn = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return device.type == "cpu" and (mkldnn is None or not mkldnn())


def bf16_autocast(device: torch.device, weights: torch.dtype) -> AbstractContextManager:
    """bf16 autocast as the official code has it; none for fp32 weights where it is emulated."""
    if weights == torch.float32 and emulates_bf16(device):
        return no_autocast(device)
    return torch.autocast(device.type, torch.bfloat16)


def linear_type(x: Tensor) -> torch.dtype:
    """The type that a linear takes x in: autocast's, else x's own."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype


def linear_fp32(layer: nn.Linear, x: Tensor) -> Tensor:
    """The layer in fp32, also when its weights were loaded as bf16; autocast must be off."""
    return F.linear(x.float(), layer.weight.float(), layer.bias.float())


def sinusoid(timesteps: Tensor, dim: int) -> Tensor:
    """Cosines, then sines, of timesteps (B,) at dim / 2 frequencies; fp32 (B, dim)."""
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float64, device=timesteps.device) / half
    angles = torch.outer(timesteps.double(), 10000.0**-exponents)
    return torch.cat((angles.cos(), angles.sin()), dim=1).float()


class RMSNorm(nn.Module):
    """x / rms(x) over the whole width, rounded to x's type, then times the weight."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        with no_autocast(x.device):  # CUDA's would make an fp32 copy of x first
            return F.rms_norm(x, x.shape[-1:], None, self.eps) * self.weight


class LayerNorm(nn.LayerNorm):
    """Layer norm computed in fp32, returned in x's type; then times `scale` (B, 1, D), if given."""

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        weight, bias = (None if p is None else p.float() for p in (self.weight, self.bias))
        inside = scale is not None and len(x) == 1 and x.dtype == scale.dtype == torch.float32
        if inside:  # the norm's own weight: a pass fewer, the same bits
            weight, scale = scale.flatten(), None
        x = F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)
        return x if scale is None else x * scale


def modulate(norm: LayerNorm, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """norm(x) * (1 + scale) + shift, rounded to the type of the linear that takes it."""
    x = norm(x, 1 + scale)
    kind = linear_type(x)
    if torch.is_grad_enabled():
        return (x + shift).to(kind)
    return torch.add(x, shift, out=x if x.dtype == kind else torch.empty_like(x, dtype=kind))


def gated(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """x + y * gate."""
    return (y * gate).add_(x)


class GELU(nn.GELU):
    """In place where nothing needs its input afterwards: it is the widest tensor of a block."""

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate=self.approximate, out=None if torch.is_grad_enabled() else x)


class SelfAttention(nn.Module):
    """Attention of all tokens to the first key_lens[b] tokens of their clip, with rope."""

    def __init__(self, dim: int, num_heads: int, qk_norm: bool, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = RMSNorm(dim, eps) if qk_norm else nn.Identity()
        self.norm_k = RMSNorm(dim, eps) if qk_norm else nn.Identity()

    def split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1))  # (B, L, heads, head_dim)

    def forward(self, x: Tensor, rope: Tensor, key_lens: tuple[int, ...] | None) -> Tensor:
        v = self.split_heads(self.v(x))
        q = apply_rope(self.split_heads(self.norm_q(self.q(x))), rope).to(v.dtype)
        k = apply_rope(self.split_heads(self.norm_k(self.k(x))), rope).to(v.dtype)
        return self.o(self.attend(q, k, v, key_lens).flatten(2))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, key_lens: tuple[int, ...] | None) -> Tensor:
        """Attention of all tokens; replaced where several processes share them."""
        return attention(q, k, v, key_lens)


class CrossAttention(SelfAttention):
    """Attention of the tokens to all text rows, zero-padded ones included; no rope, no mask."""

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        v = self.split_heads(self.v(context))
        q = self.split_heads(self.norm_q(self.q(x))).to(v.dtype)
        k = self.split_heads(self.norm_k(self.k(context))).to(v.dtype)
        return self.o(attention(q, k, v).flatten(2))


class ImageCrossAttention(CrossAttention):
    """The same queries also attend to the picture's tokens, which stand before the text's rows."""

    def __init__(self, dim: int, num_heads: int, qk_norm: bool, eps: float, text_len: int) -> None:
        super().__init__(dim, num_heads, qk_norm, eps)
        self.text_len = text_len
        self.k_img = nn.Linear(dim, dim)
        self.v_img = nn.Linear(dim, dim)
        self.norm_k_img = RMSNorm(dim, eps) if qk_norm else nn.Identity()

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        image, text = context[:, : -self.text_len], context[:, -self.text_len :]
        v, v_img = self.split_heads(self.v(text)), self.split_heads(self.v_img(image))
        q = self.split_heads(self.norm_q(self.q(x))).to(v.dtype)
        k = self.split_heads(self.norm_k(self.k(text))).to(v.dtype)
        k_img = self.split_heads(self.norm_k_img(self.k_img(image))).to(v.dtype)
        return self.o((attention(q, k, v) + attention(q, k_img, v_img)).flatten(2))


class Block(nn.Module):
    """Self-attention and FFN, both modulated and gated by the timestep; cross-attention between.

    text_len: rows of text in the context, behind a picture's tokens; None: text alone.
    """

    def __init__(
        self,
        dim: int,
        ffn_dim: int,
        num_heads: int,
        qk_norm: bool,
        cross_attn_norm: bool,
        eps: float,
        text_len: int | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, eps, elementwise_affine=False)
        self.self_attn = SelfAttention(dim, num_heads, qk_norm, eps)
        # the checkpoints call the norm before cross-attention norm3, the one before the FFN norm2
        self.norm3 = LayerNorm(dim, eps) if cross_attn_norm else nn.Identity()
        if text_len is None:
            self.cross_attn = CrossAttention(dim, num_heads, qk_norm, eps)
        else:
            self.cross_attn = ImageCrossAttention(dim, num_heads, qk_norm, eps, text_len)
        self.norm2 = LayerNorm(dim, eps, elementwise_affine=False)
        self.ffn = nn.Sequential(
            nn.Linear(dim, ffn_dim), GELU(approximate="tanh"), nn.Linear(ffn_dim, dim)
        )
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def forward(
        self,
        x: Tensor,
        e: Tensor,
        context: Tensor,
        rope: Tensor,
        key_lens: tuple[int, ...] | None,
    ) -> Tensor:
        """x (B, L, D); e (B, 6, D) fp32; context (B, T, D). Returns the updated x, fp32."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.modulation.float() + e).chunk(6, dim=1)
        x = gated(x, self.self_attn(modulate(self.norm1, x, shift1, scale1), rope, key_lens), gate1)
        x = x + self.cross_attn(self.norm3(x).to(linear_type(x)), context)
        h = modulate(self.norm2, x, shift2, scale2)
        for layer in self.ffn:  # one by one: what a layer has read is freed
            h = layer(h)
        return gated(x, h, gate2)


class Head(nn.Module):
    """Modulated norm and the linear back to patches, in fp32 throughout."""

    def __init__(self, dim: int, patch_values: int, eps: float) -> None:
        super().__init__()
        self.norm = LayerNorm(dim, eps, elementwise_affine=False)
        self.head = nn.Linear(dim, patch_values)
        self.modulation = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """x (B, L, D), e (B, D) fp32. Returns fp32 (B, L, patch_values)."""
        with no_autocast(x.device):
            shift, scale = (self.modulation.float() + e[:, None]).chunk(2, dim=1)
            return linear_fp32(self.head, modulate(self.norm, x, shift, scale))


class ImageEmbedding(nn.Module):
    """CLIP's features to tokens of the context; learned positions tell two pictures apart."""

    def __init__(self, image_dim: int, dim: int, positions: int | None = None) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            LayerNorm(image_dim),
            nn.Linear(image_dim, image_dim),
            nn.GELU(),
            nn.Linear(image_dim, dim),
            LayerNorm(dim),
        )
        table = None if positions is None else nn.Parameter(torch.zeros(1, positions, image_dim))
        self.register_parameter("emb_pos", table)

    def forward(self, features: Tensor) -> Tensor:
        """(B, tokens of all pictures, image_dim) to (B, tokens, D)."""
        if self.emb_pos is not None:
            features = features + self.emb_pos
        first, *others = self.proj
        x = first(features.float()).to(self.proj[1].weight.dtype)
        for layer in others:
            x = layer(x)
        return x


class WanModel(nn.Module):
    """Velocity of noisy video latents, given the timestep, encoded text and, if any, pictures.

    model_type: text alone ("t2v"), a first picture ("i2v"), a first and a last one ("flf2v").
    """

    block_class: type[Block] = Block

    def __init__(
        self,
        model_type: str = "t2v",
        patch_size: tuple[int, int, int] = (1, 2, 2),
        text_len: int = 512,
        in_dim: int = 16,
        dim: int = 2048,
        ffn_dim: int = 8192,
        freq_dim: int = 256,
        text_dim: int = 4096,
        out_dim: int = 16,
        num_heads: int = 16,
        num_layers: int = 32,
        qk_norm: bool = True,
        cross_attn_norm: bool = True,
        eps: float = 1e-6,
        image_dim: int = 1280,
        image_tokens: int = 257,
    ) -> None:
        super().__init__()
        if model_type not in PICTURES:
            raise ValueError(
                f"model_type {model_type!r} is not supported, expected {', '.join(PICTURES)}"
            )
        if dim % num_heads or (dim // num_heads) % 2:
            raise ValueError(f"dim {dim} does not split into {num_heads} heads of even width")
        self.model_type, self.patch_size, self.text_len = model_type, tuple(patch_size), text_len
        self.dim, self.num_heads, self.freq_dim = dim, num_heads, freq_dim
        self.in_dim, self.out_dim, self.text_dim = in_dim, out_dim, text_dim
        self.patch_embedding = nn.Conv3d(in_dim, dim, self.patch_size, self.patch_size)
        self.text_embedding = nn.Sequential(
            nn.Linear(text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(
            nn.Linear(freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        pictures = PICTURES[model_type]
        self.image_shape = (pictures * image_tokens, image_dim)  # of CLIP's features of a clip
        rows = text_len if pictures else None
        self.block_sizes = (dim, ffn_dim, num_heads, qk_norm, cross_attn_norm, eps, rows)
        self.blocks = nn.ModuleList(self.block_class(*self.block_sizes) for _ in range(num_layers))
        patch_values = out_dim * self.patch_size[0] * self.patch_size[1] * self.patch_size[2]
        self.head = Head(dim, patch_values, eps)
        if pictures:
            positions = self.image_shape[0] if pictures > 1 else None
            self.img_emb = ImageEmbedding(image_dim, dim, positions)
        self.share: SequenceShare | None = None  # of the tokens, where several processes have them
        self.init_weights()

    def share_tokens(self, share: SequenceShare) -> None:
        """Run on this process's share of the tokens from now on; the prediction stays whole."""
        self.share = share
        for module in self.modules():
            if type(module) is SelfAttention:
                module.attend = share.attention

    @torch.no_grad()
    def init_weights(self) -> None:
        """Start of a training: Xavier linears, small embeddings, and a head that predicts zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embedding.weight.flatten(1))
        for embedding in (self.text_embedding, self.time_embedding):
            nn.init.normal_(embedding[0].weight, std=0.02)
            nn.init.normal_(embedding[2].weight, std=0.02)
        nn.init.zeros_(self.head.head.weight)

    def forward(
        self,
        x: list[Tensor],
        t: Tensor,
        context: list[Tensor],
        seq_len: int,
        clip_fea: Tensor | None = None,
        y: list[Tensor] | None = None,
    ) -> list[Tensor]:
        """Predict the flow of every clip.

        x: latents (C, F, H, W), one per sample; t: (B,) timesteps, int64 or float; context: text
        embeddings (rows, text_dim), zero-padded here to text_len rows, all of them attended;
        seq_len: tokens per sample after padding; clip_fea: CLIP's features (pictures, tokens,
        image_dim) of one sample or of all in order; y: the pictures' channels, which are joined to
        x. Returns fp32 (out_dim, F, H, W) per sample. ValueError if a clip has more tokens than
        seq_len, sizes that do not split into patches, or pictures that the model does not take.
        """
        features = self.features_of(clip_fea, y, len(x))
        if y is not None:
            x = [torch.cat((latent, extra)) for latent, extra in zip(x, y, strict=True)]
        x, e, kwargs, grids = self.embed(x, t, context, seq_len, features)
        for block in self.blocks:
            x = block(x, **kwargs)
        return self.predict(x, e, grids)

    def embed(
        self, x: list[Tensor], t: Tensor, context: list[Tensor], seq_len: int, image: Tensor | None
    ) -> tuple[Tensor, Tensor, dict[str, Any], list[Grid]]:
        """Tokens (B, L, D), e (B, D) for the head, the blocks' other arguments, and the grids."""
        x, grids = self.embed_patches(x, seq_len, self.patch_embedding)
        rope = self.rope(grids, seq_len, x.device)
        if self.share is not None:
            x, rope = self.share.take(x), self.share.take(rope)
        e, e0 = self.embed_time(t)
        text = self.embed_text(context)
        if image is not None:
            text = torch.cat((self.img_emb(image).to(text.dtype), text), dim=1)
        key_lens = self.key_lens(grids, seq_len)
        return x, e, {"e": e0, "context": text, "rope": rope, "key_lens": key_lens}, grids

    def predict(self, x: Tensor, e: Tensor, grids: list[Grid]) -> list[Tensor]:
        """The flow of every clip from the last block's tokens."""
        patches = self.head(x, e)
        if self.share is not None:
            patches = self.share.gather(patches)
        return self.unpatchify(patches, grids)

    def features_of(
        self, clip_fea: Tensor | None, y: list[Tensor] | None, samples: int
    ) -> Tensor | None:
        """CLIP's features by sample; ValueError for pictures that the model type has no use for."""
        needs = self.image_shape[0] > 0
        if needs != (clip_fea is not None) or needs != (y is not None):
            has = "needs clip_fea and y" if needs else "has no image branch: no clip_fea, no y"
            raise ValueError(f"a model of type {self.model_type!r} {has}")
        if clip_fea is None:
            return None
        return clip_fea.reshape(-1, *self.image_shape).expand(samples, -1, -1)

    def embed_patches(
        self, latents: list[Tensor], seq_len: int, embedding: nn.Module
    ) -> tuple[Tensor, list[Grid]]:
        """Tokens (B, seq_len, D), zero rows after each clip's own, and the grids."""
        grids = [self.grid_of(latent, seq_len) for latent in latents]
        batches = [torch.stack(latents)] if len(set(grids)) == 1 else [x[None] for x in latents]
        rows = [embedding(x).flatten(2).transpose(1, 2) for x in batches]  # (B, n, D)
        return torch.cat([F.pad(r, (0, 0, 0, seq_len - r.shape[1])) for r in rows]), grids

    def grid_of(self, latent: Tensor, seq_len: int) -> Grid:
        sizes = tuple(latent.shape[1:])
        if any(size % patch for size, patch in zip(sizes, self.patch_size, strict=True)):
            raise ValueError(f"latent of {sizes} does not split into patches of {self.patch_size}")
        grid = tuple(size // patch for size, patch in zip(sizes, self.patch_size, strict=True))
        if grid[0] * grid[1] * grid[2] > seq_len:
            raise ValueError(f"a clip has {grid[0] * grid[1] * grid[2]} tokens, seq_len {seq_len}")
        return grid

    def unpatchify(self, x: Tensor, grids: list[Grid]) -> list[Tensor]:
        """(B, L, pt * ph * pw * C) to one (C, F, H, W) per sample; padding rows are dropped."""
        clips = []
        for rows, grid in zip(x, grids, strict=True):
            rows = rows[: grid[0] * grid[1] * grid[2]].view(*grid, *self.patch_size, self.out_dim)
            clip = rows.permute(6, 0, 3, 1, 4, 2, 5)  # (C, f, pt, h, ph, w, pw)
            clips.append(clip.flatten(5, 6).flatten(3, 4).flatten(1, 2))
        return clips

    def embed_time(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """e (B, D) for the head and e0 (B, 6, D) for the blocks, both fp32."""
        with no_autocast(t.device):
            first, last = self.time_embedding[0], self.time_embedding[2]
            e = linear_fp32(last, F.silu(linear_fp32(first, sinusoid(t, self.freq_dim))))
            return e, linear_fp32(self.time_projection[1], F.silu(e)).unflatten(1, (6, self.dim))

    def embed_text(self, context: list[Tensor]) -> Tensor:
        """(B, text_len, D); rows past a prompt's end are zero before the layers, not after."""
        if max(rows.shape[0] for rows in context) > self.text_len:
            raise ValueError(f"a prompt has more rows than text_len {self.text_len}")
        padded = [F.pad(rows, (0, 0, 0, self.text_len - rows.shape[0])) for rows in context]
        return self.text_embedding(torch.stack(padded).to(self.text_embedding[0].weight.dtype))

    def rope(self, grids: list[Grid], seq_len: int, device: torch.device) -> Tensor:
        """Rotation factors, complex128 (B or 1, L, 1, head_dim / 2); one row serves equal grids."""
        head_dim = self.dim // self.num_heads
        per_grid = {g: rotation(g, head_dim, seq_len, device) for g in set(grids)}
        order = grids if len(per_grid) > 1 else grids[:1]
        return torch.stack([per_grid[g] for g in order])

    def key_lens(self, grids: list[Grid], seq_len: int) -> tuple[int, ...] | None:
        """Tokens per clip where some clip is padded; None when there is nothing to hide."""
        lens = tuple(f * h * w for f, h, w in grids)
        return None if min(lens) == seq_len else lens
