"""Networks whose widths and depth are data, so that one program trains them all."""

from .convolutional import MaskedCNN as MaskedCNN
from .dense import MaskedMLP as MaskedMLP
from .dense import count_params as count_params
