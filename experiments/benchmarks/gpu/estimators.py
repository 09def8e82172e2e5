"""Cost of all estimators on a network that fills the card, next to hand-written loops and to torch."""

import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import jax
import numpy as np

from .. import bare
from ..cost import Entry, entries
from ..measure import Rounds, agreement, arguments, compiled, compiled_estimator, exact, flat, median_seconds
from ..peers import with_torch
from ..peers.call import Peer
from ..problems import Benchmark
from .config import Config
from .networks import network, num_weights

FIRST = ("Reverse", "DrMAD(knots=1)", "Greedy every step", "Implicit CG(20)")  # the rest follow after torch


class Shared:
    """Parts that several rows need, made when the first of them does."""

    def __init__(self, config: Config):
        self.rounds = config.sizes.rounds
        self.case = network(config.seed, config.sizes.hidden, config.sizes.rows, config.sizes.horizon)
        self.right: np.ndarray | None = None
        self._plain: Any = None

    @property
    def plain(self):
        """Measures training alone: the unit."""
        if self._plain is None:
            self._plain = compiled(bare.plain(self.case), *arguments(self.case))
        return self._plain


def tasks(config: Config, until: float, variant: str) -> dict[str, Callable[[], dict[str, Any]]]:
    """Returns training alone, the first estimators, the reference in float64, torch, the other estimators."""
    shared = Shared(config)
    known = {entry.name: entry for entry in entries(shared.case)}
    rows = {name: partial(estimator, shared, entry) for name, entry in known.items()}
    found = {"plain": partial(plain, shared), "float64": partial(reference, shared)}
    first = {name: rows.pop(name) for name in FIRST}
    peers = {name: partial(peer, shared, known["Reverse"], make) for name, make in torch_peers().items()}
    return found | dict(list((first | peers | rows).items())[: config.sizes.estimators])


def plain(shared: Shared) -> dict[str, Any]:
    """Measures training alone: the unit."""
    program = shared.plain
    return {
        "case": shared.case.name,
        "weights": num_weights(shared.case),
        "seconds": median_seconds(program.call, shared.rounds),
        "compile_s": program.compile_s,
        "temp_bytes": program.temp_bytes,
        "planned_bytes": program.planned_bytes,
    }


def reference(shared: Shared) -> dict[str, Any]:
    """Computes the unrolled hypergradient in float64, which cosines and errors refer to."""
    started = time.perf_counter()
    shared.right = exact(shared.case)
    return {"seconds": time.perf_counter() - started, "norm": float(np.linalg.norm(shared.right))}


def estimator(shared: Shared, entry: Entry) -> dict[str, Any]:
    """Measures one estimator and the first of its hand-written counterparts."""
    case = shared.case
    ours = compiled_estimator(case, entry.estimator, jax.random.key(0))
    by_hand = compiled(entry.bares[0], *arguments(case))
    calls = {"plain": shared.plain.call, "ours": ours.call, "bare": by_hand.call}
    timed = Rounds(calls, shared.rounds)
    estimate = ours.call()
    return {
        "seconds": timed.seconds("ours"),
        "bare_seconds": timed.seconds("bare"),
        "time_over_plain": timed.ratio("ours", "plain"),
        "bare_over_plain": timed.ratio("bare", "plain"),
        "time_over_bare": timed.ratio("ours", "bare"),
        "compile_s": ours.compile_s,
        "bare_compile_s": by_hand.compile_s,
        "temp_bytes": ours.temp_bytes,
        "bare_temp_bytes": by_hand.temp_bytes,
        "planned_bytes": ours.planned_bytes,
        "memory_over_bare": ours.temp_bytes / max(1, by_hand.temp_bytes),
        **compared(shared, flat(estimate.hypergradient)),
    }


def compared(shared: Shared, found: np.ndarray) -> dict[str, Any]:
    """Returns cosine and error against float64, where that is known."""
    return {} if shared.right is None else agreement(found, shared.right)


def peer(shared: Shared, entry: Entry, make: Callable[[Benchmark], Peer]) -> dict[str, Any]:
    """Measures a torch program, in rounds with training alone in both libraries and with our `Reverse`."""
    import torch

    made, ours = make(shared.case), compiled_estimator(shared.case, entry.estimator, jax.random.key(0))
    plain = with_torch.plain(shared.case)
    calls = {"plain": shared.plain.call, "ours": ours.call, "torch plain": plain.call, "torch": made.call}
    timed = Rounds(calls, shared.rounds)
    held = torch_peak(made.call)
    return {
        "seconds": timed.seconds("torch"),
        "plain_seconds": timed.seconds("torch plain"),
        "time_over_plain": timed.ratio("torch", "torch plain"),
        "time_over_jax_plain": timed.ratio("torch", "plain"),
        "time_over_our_reverse": timed.ratio("torch", "ours"),
        "torch_plain_over_jax_plain": timed.ratio("torch plain", "plain"),
        "temp_bytes": held,
        "memory_over_our_reverse": None if held is None else held / ours.temp_bytes,
        "torch": torch.__version__,
        **compared(shared, made.vector(made.call())),
    }


def torch_peers() -> dict[str, Callable[[Benchmark], Peer]]:
    """Returns those that are installed, by name."""
    found = {"torch.func unrolled": with_torch.unrolled} if find_spec("torch") else {}
    return found | ({"TorchOpt unrolled": with_torch.with_torchopt} if found and find_spec("torchopt") else {})


def torch_peak(call: Callable) -> int | None:
    """Returns the bytes that torch's allocator needs on top of those in use; None on a CPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
