"""`python -m experiments.short_horizon`."""

from ..common.command import command
from .run import QUICK, Config, main

if __name__ == "__main__":
    command(main, Config(), "short_horizon", quick=QUICK)
