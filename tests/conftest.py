"""Tiny models and checkpoint folders; makes the Wan2.1 tree importable as its scripts see it."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "Wan2.1"))
