"""`python -m experiments.vision`."""

from ..common.command import command
from .run import FULL, QUICK, Config, start

if __name__ == "__main__":
    command(start, Config(), "vision", quick=QUICK, full=FULL)
