"""`python -m experiments.study.synthetic`: the study on 40 rows of a polynomial model, and the exact optimum."""

from .run import only

if __name__ == "__main__":
    only("synthetic")
