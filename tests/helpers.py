"""The checkout and the code of its documents, short runs of searches, images, and losses of networks on the digits."""

import contextlib
import io
import re
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.testing import Case, laws

ROOT = Path(__file__).parent.parent


@contextlib.contextmanager
def as_users_run_it():
    """Sets single precision and optax's own promotion of types: tests are in float64."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        yield


def run_blocks(page: str, names: dict, language="python", rtol=0.1, ignored="", fewer=()) -> dict:
    """Runs the code blocks of a page of the checkout as one program; returns the names, with those it defines.

    A block that begins with `%%writefile` is written to that file, as a notebook does. What a block prints is compared
    with the block of `text` that follows it, numbers with a tolerance, because versions and machines round differently,
    and without what is `ignored`. `fewer` are numbers of repetitions in the code, each with a smaller one.
    """
    text = (ROOT / page).read_text()
    for number, smaller in fewer:
        assert text.count(number) == 1, number
        text = text.replace(number, smaller)
    blocks = re.findall(rf"```{language}\n(.*?)```(?:\n+```text\n(.*?)```)?", text, re.S)
    assert blocks, page
    for block, shown in blocks:
        if block.startswith("%%writefile "):
            first, _, rest = block.partition("\n")
            Path(first.split()[1]).write_text(rest)
            continue
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(block, page, "exec"), names)
        print(printed.getvalue(), end="")
        if shown:
            assert_prints(printed.getvalue().replace(ignored, ""), shown.replace(ignored, ""), rtol)
    return names


NUMBER = re.compile(r"-?\d+(?:\.\d*)?(?:e[+-]?\d+)?")


def assert_prints(printed: str, shown: str, rtol: float) -> None:
    """Compares words exactly and numbers to `rtol` or 0.02."""
    words = lambda text: "".join(NUMBER.sub("#", text).split())
    numbers = lambda text: [float(number) for number in NUMBER.findall(text)]
    assert words(printed) == words(shown), printed
    np.testing.assert_allclose(numbers(printed), numbers(shown), rtol=rtol, atol=0.02, err_msg=printed)


def after_steps(search, case: Case, steps: int, key=laws.KEY):
    """`(state, history)` of so many steps of a search, in one compiled call."""
    state = search.init(case.problem, case.params, case.hparams)
    return hg.run(search, case.problem, state, key=key, budget=10**9, chunk=steps, callback=lambda *_: True)


def patterns(rows, seed, squares=7, level=0.5):
    """Images of 784 pixels and their classes: ten fixed patterns of squares under noise, easy to tell apart.

    A share of `level` of the `squares` in each row and column is dark.
    """
    random, size = np.random.default_rng(seed), 28 // squares
    prototypes = np.random.default_rng(0).random((10, squares, 1, squares, 1)) > level
    y = random.integers(0, 10, rows).astype(np.int32)
    shape = rows, squares, size, squares, size
    x = np.broadcast_to(prototypes[y], shape) + 0.3 * random.standard_normal(shape)
    return x.reshape(rows, 784).astype(np.float32), y


def digits_inner(model, hparams, data, key):
    """Cross-entropy of 64 rows and one penalty per weight."""
    x, y = hg.minibatch(key, data, 64)
    weights = eqx.filter(model, eqx.is_inexact_array)
    penalties = jax.tree.map(lambda w, h: jnp.sum(jnp.exp(h) * w**2) / 2, weights, hparams)
    loss = optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), y)
    return jnp.mean(loss) + sum(jax.tree.leaves(penalties))


def digits_outer(model, hparams, data, key):
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(data[0]), data[1]))


def some_slow(cases, *slow):
    """Parameters by name, of which those named are slow."""
    mark = lambda name: pytest.mark.slow if name in slow else ()
    return [pytest.param(*values, id=name, marks=mark(name)) for name, values in cases.items()]
