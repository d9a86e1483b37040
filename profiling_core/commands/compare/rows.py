"""One row a run, as JSON Lines: appended as runs end, read again when a comparison goes on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from profiling_core.errors import CompareError
from profiling_core.files import write_whole
from profiling_core.plan.schema import Checked, first_mistake

FULL = "full"

Finite = Annotated[float, Field(allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Clip = tuple[str, int, str | None]  # prompt, seed, SHA-256 of its pictures


class Row(Checked):
    """One run: what it cost and, of a plan's run, how far it is from the full run.

    A session is one process; only runs of one session are compared in time. `again`: a full run
    that was taken once more for its time, because a later session had none.
    """

    prompt: str
    pictures: str | None = None  # the names of the files
    pictures_sha256: str | None = None
    seed: Count
    method: str
    plan_sha256: str | None = None  # of the plan as it was given; none of a full run
    session: str
    again: bool = False
    seconds: Seconds  # of the denoising loop
    encode_seconds: Finite
    decode_seconds: Finite
    ideal: Finite  # block FLOPs of a full run over those of this one
    block_runs: Count
    block_runs_full: Count
    solver_steps: Count
    model_calls: Count
    reused_calls: Count
    bytes_held: Count
    psnr_frames: Finite | None = None
    psnr_pooled: Finite | None = None
    ssim: Finite | None = None
    motion: Finite | None = None  # none when the full run does not move at all
    flicker: Finite | None = None
    latent_error: Finite | None = None
    lpips: Finite | None = None
    repeat_error: Finite | None = None  # again: latent error against the kept full run
    device: str
    torch: str
    made_by: str
    utc: str

    @property
    def clip(self) -> Clip:
        return self.prompt, self.seed, self.pictures_sha256

    @property
    def subject(self) -> str:
        """The prompt, and what it stands beside."""
        return f"{self.prompt} ({self.pictures})" if self.pictures else self.prompt


class Rows:
    """The rows of a folder, in memory and in its file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.all: list[Row] = []
        self._latest: dict[tuple[Clip, str | None], Row] = {}
        self._full: dict[str, list[Row]] = {}
        for row in read_rows(path) if path.exists() else ():
            self._add(row)

    def append(self, row: Row) -> None:
        """Add one row; it is on disk when this returns."""
        with open(self.path, "ab") as file:
            file.write(row.model_dump_json(exclude_none=True).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._add(row)

    def _add(self, row: Row) -> None:
        self.all.append(row)
        if not row.again:
            self._latest[row.clip, row.plan_sha256] = row
        if row.method == FULL:
            self._full.setdefault(row.session, []).append(row)

    def latest(self, clip: Clip, plan_sha256: str | None) -> Row | None:
        """The last run of this clip with this plan (None: in full).

        None also when lines were removed and its session has no full run left to compare with.
        """
        row = self._latest.get((clip, plan_sha256))
        return row if row is not None and self.full_runs(row.session) else None

    def full_runs(self, session: str) -> list[Row]:
        """The full runs of one session, those taken again among them."""
        return self._full.get(session, [])


def read_rows(path: Path) -> list[Row]:
    """All rows of a file; a last line that was cut off by a crash is dropped from it."""
    content = path.read_bytes()
    whole, end, rest = content.rpartition(b"\n")
    if rest:
        write_whole(path, whole + end)
    rows = []
    for number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
        try:
            rows.append(Row.model_validate_json(line))
        except ValidationError as error:
            raise CompareError(
                f"{path}: line {number} is no row of a comparison ({first_mistake(error)}): "
                "remove the line, its run is then taken again"
            ) from None
    return rows
