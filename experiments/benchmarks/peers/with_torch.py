"""torch and the libraries on it, each as its users call it. torch is imported when used.

On a GPU products are tf32, as in JAX by default.
"""

import logging
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec

import jax
import numpy as np

from ..measure import flat
from ..problems import MOMENTUM, Benchmark
from .call import Opaque, Peer
from .torch_networks import PREDICT, dense

LINEAR_STEPS = 20


class Torch:
    """The case as torch sees it, weights and hyperparameters as lists of tensors in the order of `jax.tree.leaves`."""

    def __init__(self, case: Benchmark):
        import torch

        torch.set_num_threads(1)
        torch.backends.cuda.matmul.allow_tf32 = True
        self.torch, self.case = torch, case
        self.device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
        to = lambda leaf: torch.tensor(np.array(leaf), device=self.device)
        self.params = [to(leaf) for leaf in jax.tree.leaves(case.params)]
        self.hparams = [to(leaf) for leaf in jax.tree.leaves(case.hparams)]
        self.train, self.valid = ((to(x), to(y)) for x, y in (case.problem.train, case.problem.valid))

    def misfits(self, params, data):
        """Returns the loss of every row, without penalty."""
        (x, y), functional = data, self.torch.nn.functional
        if self.case.name == "P1":
            return functional.softplus(-y * (x @ params[0]))
        outputs = PREDICT.get(self.case.name, dense)(self.torch, params, x)
        return functional.cross_entropy(outputs, y.long(), reduction="none")

    def outer(self, params):
        """Returns the outer loss."""
        return self.misfits(params, self.valid).mean()

    def inner(self, params, hparams):
        """Returns the inner loss."""
        misfits = self.misfits(params, self.train)
        if self.case.name == "P3":
            return (self.torch.sigmoid(hparams[0]) * misfits).mean() + 0.005 * (params[0] ** 2).sum()
        penalty = 0.5 * sum((h.exp() * w**2).sum() for h, w in zip(hparams, params, strict=True))
        return misfits.mean() + penalty / (len(misfits) if self.case.name == "P1" else 1)

    def trained(self, hparams):
        """Does T steps of SGD with momentum, by torch.func."""
        params, velocity = self.params, [self.torch.zeros_like(w) for w in self.params]
        gradient = self.torch.func.grad(self.inner)
        for _ in range(self.case.num_steps):
            velocity = [MOMENTUM * v + g for v, g in zip(velocity, gradient(params, hparams), strict=True)]
            params = [w - self.case.learning_rate * v for w, v in zip(params, velocity, strict=True)]
        return params

    def ready(self, tensors):
        """Returns what JAX must not open, when the device is done."""
        if self.device == "cuda":
            self.torch.cuda.synchronize()
        return Opaque(tensors)

    def learned(self):
        """Returns the hyperparameters as tensors to differentiate by."""
        return [h.clone().requires_grad_() for h in self.hparams]

    def module(self):
        """Returns a module of the weights, and its parameters in order."""
        module = self.torch.nn.Module()
        for index, tensor in enumerate(self.params):
            module.register_parameter(f"p{index}", self.torch.nn.Parameter(tensor.clone()))
        return module


def vector(found: Opaque) -> np.ndarray:
    """Returns all entries as one vector."""
    return flat([tensor.detach().cpu().numpy() for tensor in found.tensors])


def plain(case: Benchmark) -> Peer:
    """Trains, and nothing else."""
    made = Torch(case)
    return Peer(lambda: made.ready(made.trained(made.hparams)), vector)


def unrolled(case: Benchmark) -> Peer:
    """Differentiates the loop by torch.func.grad."""
    made = Torch(case)
    gradient = made.torch.func.grad(lambda hparams: made.outer(made.trained(hparams)))
    return Peer(lambda: made.ready(gradient(made.hparams)), vector)


