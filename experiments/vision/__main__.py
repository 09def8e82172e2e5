"""`python -m experiments.vision`."""

from ..common.command import command
from .run import FULL, QUICK, Config, main

if __name__ == "__main__":
    command(main, Config(), "vision", quick=QUICK, full=FULL)
