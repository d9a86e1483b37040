"""What a user can put right: errors of one line, with the value at fault and the way out.

Commands print them bare and end with exit code 2.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """The root of all of them."""


class InputError(UserError):
    """An option, a file or a checkpoint folder of a tree's command."""


class PlanError(UserError):
    """A plan that cannot be used."""


class ProfileError(UserError):
    """A profile that cannot be used or added to."""


class ParallelError(UserError):
    """Processes that do not fit each other, the model or the machine."""


class DisagreementError(ParallelError):
    """The processes were started with different options; all of them know it."""


class CompareError(UserError):
    """A comparison that cannot be run."""


class BatchError(UserError):
    """A batch that cannot be run."""


class LpipsError(UserError):
    """Weights or pictures that LPIPS cannot use."""


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The one of `words` that a mistyped word most likely stands for; None where none is near."""
    found = get_close_matches(word, list(words), n=1)
    return found[0] if found else None
