"""CachePlan: what is computed and what is reused, for every step, branch and site. No torch.

A plan is data: JSON on disk, frozen models in memory. Loading checks everything that can be known
without the model; the model itself is checked by `check_model` and again when a cache is attached.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError, model_validator

from profiling_core.errors import PlanError
from profiling_core.files import write_whole
from profiling_core.plan.checks import check_combination, check_expected, check_grid, check_sites
from profiling_core.plan.cost import expected_cost
from profiling_core.plan.schema import FORMAT, PlanDocument, first_mistake

LARGEST_FILE = 16 * 2**20  # bytes; a plan of 1,000 steps is below one megabyte


class CachePlan(PlanDocument):
    """A plan whose parts fit each other."""

    @model_validator(mode="after")
    def _consistent(self) -> CachePlan:
        check_grid(self)
        check_sites(self)
        check_combination(self)
        check_expected(self)
        return self

    @property
    def label(self) -> str:
        """Its name and a hash of its content."""
        return f"{self.name} (sha256 {hashlib.sha256(self.dumps().encode()).hexdigest()[:12]})"

    @classmethod
    def build(cls, **fields: Any) -> CachePlan:
        """A checked plan from Python values, its expected cost filled in."""
        error = fields.pop("predicted_error", None)
        plan = cls.from_dict({"format": FORMAT, **_plain(fields)})
        expected = expected_cost(plan, predicted_error=error)
        return plan.model_copy(update={"expected": expected})

    def replace(
        self, *, predicted_error: float | None = None, source: str = "", **changes: Any
    ) -> CachePlan:
        """This plan with other values, checked anew; what is expected of it is counted anew.

        predicted_error: of the new plan, None where it is not known. PlanError names what does not
        fit; source: what its text begins with.
        """
        notes = changes.pop("notes", self.notes)
        document = self.model_dump(mode="json", exclude_none=True, exclude={"expected"})
        plan = self.from_dict(document | _plain(changes), source or f"plan {self.name!r}")
        expected = expected_cost(plan, predicted_error=predicted_error)
        return plan.model_copy(update={"expected": expected, "notes": tuple(notes)})

    @classmethod
    def from_dict(cls, document: Any, source: str = "plan") -> CachePlan:
        """A checked plan from decoded JSON; PlanError names the place of the first mistake."""
        if not isinstance(document, dict):
            raise PlanError(f"{source}: expected a JSON object, found {type(document).__name__}")
        if document.get("format") != FORMAT or isinstance(document.get("format"), bool):
            raise PlanError(
                f"{source}: plan format {document.get('format')!r} is not known here; "
                f"this version reads format {FORMAT}"
            )
        if "notes" in document:
            raise PlanError(f"{source}: notes: unknown key")
        try:
            return cls.model_validate_json(json.dumps(document))
        except ValidationError as error:
            raise PlanError(f"{source}: {first_mistake(error)}") from None

    @classmethod
    def loads(cls, text: str | bytes, source: str = "plan") -> CachePlan:
        """A checked plan from JSON text."""
        if isinstance(text, bytes) and 0 in text[:8] and text[8:9] == b"{":  # safetensors
            raise PlanError(
                f"{source}: this is no plan but a profile; make a plan from it with "
                "`profiling-dit plan --profile FILE -o plan.json`"
            )
        return cls.from_dict(decoded(text, source), source)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CachePlan:
        """Read and check a plan file; PlanError when it is missing, unreadable or wrong."""
        source = f"plan file {path}"
        return cls.loads(small_file(Path(path), source), source)

    def dumps(self) -> str:
        """JSON text: one key a line, number lists on one line, so that two plans diff well."""
        document = self.model_dump(mode="json", exclude_none=True)
        document["sites"] = [{"kind": site.pop("kind"), **site} for site in document["sites"]]
        return dumped(document)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan atomically: a temporary file in the same folder, then a rename."""
        write_whole(Path(path), self.dumps().encode())


def _plain(value: Any) -> Any:
    """Python values as JSON would hold them (models, tuples and integer keys resolved)."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_none=True)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def dumped(document: Any) -> str:
    """JSON text; lists of numbers or booleans, and lists of such lists, on one line each.

    The patterns need a line break, which JSON strings never hold: texts stay as they are.
    """
    text = json.dumps(document, indent=1, ensure_ascii=False)
    value = r"(?:[\d.,eE+\s-]|true|false)"
    for pattern in (rf"\[\n{value}*\]", rf"\[\n(?:\s*\[{value}*\],?)+\s*\]"):
        text = re.sub(pattern, lambda m: "[" + re.sub(r"\s+", " ", m[0][1:-1]).strip() + "]", text)
    return text + "\n"


def small_file(path: Path, what: str) -> bytes:
    """The bytes of a regular file of at most LARGEST_FILE; PlanError begins with `what` it is."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise PlanError(f"{what}: not a regular file")
        if status.st_size > LARGEST_FILE:
            raise PlanError(f"{what}: {status.st_size} bytes is too large for a plan")
        return path.read_bytes()
    except OSError as error:
        raise PlanError(f"{what}: {error.strerror or error}") from None


def decoded(text: str | bytes, source: str) -> Any:
    """Decoded JSON without doubled keys, NaN and infinities; PlanError says what is wrong."""
    try:
        return json.loads(text, object_pairs_hook=without_doubles, parse_constant=_refuse_constant)
    except RecursionError:
        raise PlanError(f"{source}: not a plan: nested too deeply") from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError and ours are ValueErrors
        raise PlanError(f"{source}: not JSON: {error}") from None


def without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError where a key stands in it twice."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key!r} twice")
        found[key] = value
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number that a plan may hold")
