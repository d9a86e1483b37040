"""The drawn clips, and the training of the bundled miniatures."""

import os

from profiling_core.parallel.degrees import thread_settings

os.environ.update(thread_settings())  # before torch is imported
