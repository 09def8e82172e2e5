"""`python -m experiments.study.wisdm`: the study on the transformed features of WISDM.

`--data wisdm-raw` takes the raw series: 199 norms of the acceleration to predict the next.
"""

from .run import only

if __name__ == "__main__":
    only("wisdm")
