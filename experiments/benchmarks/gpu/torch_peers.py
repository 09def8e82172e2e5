"""The same training and hypergradient in torch, unrolled by torch.func and by TorchOpt. torch is imported when used.

Products are tf32 on a GPU, as in JAX by default.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import numpy as np

from ..problems import MOMENTUM, Benchmark


class Opaque:
    """Tensors that JAX must not open when it waits for a result."""

    def __init__(self, tensors):
        self.tensors = tensors


class Peer(NamedTuple):
    """A call that returns the gradient of every hyperparameter, and what turns that into arrays."""

    call: Callable
    numpy: Callable


class Torch:
    """The case as torch sees it: lists of tensors, layer by layer, in the order of `jax.tree.leaves`."""

    def __init__(self, case: Benchmark):
        import torch

        torch.backends.cuda.matmul.allow_tf32 = True
        self.torch, self.device = torch, "cuda" if torch.cuda.is_available() else "cpu"
        self.case, to = case, self.tensor
        self.params = [to(leaf) for leaf in jax.tree.leaves(case.params)]
        self.hparams = [to(leaf) for leaf in jax.tree.leaves(case.hparams)]
        self.train, self.valid = ((to(x), to(y).long()) for x, y in (case.problem.train, case.problem.valid))

    def tensor(self, array: Any):
        """Copies an array to the device."""
        return self.torch.tensor(np.array(array), device=self.device)

    def outer(self, params, data):
        """Returns the mean cross-entropy; leaves come as bias, weight, bias, weight, ..."""
        x, labels = data
        last = len(params) // 2 - 1
        for i in range(last + 1):
            x = x @ params[2 * i + 1] + params[2 * i]
            x = self.torch.tanh(x) if i < last else x
        return self.torch.nn.functional.cross_entropy(x, labels)

    def inner(self, params, hparams):
        """Returns the inner loss, with the penalty."""
        penalty = sum((h.exp() * w**2).sum() for h, w in zip(hparams, params, strict=True))
        return self.outer(params, self.train) + 0.5 * penalty

    def train_for(self, hparams):
        """Does T steps of SGD with momentum, by torch.func."""
        params, velocity = self.params, [self.torch.zeros_like(w) for w in self.params]
        gradient = self.torch.func.grad(self.inner)
        for _ in range(self.case.num_steps):
            velocity = [MOMENTUM * v + g for v, g in zip(velocity, gradient(params, hparams), strict=True)]
            params = [w - self.case.learning_rate * v for w, v in zip(params, velocity, strict=True)]
        return params

    def ready(self, found):
        """Waits until the device is done."""
        if self.device == "cuda":
            self.torch.cuda.synchronize()
        return found


def arrays(found: Opaque) -> list[np.ndarray]:
    """Returns tensors as arrays."""
    return [tensor.detach().cpu().numpy() for tensor in found.tensors]


def plain(case: Benchmark) -> Peer:
    """Trains, and nothing else."""
    made = Torch(case)
    return Peer(lambda: Opaque(made.ready(made.train_for(made.hparams))), arrays)


def unrolled(case: Benchmark) -> Peer:
    """Differentiates the loop by torch.func.grad."""
    made = Torch(case)
    gradient = made.torch.func.grad(lambda hparams: made.outer(made.train_for(hparams), made.valid))
    return Peer(lambda: Opaque(made.ready(gradient(made.hparams))), arrays)


def with_torchopt(case: Benchmark) -> Peer:
    """Differentiates TorchOpt's SGD."""
    import torchopt

    made = Torch(case)

    class Network(made.torch.nn.Module):
        def __init__(self):
            super().__init__()
            for index, tensor in enumerate(made.params):
                self.register_parameter(f"p{index}", made.torch.nn.Parameter(tensor.clone()))

        def tensors(self):
            return [getattr(self, f"p{index}") for index in range(len(made.params))]

    def call():
        net, hparams = Network(), [h.clone().requires_grad_() for h in made.hparams]
        optimiser = torchopt.MetaSGD(net, lr=case.learning_rate, momentum=MOMENTUM)
        for _ in range(case.num_steps):
            optimiser.step(made.inner(net.tensors(), hparams))
        return Opaque(made.ready(made.torch.autograd.grad(made.outer(net.tensors(), made.valid), hparams)))

    return Peer(call, arrays)


def available() -> dict[str, Callable[[Benchmark], Peer]]:
    """Returns the peers that are installed."""
    peers = {"torch": ("torch.func unrolled", unrolled), "torchopt": ("TorchOpt unrolled", with_torchopt)}
    return dict(peer for package, peer in peers.items() if find_spec(package) and find_spec("torch"))


def peak(call: Callable) -> int | None:
    """Returns the bytes that torch's allocator needs on top of what is there; None on a CPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def version() -> str:
    """Returns the version of torch."""
    import torch

    return torch.__version__
