"""`python -m experiments.proton`."""

from .run import command

if __name__ == "__main__":
    command()
