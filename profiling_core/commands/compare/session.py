"""What belongs to one process of a comparison: its machine and versions."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from profiling_core.version import installed_version

CPU_FACTS = Path("/proc/cpuinfo")


def facts_of(device: torch.device) -> dict[str, str]:
    """Device, torch and package, as every row names them."""
    made_by = f"profiling-dit {installed_version()}"
    return {"device": device_name(device), "torch": torch.__version__, "made_by": made_by}


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = CPU_FACTS.read_text().splitlines() if CPU_FACTS.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
