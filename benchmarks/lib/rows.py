"""The rows of results/: reading, appending, the environment of a row; plain tables."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import torch

from benchmarks.lib import ROOT
from profiling_core.metrics import compare

RESULTS = ROOT / "benchmarks" / "results"
TREES = ("wan", "hunyuan")
TITLES = {"wan": "Wan2.1 miniature", "hunyuan": "HunyuanVideo miniature"}
Row = dict[str, Any]


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_bf16(device: torch.device) -> bool:
    """Has the device bf16 instructions? A CPU without them emulates bf16, far slower than fp32."""
    if device.type != "cpu":
        return True
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return supported is not None and supported()


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's model."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    return (
        f"{model or platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    )


def environment(device: torch.device) -> Row:
    """What a row needs to be repeated: commit, versions, device, time, load."""
    gpu = {}
    if device.type == "cuda":
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
        gpu = {"driver": _output(*query), "cuda": torch.version.cuda}
        gpu["cudnn"] = torch.backends.cudnn.version()
    return {
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "changed_files": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device_name(device),
        **gpu,
        "load_1min": round(os.getloadavg()[0], 2),
        "utc": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def load_rows(name: str, folder: Path | None = None) -> list[Row]:
    """All rows of <name>.jsonl, oldest first; ValueError names a line that is none.

    folder: results/ by default.
    """
    path, rows = (folder or RESULTS) / f"{name}.jsonl", []
    if not path.exists():
        return rows
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            raise ValueError(f"{path}, line {number}: not JSON; remove the line") from None
    return rows


def append_row(name: str, row: Row, folder: Path | None = None) -> None:
    """Append one row to <name>.jsonl; it is on the disk when this returns. folder: as load_rows."""
    folder = folder or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{name}.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


class Rows:
    """Rows by what they are of.

    run: the fields that a run follows from; row: those that one row has of its own beside them.
    """

    def __init__(self, rows: Iterable[Row], run: Sequence[str], row: Sequence[str]) -> None:
        self.of_run, self.of_row = tuple(run), (*run, *row)
        self._found: dict[str, Row] = {}
        for each in rows:
            self.add(each)

    def __contains__(self, row: Row) -> bool:
        return self._key(row, self.of_row) in self._found

    def same_run(self, row: Row) -> Row | None:
        """A row of the same run, whatever else it is of."""
        return self._found.get(self._key(row, self.of_run))

    def add(self, row: Row) -> None:
        self._found[self._key(row, self.of_row)] = self._found[self._key(row, self.of_run)] = row

    def _key(self, row: Row, names: tuple[str, ...]) -> str:
        return json.dumps([row[name] for name in names], sort_keys=True)


def quality_row(video: torch.Tensor, reference: torch.Tensor) -> Row:
    """Metrics of a decoded clip against the full run's."""
    return {name: round(value, 4) for name, value in compare(video, reference).as_row().items()}


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    rule = ["---"] * len(header)
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, rule, *lines])


def spread(values: Sequence[float], sign: str = "+-") -> str:
    """Mean, standard deviation and the worst."""
    return f"{fmean(values):.1f} {sign}{pstdev(values):.1f} ({min(values):.1f})"


def save_figure(figure: Any, stem: Path, dpi: int = 140) -> list[Path]:
    """The figure as .png, of 256 colours, and .svg; both paths."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_suffix(f".{kind}") for kind in ("png", "svg")]
    for path in paths:
        figure.savefig(path, dpi=dpi)
    from PIL import Image  # a GPU machine of rows alone need not have it

    Image.open(paths[0]).convert("RGB").quantize(256).save(paths[0], optimize=True)
    return paths


def table(header: list[str], rows: list[list[str]]) -> str:
    """Plain text columns."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _git(*arguments: str) -> str:
    return _output("git", "-C", str(ROOT), *arguments)


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
