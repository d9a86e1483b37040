"""What the benchmarks share. Its import puts both trees on the path: the one place that does."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "Wan2.1"), str(ROOT / "HunyuanVideo")]
