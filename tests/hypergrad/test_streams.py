"""Training data that come batch by batch: every batch once and in order, no bit lost, one compilation."""

import itertools
import json
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.data.source import Source
from hypergrad.testing import laws

FEATURES, SIZE, STEPS = 3, 4, 2
SEARCHES = {
    "reverse": hg.GradientSearch(hg.Reverse(hg.OptaxSolver(optax.sgd(0.5), STEPS), warm_start=True), optax.sgd(0.1)),
    "soba": hg.SOBA(optax.sgd(0.5), optax.sgd(0.1), optax.sgd(0.1)),
}
GREEDY = hg.GradientSearch(hg.Greedy(hg.OptaxSolver(optax.adam(0.1), STEPS)), optax.adam(0.1))


def batch(number):
    rng = np.random.default_rng(number)
    return {"x": rng.normal(size=(SIZE, FEATURES)), "y": rng.normal(size=SIZE)}


def generator(start=0, stop=10**9):
    """Batches in a buffer that is used again."""
    buffer = batch(start)
    for number in range(start, stop):
        for name, leaf in batch(number).items():
            buffer[name][:] = leaf
        yield buffer


class Loader:
    """An iterable like torch's DataLoader: each pass begins anew, and there is no state."""

    def __init__(self, length, shuffled=False):
        self.length, self.passes, self.shuffled = length, 0, shuffled

    def __iter__(self):
        self.passes += 1
        first = self.passes * 100 if self.shuffled else 0
        return (batch(first + number) for number in range(self.length))


class Stateful:
    """An iterator like grain's, whose state is of bytes."""

    def __init__(self):
        self.number = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.number += 1
        return batch(self.number - 1)

    def get_state(self):
        return {"next": json.dumps(self.number).encode()}

    def set_state(self, state):
        self.number = json.loads(state["next"])


class StatefulLoader:
    """An iterable like torchdata's, which begins at the state that was loaded."""

    def __init__(self):
        self.number = 0

    def __iter__(self):
        while True:
            self.number += 1
            yield batch(self.number - 1)

    def state_dict(self):
        return {"number": self.number}

    def load_state_dict(self, state):
        self.number = state["number"]


def loss(w, hparams, data, key):
    return jnp.mean((data["x"] @ w - data["y"]) ** 2) + jnp.exp(hparams) * jnp.sum(w**2)


def problem_of(train):
    return hg.BilevelProblem(loss, lambda w, h, data, key: jnp.sum((w - data) ** 2) + 0.01 * h**2, train, jnp.ones(3))


def go(search, stream, budget=12, **options):
    problem = problem_of(batch(0))
    state = search.init(problem, jnp.zeros(FEATURES), jnp.asarray(-3.0))
    return hg.run(search, problem, state, key=laws.KEY, budget=budget, stream=stream, **options)


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.variants(quick=["reverse-3", "soba-1"], slow=["reverse-1", "soba-3"])
@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_every_training_step_reads_the_next_batch(search, chunk):
    """Weights that go halfway to each datum hold the whole sequence."""
    inner = lambda w, h, data, key: jnp.sum((w - data[0]) ** 2) / 2 + 1e-30 * h * jnp.sum(w)
    problem = hg.BilevelProblem(inner, lambda w, h, data, key: h**2 + 1e-30 * jnp.sum(w), jnp.zeros((1, 2)), None)
    state, threads = search.init(problem, jnp.zeros(2), jnp.asarray(0.5)), threading.active_count()
    expected, read = np.zeros(2), []

    def stream():
        for number in itertools.count():
            read.append(number)
            yield np.random.default_rng(number).normal(size=(1, 2))

    state, history = hg.run(search, problem, state, key=laws.KEY, budget=8, chunk=chunk, stream=stream())
    for number in range(8):
        expected += 0.5 * (np.random.default_rng(number).normal(size=2) - expected)
    np.testing.assert_allclose(state.model, expected, rtol=1e-12)
    assert np.all(np.isnan(history.epochs)) and state.spent.rows == state.spent.inner_equivalents.rounded
    assert 8 <= len(read) <= 8 + 3 * chunk * search.num_inner_steps and threading.active_count() <= threads


@pytest.fixture(scope="module")
def whole():
    """The run without interruption."""
    return go(GREEDY, Stateful(), 24)


def memmap(folder):
    """A function that gives batches from files."""
    rows = [batch(number) for number in range(30)]
    for name in rows[0]:
        np.save(folder / f"{name}.npy", np.concatenate([one[name] for one in rows]))
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in rows[0]}
    part = lambda start: {name: leaf[start : start + SIZE] for name, leaf in arrays.items()}
    return lambda: map(part, range(0, 30 * SIZE, SIZE))


SOURCES = {
    "generator": lambda folder: generator,
    "stateful": lambda folder: Stateful,
    "stateful loader": lambda folder: StatefulLoader,
    "memmap": memmap,
}


