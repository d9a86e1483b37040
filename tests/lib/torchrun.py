"""Starts a script on several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def torchrun(
    count: int, script: Path, *arguments: str, **options: Any
) -> subprocess.CompletedProcess:
    """A script on `count` processes of one thread."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={count}"]
    command += ["--master_port=0", "--standalone", str(script), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    settings = {"capture_output": True, "text": True, "timeout": 600, "env": environment}
    return subprocess.run(command, **{**settings, **options})
