"""`python -m experiments.pixel_decay`."""

from ..common.command import command
from .run import QUICK, Config, main

if __name__ == "__main__":
    command(main, Config(), "pixel_decay", quick=QUICK)
