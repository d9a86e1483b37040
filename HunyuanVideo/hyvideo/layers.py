"""The parts of the transformer: norms, embedders, the token refiner, both kinds of blocks.

Parameter names are those of the official checkpoints. Under bf16 autocast the linears and attention
run in bf16 and the streams are bf16 at every block boundary; norms and modulation are fp32.
Shapes: B samples, N image tokens, L text tokens, D width.
"""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import attention
from .rope import apply_rope

KeyLens = tuple[int, ...] | None  # tokens per sample that may be attended to; None: all

EPS = 1e-6
FREQUENCIES = 256


def sinusoid(t: Tensor, dim: int = FREQUENCIES) -> Tensor:
    """Cosines, then sines, of values (B,) at dim / 2 frequencies; fp32 (B, dim)."""
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = t[:, None].float() * torch.exp(-math.log(10000.0) * exponents)
    return torch.cat((angles.cos(), angles.sin()), dim=1)


def no_autocast(device: torch.device) -> AbstractContextManager:
    """A region that computes in the types it is given; the meta device knows no autocast."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def linear_type(x: Tensor) -> torch.dtype:
    """The type that a linear takes x in: autocast's, else x's own."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype


class LayerNorm(nn.LayerNorm):
    """Layer norm computed and returned in fp32, as GPUs under autocast do; times `scale` (B, D)."""

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        weight, bias = (None if p is None else p.float() for p in (self.weight, self.bias))
        if scale is not None and len(scale) == 1:  # the norm's own weight: one pass, the same bits
            weight, scale = scale[0].float(), None
        x = F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps)
        return x if scale is None else x * scale[:, None]


