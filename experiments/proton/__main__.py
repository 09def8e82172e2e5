"""`python -m experiments.proton`."""

from ..common.command import command
from .run import FULL, QUICK, Config, main

if __name__ == "__main__":
    command(main, Config(), "proton", quick=QUICK, full=FULL)
