"""`python -m experiments.compare`."""

from ..common.command import command
from .run import QUICK, Config, start

if __name__ == "__main__":
    command(start, Config(), "compare", quick=QUICK)
