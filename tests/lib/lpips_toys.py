"""Random LPIPS weights."""

import math

import torch
from torch import Tensor

from profiling_core.lpips import expected_shapes


def random_state(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in expected_shapes().items():
        fan = max(1, math.prod(shape[1:]))
        state[name] = torch.randn(shape, generator=generator) / math.sqrt(fan)
        if name.startswith("lin"):
            state[name] = state[name].abs()
    return state
