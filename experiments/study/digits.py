"""`python -m experiments.study.digits`: the study on 1,200 handwritten digits of 8 x 8 pixels."""

from .run import only

if __name__ == "__main__":
    only("digits")
