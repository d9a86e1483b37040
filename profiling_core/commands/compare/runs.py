"""The runs: for every prompt and seed the full one, then every plan, measured against it.

Time is compared inside one session (one process) alone. A session that finds the full runs done
takes one of them again for its time, and checks that it still gives the kept clip.
"""

from __future__ import annotations

import platform
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from profiling_core.commands.arguments import log
from profiling_core.commands.compare.exports import Exports
from profiling_core.commands.compare.folder import Folder, Reference
from profiling_core.commands.compare.methods import Method
from profiling_core.commands.compare.prompts import Pair
from profiling_core.commands.compare.rows import FULL, Row
from profiling_core.errors import CompareError
from profiling_core.files import installed_version
from profiling_core.lpips import Lpips
from profiling_core.metrics import compare, latent_error
from profiling_core.trees.tree_model import TreeModel

WARM_UP_STEPS = 2
CPU_FACTS = Path("/proc/cpuinfo")


@dataclass
class Comparison:
    """What is compared and where it is kept; `run` does what is missing."""

    model: TreeModel
    folder: Folder
    pairs: tuple[Pair, ...]
    methods: tuple[Method, ...]  # the plans; the full run is always taken
    lpips: Lpips | None = None
    exports: Exports | None = None
    facts: dict[str, Any] = field(default_factory=dict)  # device, torch and so on, of every row
    session: str = field(default_factory=lambda: secrets.token_hex(4))
    warm: bool = False

    def missing(self, pair: Pair) -> list[Method]:
        """The plans whose run of this clip is not there yet."""
        return [m for m in self.methods if not self._is_done(pair, m.sha256, m.label)]

    def is_full_done(self, pair: Pair) -> bool:
        return self._is_done(pair, None, FULL)

    def _is_done(self, pair: Pair, plan_sha256: str | None, label: str) -> bool:
        if self.folder.rows.latest(pair.clip, plan_sha256) is None:
            return False
        return self.exports is None or self.exports.has(pair, label)

    def left(self) -> int:
        """How many runs are still to come."""
        return sum(len(self.missing(p)) + (not self.is_full_done(p)) for p in self.pairs)

    def run(self, after_each_clip: Callable[[], None]) -> None:
        """Every run that is missing, with the model loaded; rows are kept as they come."""
        for pair in self.pairs:
            missing = self.missing(pair)
            if missing or not self.is_full_done(pair):
                self._clip(pair, missing)
                after_each_clip()

    def _clip(self, pair: Pair, missing: list[Method]) -> None:
        given = (pair.prompt, pair.seed, pair.pictures)
        inputs, encoding = self._timed(self.model.inputs, *given)
        self._warm_up(inputs)
        reference = self._full(pair, inputs, encoding, timed=bool(missing))
        for method in missing:
            self._planned(pair, method, inputs, encoding, reference)

    def _warm_up(self, inputs: tuple[Any, ...]) -> None:
        """Kernels are chosen and memory is taken before anything is timed."""
        if not self.warm:
            log.info("warming up")
            self.model.denoise(inputs, steps=WARM_UP_STEPS)
            self.warm = True

    def _full(
        self, pair: Pair, inputs: tuple[Any, ...], encoding: float, *, timed: bool
    ) -> Reference:
        """The full run of a clip: kept, or taken now; `timed`: this session needs one's time."""
        rows = self.folder.rows
        known = rows.latest(pair.clip, None) is not None
        reference = self.folder.reference(pair) if known else None
        if reference is None:
            latent = self.model.denoise(inputs)
            video, decoding = self._decoded(latent)
            reference = Reference(video, latent.float().cpu())
            self.folder.keep_reference(pair, reference)
            self.folder.keep_strip(pair, None, video)
            self._export(pair, FULL, video)
            self._append(pair, FULL, encoding, decoding)
            return reference
        if not self.is_full_done(pair):
            self._export(pair, FULL, reference.video)
        if timed and not rows.full_runs(self.session):
            self._full_again(pair, inputs, encoding, reference)
        return reference

    def _full_again(
        self, pair: Pair, inputs: tuple[Any, ...], encoding: float, reference: Reference
    ) -> None:
        latent = self.model.denoise(inputs)
        error = latent_error(latent.float().cpu(), reference.latent)
        self._append(pair, FULL, encoding, 0.0, again=True, repeat_error=error)

    def _planned(
        self,
        pair: Pair,
        method: Method,
        inputs: tuple[Any, ...],
        encoding: float,
        reference: Reference,
    ) -> None:
        latent = self.model.denoise(inputs, method.plan)
        video, decoding = self._decoded(latent)
        quality = self.quality(video, latent, reference)
        self.folder.keep_strip(pair, method.sha256, video)
        self._export(pair, method.label, video)
        self._append(pair, method.label, encoding, decoding, method=method, **quality)

    def quality(self, video: Any, latent: Any, reference: Reference) -> dict[str, float]:
        """The metrics of a clip and its latent against the full run; infinite ones are left out."""
        found = compare(video, reference.video).as_row()
        found["latent_error"] = latent_error(latent.float().cpu(), reference.latent)
        if self.lpips is not None:
            found["lpips"] = self.lpips(video, reference.video)
        return {name: value for name, value in found.items() if isfinite(value)}

    def _decoded(self, latent: Any) -> tuple[Any, float]:
        """The clip and its seconds; CompareError for one that nothing can be measured on."""
        video, seconds = self._timed(self.model.decode, latent)
        if not video.isfinite().all():
            raise CompareError(
                "decoding gave numbers that are not finite: download the VAE's weights again"
            )
        return video, seconds

    def _export(self, pair: Pair, label: str, video: Any) -> None:
        if self.exports is not None:
            self.exports.write(pair, label, video)

    def _append(
        self,
        pair: Pair,
        label: str,
        encoding: float,
        decoding: float,
        method: Method | None = None,
        **more: Any,
    ) -> None:
        """The row of the model's last run."""
        run = self.model.last_run
        row = Row(
            prompt=pair.prompt,
            pictures=pair.pictures.names or None,
            pictures_sha256=pair.pictures.sha256,
            seed=pair.seed,
            method=label,
            plan_sha256=method.sha256 if method else None,
            session=self.session,
            seconds=run.denoise_seconds,
            encode_seconds=encoding,
            decode_seconds=decoding,
            ideal=method.ideal if method else 1.0,
            block_runs=run.block_runs,
            block_runs_full=run.block_runs_full,
            solver_steps=run.solver_steps,
            model_calls=run.model_calls,
            reused_calls=run.reused_calls,
            bytes_held=run.peak_bytes,
            utc=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            **self.facts,
            **more,
        )
        self.folder.rows.append(row)
        quality = "" if row.psnr_frames is None else f", PSNR {row.psnr_frames:.2f} dB"
        again = " again, for this session's time" if row.again else ""
        log.info(f"{label}{again}: {row.seconds:.2f} s{quality}; {_place(self, pair)}")

    def _timed(self, call: Callable[..., Any], *args: Any) -> tuple[Any, float]:
        """What the call gives, and its seconds between device synchronisations."""
        self._synchronize()
        start = time.perf_counter()
        result = call(*args)
        self._synchronize()
        return result, time.perf_counter() - start

    def _synchronize(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)


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


def _place(comparison: Comparison, pair: Pair) -> str:
    number = comparison.pairs.index(pair) + 1
    return f"clip {number} of {len(comparison.pairs)}, seed {pair.seed}: {pair.prompt[:60]!r}"