def with_torchopt(case: Benchmark) -> Peer:
    """Differentiates TorchOpt's MetaSGD."""
    import torchopt

    made = Torch(case)
    tensors = lambda net: [getattr(net, f"p{index}") for index in range(len(made.params))]

    def call():
        net, hparams = made.module(), made.learned()
        optimiser = torchopt.MetaSGD(net, lr=case.learning_rate, momentum=MOMENTUM)
        for _ in range(case.num_steps):
            optimiser.step(made.inner(tensors(net), hparams))
        return made.ready(made.torch.autograd.grad(made.outer(tensors(net)), hparams))

    return Peer(call, vector)


def with_higher(case: Benchmark) -> Peer:
    """Differentiates higher's inner loop."""
    import higher

    made = Torch(case)

    class Network(made.torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.p = made.torch.nn.ParameterList([made.torch.nn.Parameter(w.clone()) for w in made.params])

        def forward(self, loss):
            return loss(list(self.p))

    def call():
        net, hparams = Network(), made.learned()
        optimiser = made.torch.optim.SGD(net.parameters(), lr=case.learning_rate, momentum=MOMENTUM)
        with higher.innerloop_ctx(net, optimiser, copy_initial_weights=False) as (fast, differentiable):
            for _ in range(case.num_steps):
                differentiable.step(fast(lambda params: made.inner(params, hparams)))
            return Opaque(made.torch.autograd.grad(fast(made.outer), hparams))

    return Peer(call, vector)


def with_betty(case: Benchmark) -> Peer:
    """Returns what one outer step of Betty with rate 1 takes off the hyperparameters, by 20 steps of CG."""
    logging.disable(logging.INFO)  # it describes its graph at every call
    from betty.configs import Config, EngineConfig
    from betty.engine import Engine
    from betty.problems import ImplicitProblem

    made = Torch(case)
    torch = made.torch

    class Tensors(torch.nn.Module):
        def __init__(self, tensors):
            super().__init__()
            self.p = torch.nn.ParameterList([torch.nn.Parameter(one.clone()) for one in tensors])

        def forward(self):
            return list(self.p)

    class Outer(ImplicitProblem):
        def training_step(self, batch):
            return made.outer(self.inner())

    class Inner(ImplicitProblem):
        def training_step(self, batch):
            return made.inner(self.module(), self.outer())

    def call():
        weights, hparams = Tensors(made.params), Tensors(made.hparams)
        steps, nothing = case.num_steps, [torch.zeros(1)]
        sgd = torch.optim.SGD(weights.parameters(), lr=case.learning_rate, momentum=MOMENTUM)
        implicit = Config(type="cg", cg_iterations=LINEAR_STEPS, cg_alpha=1.0, unroll_steps=steps)
        rate = torch.optim.SGD(hparams.parameters(), lr=1.0)
        outer = Outer(name="outer", module=hparams, optimizer=rate, train_data_loader=nothing, config=Config())
        inner = Inner(name="inner", module=weights, optimizer=sgd, train_data_loader=nothing, config=implicit)
        depends = {"u2l": {outer: [inner]}, "l2u": {inner: [outer]}}
        engine = EngineConfig(train_iters=steps, logger_type="none")
        Engine(config=engine, problems=[outer, inner], dependencies=depends).run()
        moved = zip(made.hparams, outer.module(), strict=True)
        return Opaque([old - new for old, new in moved])

    return Peer(call, vector, exact=False)


PEERS = {
    "torch: torch.func, unrolled": ("torch", unrolled),
    "TorchOpt: MetaSGD": ("torchopt", with_torchopt),
    "higher: innerloop_ctx": ("higher", with_higher),
    "Betty: CG(20)": ("betty", with_betty),
}


def peers(case: Benchmark) -> dict[str, Callable[[], Peer]]:
    """Returns those that are installed, by name."""
    there = lambda package: find_spec("torch") and find_spec(package)
    return {name: lambda make=make: make(case) for name, (package, make) in PEERS.items() if there(package)}


def growth(call: Callable[[], object]) -> int:
    """Returns the most bytes by which the process is larger during a call than before, sampled every millisecond."""

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    before, most, done = resident(), [0], threading.Event()

    def watch():
        while not done.is_set():
            most[0] = max(most[0], resident() - before)
            time.sleep(0.001)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        call()
    finally:
        done.set()
        thread.join()
    return most[0]
