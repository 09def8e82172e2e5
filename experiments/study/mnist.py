"""`python -m experiments.study.mnist`: the study on MNIST at the published size, for a GPU or a night; `--quick` takes
4,000 images and 64 hidden units."""

from .run import only

if __name__ == "__main__":
    only("mnist", quick="mnist-small", image_noise=True)
