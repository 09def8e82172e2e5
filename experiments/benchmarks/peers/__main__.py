"""Lets the benchmark be called as `python -m experiments.benchmarks.peers`."""

from ...common.command import command
from .run import Config, main

if __name__ == "__main__":
    command(main, Config(cache=False), "benchmarks.peers")
