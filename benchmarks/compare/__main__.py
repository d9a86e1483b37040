"""python -m benchmarks.compare"""

import sys

from benchmarks.compare.compare import main

sys.exit(main())
