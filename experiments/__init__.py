"""Studies and benchmarks of the library, run from a checkout."""

import os

# XLA takes tuning preferences of its compiler for features of the processor. It reports an error for every program that
# it loads from the cache of compiled programs. Errors that matter are raised.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
