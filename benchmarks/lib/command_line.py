"""What the commands share: a parser with one-line errors, progress, a quiet log."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line for a bad command line, as for other bad input."""
        self.exit(2, f"error: {message}\n")


def log(line: str) -> None:
    """Progress, on stderr."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
