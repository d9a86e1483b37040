"""python -m benchmarks.compare"""

import sys

from benchmarks.compare.compare import build_parser, main

__all__ = ["build_parser", "main"]

if __name__ == "__main__":
    sys.exit(main())
