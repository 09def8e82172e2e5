"""`python -m experiments.two_step`."""

from ..common.command import command
from .run import QUICK, Config, main

if __name__ == "__main__":
    command(main, Config(), "two_step", quick=QUICK)
