"""How often a host waits for its device, counted on a device without numbers."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = "meta"  # whose tensors cannot be read at all: a read on the host is an error there
READS = ("_local_scalar_dense", "nonzero", "_linalg_check_errors", "equal", "is_nonzero")


class HostWaits(TorchDispatchMode):
    """Operators that read a tensor of the device, and blocking copies from or to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
        places = {t.device.type for t in tensors}
        name = func.overloadpacket.__name__
        copies = "copy" in name and places == {"cpu", DEVICE}
        if (name in READS and DEVICE in places) or (
            copies and not (kwargs or {}).get("non_blocking", False)
        ):
            self.found[name] += 1
        return out
