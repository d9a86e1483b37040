"""A batch from its jobs to its summary; who makes the clips is a runner's business."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from profiling_core.commands.arguments import log
from profiling_core.commands.batch.attempts import Attempt, Task, is_disk_full
from profiling_core.commands.batch.clips import Clip, row_of
from profiling_core.commands.batch.folder import Folder
from profiling_core.commands.batch.page import index_page
from profiling_core.errors import BatchError
from profiling_core.files import write_whole

Again = Callable[[Attempt], Task | None]


class Runner(Protocol):
    """Makes clips; yields None now and then where nothing ended meanwhile."""

    @property
    def states(self) -> Sequence[str]: ...

    def attempts(
        self, tasks: Sequence[Task], work: Path, again: Again
    ) -> Iterator[Attempt | None]: ...

    def close(self) -> None: ...


@dataclass
class Batch:
    """The clips of a jobs file in a folder; retries: further attempts at a clip that failed."""

    clips: Sequence[Clip]
    folder: Folder
    retries: int = 1
    errors: dict[str, list[str]] = field(default_factory=dict)  # of every attempt, by key
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    disk_full: bool = False

    @cached_property
    def _pairs(self) -> dict[str, list[Clip]]:
        """The clips that differ in their plan alone."""
        found: dict[str, list[Clip]] = {}
        for clip in self.clips:
            found.setdefault(clip.pair, []).append(clip)
        return found

    def left(self) -> list[Task]:
        """What is not done yet; rows of what is."""
        self.rows = {c.key: row for c in self.clips if (row := self.folder.done(c)) is not None}
        missing = [clip for clip in self.clips if clip.key not in self.rows]
        return [Task(clip, bool(self._others(clip))) for clip in missing]

    def run(
        self, runner: Runner, *, quiet: bool = False, check: Callable[[], None] = lambda: None
    ) -> int:
        """Make what is left; the number of clips that are missing. check: called every second.

        A full disk ends it: no further clip would fit, but the summary does.
        """
        tasks = self.left()
        total = len(self.clips)
        drawn = sys.stderr.isatty() and log.isEnabledFor(logging.INFO) and not quiet
        bar = tqdm(total=total, initial=total - len(tasks), unit="clip", disable=not drawn)
        try:
            self.finish()
            self.folder.reserve(total)
            for found in runner.attempts(tasks, self.folder.work, self._again):
                check()
                if found is not None:
                    self._book(found)
                    done = found.clip.key in self.rows
                    bar.update(done)
                    if done and not drawn:
                        log.info(f"clip {len(self.rows)} of {total}: {found.clip.stem}")
                bar.set_postfix_str("; ".join(runner.states)[:120])
                if self.disk_full:
                    break
        finally:
            bar.close()
            runner.close()
            self.leave()
        return total - len(self.rows)

    def leave(self) -> None:
        """Remove what is unfinished, which makes room on a full disk, and write the summary."""
        self.folder.clear()
        self.finish()

    def finish(self) -> None:
        """PSNR of pairs, summary and index; what is written stands for any moment."""
        self._compare_pairs()
        rows = [self._summary(clip) for clip in self.clips]
        self.folder.write_summary(rows)
        write_whole(self.folder.path / "index.html", index_page(rows).encode())

    def _again(self, failed: Attempt) -> Task | None:
        """The same clip once more, elsewhere if there is another worker."""
        if len(self.errors.get(failed.clip.key, ())) > self.retries:
            return None
        return Task(failed.clip, bool(self._others(failed.clip)), failed.worker)

    def _book(self, found: Attempt) -> None:
        """Keep a finished clip, or note why there is none."""
        clip, error = found.clip, found.error or "no clip was made"
        if found.made is not None and found.made_in is not None:
            try:
                attempts = len(self.errors.get(clip.key, ())) + 1
                now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
                facts = {"worker": found.worker, "attempts": attempts, "utc": now}
                row = row_of(clip, found.made, **facts)
                self.folder.keep(clip, row, Path(found.made_in))
                self.rows[clip.key] = row
                return
            except (OSError, BatchError) as problem:
                error = f"cannot keep the clip: {problem}"
                self.disk_full = is_disk_full(problem)
        if found.made_in is not None:
            shutil.rmtree(found.made_in, ignore_errors=True)
        self.disk_full |= found.disk_full
        errors = self.errors.setdefault(clip.key, [])
        errors.append(f"worker {found.worker}: {error}")
        log.error(f"{clip.stem}: attempt {len(errors)} failed: {error.splitlines()[-1]}")
        with suppress(OSError):  # a full disk: the error stands above and in the summary, if at all
            self.folder.write_failure(clip, errors)

    def _others(self, clip: Clip) -> list[Clip]:
        """Clips that this one is compared with: the full run's plans, or a plan's full run."""
        return [other for other in self._pairs[clip.pair] if other.is_full != clip.is_full]

    def _compare_pairs(self) -> None:
        """PSNR of every planned clip whose full run is in the batch, from the tensors of both."""
        waiting = []
        for clip in self.clips:
            others = self._others(clip)
            if not clip.is_full and others and not self._compared(clip, others[0]):
                waiting += [clip] if others[0].key not in self.rows else []
            if clip.is_full and any(other.key not in self.rows for other in others):
                waiting.append(clip)
        self.folder.drop_tensors(waiting)

    def _compared(self, clip: Clip, full: Clip) -> bool:
        """Is its PSNR known, now at the latest?"""
        ours, theirs = self.folder.tensor(clip), self.folder.tensor(full)
        if clip.key not in self.rows:
            return False
        if "psnr" in self.rows[clip.key]:
            return True
        if not (ours.exists() and theirs.exists()):
            return False
        self.rows[clip.key]["psnr"] = round(_psnr(ours, theirs), 3)
        self.folder.write_row(clip, self.rows[clip.key])
        return True

    def _summary(self, clip: Clip) -> dict[str, Any]:
        row = self.rows.get(clip.key)
        if row is not None:
            full = [self.rows[o.key] for o in self._others(clip) if o.key in self.rows]
            if full and not clip.is_full:
                speedup = full[0]["denoise_seconds"] / max(row["denoise_seconds"], 1e-9)
                row = {**row, "speedup": round(speedup, 3)}
            return {**row, "state": "done", "error": ""}
        errors = self.errors.get(clip.key, [])
        return {
            **{"key": clip.key, "name": clip.stem, "prompt": clip.job.prompt},
            **{
                "pictures": clip.job.pictures.names,
                "tree": clip.job.tree,
                "seed": clip.job.seed,
                "plan": clip.plan_label,
            },
            "state": "failed" if errors else "not made",
            "attempts": len(errors),
            "error": errors[-1].splitlines()[-1] if errors else "",
        }


def _psnr(path: Path, reference: Path) -> float:
    """Mean over frames, as everywhere; both clips in fp16."""
    from safetensors.torch import load_file

    from profiling_core.metrics import psnr

    clips = [load_file(p)["video"].float() for p in (path, reference)]
    return psnr(*clips)