def modulate(norm: LayerNorm, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """norm(x) * (1 + scale) + shift with vectors (B, D), rounded to the type of the next linear."""
    x = norm(x, 1 + scale)
    kind = linear_type(x)
    if torch.is_grad_enabled():
        return (x + shift[:, None]).to(kind)
    rounded = x if x.dtype == kind else torch.empty_like(x, dtype=kind)
    return torch.add(x, shift[:, None], out=rounded)


def gated(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """x + y * gate, of x and y (B, T, D) and a vector (B, D)."""
    return (y * gate[:, None]).add_(x)


def gelu_beside(x: Tensor, mlp: Tensor) -> Tensor:
    """x and gelu(mlp) side by side (B, T, D + hidden), without a copy of the latter."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():  # neither knows such an out=
        return torch.cat((x, F.gelu(mlp, approximate="tanh")), dim=-1)
    joined = x.new_empty((*x.shape[:2], x.shape[-1] + mlp.shape[-1]))
    joined[..., : x.shape[-1]] = x
    F.gelu(mlp, approximate="tanh", out=joined[..., x.shape[-1] :])
    return joined


class RMSNorm(nn.Module):
    """x / rms(x) over the last axis in fp32, rounded to x's type, then times the weight."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        with no_autocast(x.device):  # CUDA's would make an fp32 copy of x first
            return F.rms_norm(x, x.shape[-1:], None, EPS) * self.weight


class MLP(nn.Module):
    """Linear, activation, linear."""

    def __init__(self, dim: int, hidden: int, activation: nn.Module) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = activation
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class TimestepEmbedder(nn.Module):
    """A number per sample (timestep, guidance) to a vector (B, D)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(sinusoid(t).to(self.mlp[0].weight.dtype))


class VectorEmbedder(nn.Module):
    """The pooled text vector (B, width) to (B, D)."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.in_layer = nn.Linear(width, dim)
        self.out_layer = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_layer(F.silu(self.in_layer(x.to(self.in_layer.weight.dtype))))


class TextProjection(nn.Module):
    """The mean text state (B, width) to (B, D)."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class Modulation(nn.Module):
    """`count` vectors (B, D) from the conditioning vector (B, D)."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.linear = nn.Linear(dim, count * dim)

    def forward(self, vec: Tensor) -> tuple[Tensor, ...]:
        return self.linear(F.silu(vec)).chunk(self.count, dim=-1)


class PatchEmbed(nn.Module):
    """Latents (B, C, T, H, W) to tokens (B, N, D): frame slowest, then row, then column."""

    def __init__(self, patch_size: tuple[int, int, int], channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(channels, dim, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class RefinerBlock(nn.Module):
    """Self-attention and MLP over the text, gated by timestep and mean text; no rope."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = LayerNorm(dim, eps=EPS)
        self.self_attn_qkv = nn.Linear(dim, 3 * dim)
        self.self_attn_proj = nn.Linear(dim, dim)
        self.norm2 = LayerNorm(dim, eps=EPS)
        self.mlp = MLP(dim, int(dim * mlp_ratio), nn.SiLU())
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x: Tensor, c: Tensor, text_lens: KeyLens) -> Tensor:
        """x (B, L, D), c (B, D); text_lens hides each sample's padding from its queries."""
        gate1, gate2 = self.adaLN_modulation(c)[:, None].chunk(2, dim=-1)
        qkv = self.self_attn_qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.unbind(2)  # (B, L, heads, head_dim)
        x = x + gate1 * self.self_attn_proj(attention(q, k, v, text_lens).flatten(2))
        return x + gate2 * self.mlp(self.norm2(x))


class TokenRefiner(nn.Module):
    """Text states (B, L, width) to text tokens (B, L, D)."""

    def __init__(self, width: int, dim: int, heads: int, depth: int, mlp_ratio: float) -> None:
        super().__init__()
        self.input_embedder = nn.Linear(width, dim)
        self.t_embedder = TimestepEmbedder(dim)
        self.c_embedder = TextProjection(width, dim)
        self.individual_token_refiner = nn.Module()
        self.individual_token_refiner.blocks = nn.ModuleList(
            RefinerBlock(dim, heads, mlp_ratio) for _ in range(depth)
        )

    def forward(self, x: Tensor, t: Tensor, mask: Tensor, text_lens: KeyLens) -> Tensor:
        """mask (B, L) fp32, 1 for valid tokens: of these the raw states' mean is conditioned on."""
        mean = (x * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)  # fp32
        c = self.t_embedder(t) + self.c_embedder(mean)
        x = self.input_embedder(x.to(self.input_embedder.weight.dtype))
        for block in self.individual_token_refiner.blocks:
            x = block(x, c, text_lens)
        return x


class JointAttention(nn.Module):
    """Attention over image and text as one sequence."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, key_lens: KeyLens, txt_len: int) -> Tensor:
        """All (B, N + L, heads, head_dim); replaced where several processes share the image."""
        return attention(q, k, v, key_lens)


class DoubleStreamBlock(JointAttention):
    """Image and text with weights of their own, one attention over both (image first)."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.heads = heads
        hidden, head_dim = int(dim * mlp_ratio), dim // heads
        self.img_mod = Modulation(dim, 6)
        self.img_norm1 = LayerNorm(dim, EPS, elementwise_affine=False)
        self.img_attn_qkv = nn.Linear(dim, 3 * dim)
        self.img_attn_q_norm = RMSNorm(head_dim)
        self.img_attn_k_norm = RMSNorm(head_dim)
        self.img_attn_proj = nn.Linear(dim, dim)
        self.img_norm2 = LayerNorm(dim, EPS, elementwise_affine=False)
        self.img_mlp = MLP(dim, hidden, nn.GELU(approximate="tanh"))
        self.txt_mod = Modulation(dim, 6)
        self.txt_norm1 = LayerNorm(dim, EPS, elementwise_affine=False)
        self.txt_attn_qkv = nn.Linear(dim, 3 * dim)
        self.txt_attn_q_norm = RMSNorm(head_dim)
        self.txt_attn_k_norm = RMSNorm(head_dim)
        self.txt_attn_proj = nn.Linear(dim, dim)
        self.txt_norm2 = LayerNorm(dim, EPS, elementwise_affine=False)
        self.txt_mlp = MLP(dim, hidden, nn.GELU(approximate="tanh"))

    def forward(
        self, img: Tensor, txt: Tensor, vec: Tensor, rope: Tensor, key_lens: KeyLens
    ) -> tuple[Tensor, Tensor]:
        """img (B, N, D), txt (B, L, D), vec (B, D). Returns both streams updated."""
        i_shift1, i_scale1, i_gate1, i_shift2, i_scale2, i_gate2 = self.img_mod(vec)
        t_shift1, t_scale1, t_gate1, t_shift2, t_scale2, t_gate2 = self.txt_mod(vec)

        qkv = self.img_attn_qkv(modulate(self.img_norm1, img, i_shift1, i_scale1))
        img_q, img_k, img_v = qkv.unflatten(-1, (3, self.heads, -1)).unbind(2)
        img_q = apply_rope(self.img_attn_q_norm(img_q).to(img_v), rope)
        img_k = apply_rope(self.img_attn_k_norm(img_k).to(img_v), rope)

        qkv = self.txt_attn_qkv(modulate(self.txt_norm1, txt, t_shift1, t_scale1))
        txt_q, txt_k, txt_v = qkv.unflatten(-1, (3, self.heads, -1)).unbind(2)
        txt_q = self.txt_attn_q_norm(txt_q).to(txt_v)
        txt_k = self.txt_attn_k_norm(txt_k).to(txt_v)

        q, k, v = (
            torch.cat(both, dim=1) for both in ((img_q, txt_q), (img_k, txt_k), (img_v, txt_v))
        )
        del qkv, img_q, img_k, img_v, txt_q, txt_k, txt_v  # a third of what the block has alive
        joint = self.attend(q, k, v, key_lens, txt.shape[1]).flatten(2)  # (B, N + L, D)
        del q, k, v
        img_attn, txt_attn = joint.split((img.shape[1], txt.shape[1]), dim=1)

        img = gated(img, self.img_attn_proj(img_attn), i_gate1)
        img = gated(img, self.img_mlp(modulate(self.img_norm2, img, i_shift2, i_scale2)), i_gate2)
        txt = gated(txt, self.txt_attn_proj(txt_attn), t_gate1)
        txt = gated(txt, self.txt_mlp(modulate(self.txt_norm2, txt, t_shift2, t_scale2)), t_gate2)
        return img, txt


class SingleStreamBlock(JointAttention):
    """Image and text as one sequence; attention and MLP side by side in two fused linears."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.heads, self.widths = heads, (3 * dim, int(dim * mlp_ratio))
        self.modulation = Modulation(dim, 3)
        self.pre_norm = LayerNorm(dim, EPS, elementwise_affine=False)
        self.linear1 = nn.Linear(dim, sum(self.widths))
        self.q_norm = RMSNorm(dim // heads)
        self.k_norm = RMSNorm(dim // heads)
        self.linear2 = nn.Linear(dim + self.widths[1], dim)

    def forward(
        self, x: Tensor, vec: Tensor, txt_len: int, rope: Tensor, key_lens: KeyLens
    ) -> Tensor:
        """x (B, N + L, D), the last txt_len tokens text and not turned. Returns x updated."""
        shift, scale, gate = self.modulation(vec)
        qkv, mlp = self.linear1(modulate(self.pre_norm, x, shift, scale)).split(self.widths, -1)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).unbind(2)  # (B, N + L, heads, head_dim)
        q, k = self.q_norm(q).to(v), self.k_norm(k).to(v)
        n = x.shape[1] - txt_len
        apply_rope(q[:, :n], rope)
        apply_rope(k[:, :n], rope)
        attended = self.attend(q, k, v, key_lens, txt_len).flatten(2)
        del q, k
        joined = gelu_beside(attended, mlp)
        del qkv, v, mlp, attended
        return gated(x, self.linear2(joined), gate)


class FinalLayer(nn.Module):
    """Modulated norm and the linear back to patches."""

    def __init__(self, dim: int, patch_values: int) -> None:
        super().__init__()
        self.norm_final = LayerNorm(dim, EPS, elementwise_affine=False)
        self.linear = nn.Linear(dim, patch_values)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        """x (B, N, D). Returns (B, N, patch_values)."""
        shift, scale = self.adaLN_modulation(vec).chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final, x, shift, scale))