@pytest.mark.variants(slow=["memmap", "generator", "stateful"])
@pytest.mark.parametrize("name", SOURCES)
def test_a_resumed_run_reads_on(name, whole, tmp_path):
    """The second run has other chunks and a fresh iterable."""
    make, file = SOURCES[name](tmp_path), tmp_path / "run.ckpt"
    go(GREEDY, make(), 10, checkpoint=file, chunk=2)
    same(whole, go(GREEDY, make(), 24, checkpoint=file, chunk=3))


@pytest.mark.slow
def test_a_resumed_run_says_where_it_cannot_be_exact(tmp_path):
    file, loader = tmp_path / "run.ckpt", Loader(5, shuffled=True)
    go(GREEDY, loader, 8, checkpoint=file)
    with pytest.warns(
        RuntimeWarning, match="stream has no state to be saved, and gives other batches.*after 8 batches"
    ):
        go(GREEDY, loader, 12, checkpoint=file)
    with pytest.raises(ValueError, match="stream ends before batch 12, where the run goes on"):
        go(GREEDY, generator(stop=6), 24, checkpoint=file)


@pytest.mark.slow
def test_passes_follow_one_another_and_an_iterator_ends_the_run():
    loader = Loader(5)
    state, _ = go(GREEDY, loader, 12)
    assert loader.passes >= 3 and state.spent.iterations == 12
    with pytest.warns(RuntimeWarning, match="the stream ended after 6 batches, before the budget was spent"):
        ended, _ = go(GREEDY, generator(stop=7), 24, chunk=2)
    assert ended.spent.iterations == 6
    same(ended, go(GREEDY, generator(), 6)[0])
    with pytest.warns(RuntimeWarning, match="ended after 0 batches"):
        go(GREEDY, [], 4)


@pytest.mark.slow
def test_an_iterator_with_a_state_gets_back_what_was_not_used():
    stream = Stateful()
    go(GREEDY, stream, 6, chunk=2)
    assert stream.number == 6


def test_one_compilation_serves_all_stretches():
    traces = []

    def counted(w, hparams, data, key):
        traces.append(1)
        return loss(w, hparams, data, key)

    problem = hg.BilevelProblem(counted, lambda w, h, data, key: jnp.sum(w**2) + h**2, batch(0), None)
    state = GREEDY.init(problem, jnp.zeros(FEATURES), jnp.asarray(-3.0))
    stream, after = generator(), []
    callback = lambda state, history: after.append(len(traces)) and None
    hg.run(GREEDY, problem, state, key=laws.KEY, budget=10, stream=stream, callback=callback)
    assert len(after) == 5 and len(set(after)) == 1


BROKEN = {
    "shape": ([batch(0), {"x": np.zeros((SIZE - 1, FEATURES)), "y": np.zeros(SIZE - 1)}], "batch 1 has .*drop a last"),
    "type": (
        [batch(0), batch(0) | {"y": np.zeros(SIZE, int)}],
        "batch 1 has train\\['y'\\] int64\\[4\\], but problem.train",
    ),
    "structure": ([(np.zeros(3),)], "batch 0 has the structure"),
    "text": ([batch(0) | {"y": "rows"}], "batch 0 has train\\['y'\\]"),
    "mask": ([batch(0) | {"y": np.ma.array(np.zeros(SIZE), mask=True)}], r"batch 0\['y'\] is a masked array"),
    "order": ([batch(0) | {1: np.zeros(SIZE)}], "batch 0 is no tree"),
}


@pytest.mark.parametrize(("stream", "message"), BROKEN.values(), ids=BROKEN)
def test_batches_of_another_form_are_refused(stream, message):
    with pytest.raises((ValueError, TypeError), match=message):
        go(GREEDY, iter(stream))


@pytest.mark.slow
def test_errors_of_the_stream_are_errors_of_the_run(tmp_path):
    """The checkpoint keeps what was done before."""
    file = tmp_path / "run.ckpt"

    def failing():
        yield from generator(stop=9)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone") as caught:
        go(GREEDY, failing(), 24, checkpoint=file)
    assert any("stream, after batch 9" in note for note in caught.value.__notes__)
    same(go(GREEDY, generator(), 24), go(GREEDY, generator(), 24, checkpoint=file))


def test_what_cannot_be_streamed_is_refused():
    with pytest.raises(TypeError, match="stream must be an iterable of batches, got int"):
        go(GREEDY, 3)
    with pytest.raises(ValueError, match="a stream does not tell its rows"):
        go(GREEDY, generator(), hg.Budget(epochs=2))
    maid = hg.MAID(hg.OptaxSolver(optax.sgd(0.1), 2))
    with pytest.raises(ValueError, match="search cannot train on a stream: .*MAID"):
        go(maid, generator())
    with pytest.raises(TypeError, match="state holds a set"):
        stream = Stateful()
        stream.get_state = lambda: {1}
        go(GREEDY, stream)


def test_a_loader_that_cannot_begin_is_named_with_its_error():
    class Loader:
        def __iter__(self):
            raise OSError("no such server")

    with pytest.raises(ValueError, match="stream cannot be iterated: OSError: no such server") as raised:
        Source(Loader(), jnp.zeros(2))
    assert isinstance(raised.value.__cause__, OSError)
