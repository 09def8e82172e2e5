"""`python -m experiments.benchmarks.gpu`."""

from ...common.command import command
from .config import QUICK, Config
from .run import main

if __name__ == "__main__":
    command(main, Config(), "benchmarks.gpu", quick=QUICK)
