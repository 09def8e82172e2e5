"""Studies and benchmarks of the library, run from a checkout."""

import os
import sys

# XLA takes tuning preferences of its compiler for features of the processor. It reports an error for every program that
# it loads from the cache of compiled programs. Errors that matter are raised.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

if sys.argv[0] == "-m":  # of python -m experiments.NAME: before its imports, which take seconds
    from .common.interrupts import interrupts

    interrupts.install()
