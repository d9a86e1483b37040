"""VACE: the Wan2.1 transformer with hint blocks, which read what the clip is made from.

A chain of hint blocks starts from the context c and the embedded noise x,

    c_0 = before(c) + x,   c_n = block_n(c_(n-1)),   hint_n = after_n(c_n),

and the output of block vace_layers[n] gets scale * hint_n. All hints are made before the blocks run
and at every call, since they depend on x. Names of parameters are those of the official
checkpoints; shapes and types as in `model.py`.
"""

from typing import Any

from torch import Tensor, nn

from .model import Block, WanModel


class HintedBlock(Block):
    """A block of the model; hint: the number of the one that its output gets, None: of none."""

    hint: int | None = None

    def forward(  # type: ignore[override]
        self, x: Tensor, *, hints: list[Tensor], context_scale: float, **kwargs: Any
    ) -> Tensor:
        x = super().forward(x, **kwargs)
        return x if self.hint is None else x + hints[self.hint] * context_scale


class HintBlock(Block):
    """A block of the chain: (B, L, D) to the next (B, L, D) and a hint of that shape."""

    def __init__(self, first: bool, dim: int, *sizes: Any) -> None:
        super().__init__(dim, *sizes)
        self.before_proj = nn.Linear(dim, dim) if first else None
        self.after_proj = nn.Linear(dim, dim)

    def forward(  # type: ignore[override]
        self, c: Tensor, x: Tensor, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if self.before_proj is not None:
            c = self.before_proj(c) + x
        c = super().forward(c, **kwargs)
        return c, self.after_proj(c)


class VaceWanModel(WanModel):
    """A WanModel with hints; ValueError for vace_layers that are not its blocks.

    vace_layers: ascending numbers of the blocks that get a hint, 0 first; empty: every second one;
    vace_in_dim: channels of the context; sizes: as WanModel's.
    """

    block_class = HintedBlock

    def __init__(
        self,
        model_type: str = "vace",
        *,
        vace_layers: tuple[int, ...] = (),
        vace_in_dim: int = 96,
        **sizes: Any,
    ) -> None:
        super().__init__(model_type, **sizes)
        count = len(self.blocks)
        layers = tuple(vace_layers) or tuple(range(0, count, 2))
        if layers[0] != 0 or layers[-1] >= count or list(layers) != sorted(set(layers)):
            raise ValueError(
                f"vace_layers {list(layers)}: expected ascending block numbers from 0 to "
                f"{count - 1}, 0 among them"
            )
        self.vace_layers, self.vace_in_dim = layers, vace_in_dim
        self.vace_patch_embedding = nn.Conv3d(
            vace_in_dim, self.dim, self.patch_size, self.patch_size
        )
        self.vace_blocks = nn.ModuleList()
        for number, layer in enumerate(layers):
            self.blocks[layer].hint = number
            self.vace_blocks.append(HintBlock(number == 0, *self.block_sizes))

    def forward(  # type: ignore[override]
        self,
        x: list[Tensor],
        t: Tensor,
        vace_context: list[Tensor],
        context: list[Tensor],
        seq_len: int,
        vace_context_scale: float = 1.0,
    ) -> list[Tensor]:
        """Predict the flow of every clip.

        vace_context: (vace_in_dim, F, H, W) per sample, of the grid of its latent; scale: of the
        hints; everything else as in `WanModel.forward`. ValueError for another grid.
        """
        x, e, kwargs, grids = self.embed(x, t, context, seq_len, None)
        if (found := [self.grid_of(c, seq_len) for c in vace_context]) != grids:
            raise ValueError(f"vace_context has the grids {found}, the latents have {grids}")
        hints = self.hints(vace_context, x, seq_len, kwargs)
        kwargs |= {"hints": hints, "context_scale": vace_context_scale}
        for block in self.blocks:
            x = block(x, **kwargs)
        return self.predict(x, e, grids)

    def hints(
        self, vace_context: list[Tensor], x: Tensor, seq_len: int, kwargs: dict[str, Any]
    ) -> list[Tensor]:
        """What the chain makes: (B, L, D) each."""
        c, _ = self.embed_patches(vace_context, seq_len, self.vace_patch_embedding)
        c, found = c if self.share is None else self.share.take(c), []
        for block in self.vace_blocks:
            c, hint = block(c, x, **kwargs)
            found.append(hint)
        return found
