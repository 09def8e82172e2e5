"""The networks of the comparison in torch, on weights in the order of `jax.tree.leaves`."""

from collections.abc import Callable
from typing import Any


def convolutional(torch: Any, params: list[Any], x: Any) -> Any:
    """Returns the outputs of the CNN; images are (row, height, width, channel)."""
    dense, *kernels = params
    functional, x = torch.nn.functional, x.permute(0, 3, 1, 2)
    for kernel in kernels:
        x = torch.tanh(functional.conv2d(x, kernel.permute(3, 2, 0, 1), stride=2, padding=1))
    return x.permute(0, 2, 3, 1).reshape(len(x), -1) @ dense


def recurrent(torch: Any, params: list[Any], x: Any) -> Any:
    """Returns the outputs of the LSTM; sequences are (row, time, feature)."""
    dense, inputs, state = params
    h = c = torch.zeros(len(x), state.shape[0], device=x.device)
    for vector in x.unbind(1):
        i, f, o, g = (vector @ inputs + h @ state).chunk(4, -1)
        c = torch.sigmoid(f + 1) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
    return h @ dense


def dense(torch: Any, params: list[Any], x: Any) -> Any:
    """Returns the outputs of a tanh network of any depth."""
    *hidden, last = zip(params[1::2], params[::2], strict=True)
    for weight, bias in hidden:
        x = torch.tanh(x @ weight + bias)
    return x @ last[0] + last[1]


PREDICT: dict[str, Callable[..., Any]] = {
    "P3": lambda torch, params, x: x @ params[0],
    "CNN": convolutional,
    "CNN-XLA": convolutional,
    "LSTM": recurrent,
}
