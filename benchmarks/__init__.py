"""What we measure: one folder per kind of question, rows in results/."""

import os

from profiling_core.parallel.degrees import thread_settings

os.environ.update(thread_settings())  # before a benchmark imports torch
