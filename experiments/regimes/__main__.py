"""`python -m experiments.regimes`."""

from ..common.command import command
from .run import QUICK, Config, main

if __name__ == "__main__":
    command(main, Config(), "regimes", quick=QUICK)
