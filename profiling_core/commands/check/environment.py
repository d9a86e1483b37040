"""The stage `environment`: the machine, the packages and the attention kernel."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from profiling_core.commands.check.report import Found
from profiling_core.commands.compare.runs import device_name
from profiling_core.files import installed_version
from profiling_core.plan.describe import format_bytes
from profiling_core.runtime.memory import available_bytes
from profiling_core.trees.tree_model import PACKAGE, TreeModel

PACKAGES = ("diffusers", "transformers", "accelerate", "safetensors", "numpy")
OPTIONAL = ("flash-attn", "flash-attn-3", "xfuser", "yunchang")
VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "OMP_NUM_THREADS", "OMP_WAIT_POLICY")
DRIVER = Path("/proc/driver/nvidia/version")


def environment(model: TreeModel, found: Found) -> list[str]:
    """What a row of a benchmark needs to be repeated; the lines to print."""
    device = model.device
    found["profiling_dit"] = {"version": installed_version(), "commit": _commit()}
    found["python"], found["system"] = platform.python_version(), platform.system()
    found["torch"], found["cuda"] = torch.__version__, torch.version.cuda
    found["cudnn"], found["driver"] = torch.backends.cudnn.version(), driver_version()
    found["device"], found["threads"] = device_name(device), torch.get_num_threads()
    if device.type == "cpu" and found["driver"] and "CUDA_VISIBLE_DEVICES" not in os.environ:
        found["faults"].append(
            f"torch {found['torch']} (CUDA {found['cuda']}) sees no GPU, though the driver "
            f"{found['driver']} is there: take a newer driver, or a build of torch for an older "
            "CUDA (docs/gpu.md); CUDA_VISIBLE_DEVICES= in front checks on the CPU"
        )
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["capability"] = f"{properties.major}.{properties.minor}"
        found["device_bytes"] = properties.total_memory
        found["gpus"] = torch.cuda.device_count()
    found["free_bytes"] = {
        name: available_bytes(torch.device(name)) for name in dict.fromkeys((device.type, "cpu"))
    }
    found["packages"] = {name: _version(name) for name in (*PACKAGES, *OPTIONAL)}
    found["variables"] = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    found["attention"] = model.attention_kernel()
    free = ", ".join(
        f"{format_bytes(count)} free on {name}"
        for name, count in found["free_bytes"].items()
        if count is not None
    )
    there = [f"{name} {found['packages'][name] or 'not installed'}" for name in OPTIONAL]
    return [
        f"{found['device']}; {free}",
        f"torch {found['torch']}, CUDA {found['cuda']}, cuDNN {found['cudnn']}, "
        f"driver {found['driver']}",
        ", ".join(there),
        f"attention in bf16: {found['attention']}",
    ]


def driver_version() -> str | None:
    """NVIDIA's kernel module, as 550.54.15."""
    try:
        release = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", DRIVER.read_text())
    except OSError:
        return None
    return release[0] if release else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Of the checkout that runs; None where git or its folder is not there."""
    command = ["git", "-C", str(PACKAGE), "describe", "--always", "--dirty", "--abbrev=12"]
    if not (PACKAGE / ".git").exists():
        return None
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
