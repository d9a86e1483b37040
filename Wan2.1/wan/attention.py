"""Softmax attention: on a GPU the fastest kernel that runs there, torch SDPA everywhere else."""

import importlib
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v; all (B, L, heads, head_dim)

HALF = (torch.bfloat16, torch.float16)
PROBE_TOKENS, PROBE_ERROR = 16, 0.05  # of outputs around 1
CUDNN, FLASH = SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION
ANY = (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)  # for what the first ones cannot take

# of device type, type of v and head_dim; SDPA for what is not here
_chosen: dict[tuple[str, torch.dtype, int], Kernel] = {}


def choose_kernel(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """Choose what attention of this type and width runs on from now on; its name, for the log.

    Called once when a model is loaded, so that calls of it, compiled ones as well, look nothing up.
    A kernel that fails on a call of PROBE_TOKENS tokens is named with its error and the next one is
    tried.
    """
    failed = ""
    if device.type == "cuda" and dtype in HALF:
        for name, load in _candidates(torch.cuda.get_device_capability(device)[0]):
            try:
                probed, kernel = load()
                _probe(probed, device, dtype, head_dim)
            except Exception as error:  # not installed, or a build for another torch or GPU
                reason = str(error).strip().partition("\n")[0]
                failed += f"; {name} did not run: {type(error).__name__}: {reason}"
                continue
            _chosen[device.type, dtype, head_dim] = kernel
            return name + failed
    _chosen.pop((device.type, dtype, head_dim), None)
    return "torch SDPA" + failed


def _candidates(capability: int) -> Iterator[tuple[str, Callable[[], tuple[Kernel, Kernel]]]]:
    """Names of kernels, the fastest first, and what loads each: the one to probe, the one to use.

    capability: the GPU's major number, 8 for Ampere and Ada, 9 for Hopper, 10 and more later.
    """
    if capability == 9:
        yield "flash-attn 3", lambda: _flash("flash_attn_interface")
    if capability == 8:
        yield "flash-attn 2", lambda: _flash("flash_attn")
    if capability >= 9:
        yield "torch SDPA, cuDNN first", lambda: (_sdpa_by(CUDNN), _sdpa_by(CUDNN, FLASH, *ANY))
    if capability >= 8:
        yield "torch SDPA, Flash first", lambda: (_sdpa_by(FLASH), _sdpa_by(FLASH, *ANY))


def _flash(module: str) -> tuple[Kernel, Kernel]:
    """flash-attn's function as an operator of torch, which compiles into one graph."""
    flash = importlib.import_module(module).flash_attn_func

    def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = flash(q, k, v)
        # builds of flash-attn 3 differ: some return the output alone, some (output, lse)
        return (out[0] if isinstance(out, tuple) else out).contiguous()

    name = f"{__name__.replace('.', '_')}::{module}"
    operator = torch.library.custom_op(name, kernel, mutates_args=())
    operator.register_fake(lambda q, k, v: q.new_empty(q.shape))
    return operator, operator


def _sdpa_by(*backends: SDPBackend) -> Kernel:
    """SDPA by the first of torch's kernels that takes the tensors."""
    order = list(backends)

    def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(order, set_priority=True):
            return _sdpa(q, k, v)

    return kernel


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    heads_first = (x.transpose(1, 2) for x in (q, k, v))  # (B, heads, L, head_dim)
    return F.scaled_dot_product_attention(*heads_first).transpose(1, 2)


@torch.no_grad()
def _probe(kernel: Kernel, device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
    """One call with few tokens; AssertionError unless it gives what SDPA in fp32 does."""
    shape, seeded = (3, 1, PROBE_TOKENS, 2, head_dim), torch.Generator().manual_seed(0)
    q, k, v = torch.randn(shape, generator=seeded).to(device, dtype)
    wanted = _sdpa(q.float(), k.float(), v.float())
    torch.testing.assert_close(kernel(q, k, v).float(), wanted, rtol=0, atol=PROBE_ERROR)


def attention(q: Tensor, k: Tensor, v: Tensor, key_lens: Sequence[int] | None = None) -> Tensor:
    """Attend q to k and v, all (B, L, heads, head_dim), in v's type; the result has q's type.

    key_lens limits each sample's keys to its first key_lens[b] rows; None means all of them.
    Queries are never limited: rows past the length are computed and thrown away by the caller.
    """
    if key_lens is None or min(key_lens) == k.shape[1]:
        return _attend(q, k, v)
    if min(key_lens) == max(key_lens):
        return _attend(q, k[:, : key_lens[0]], v[:, : key_lens[0]])
    # one call per sample: slices keep the fast kernels, which take no key mask
    samples = [
        _attend(q[i : i + 1], k[i : i + 1, :n], v[i : i + 1, :n]) for i, n in enumerate(key_lens)
    ]
    return torch.cat(samples)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    kernel = _chosen.get((v.device.type, v.dtype, v.shape[-1]), _sdpa)
    return kernel(q.to(v.dtype), k.to(v.dtype), v).to(q.dtype)
