"""python -m profiling_core is profiling-dit."""

import sys

from profiling_core.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
