"""States, problems and estimates can be copied, sent to other processes, and donated."""

import copy
from multiprocessing.reduction import ForkingPickler

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.ground.tree import PartitionedModel, distinct
from hypergrad.testing import laws
from hypergrad.testing.problems import net

INNER = hg.OptaxSolver(optax.adam(0.05), 5)
LBFGS = hg.JaxoptSolver(jaxopt.LBFGS, maxiter=4)
SEARCHES = {
    "reverse": hg.GradientSearch(hg.Reverse(INNER, warm_start=True), optax.adam(0.1)),
    "hoag": hg.GradientSearch(hg.HOAG(LBFGS), hg.adaptive_step()),
    "soba": hg.SOBA(*[optax.sgd(0.01)] * 3),
    "saba": hg.SABA(*[optax.sgd(0.01)] * 3, num_batches=3, num_valid_batches=2),
    "f2sa": hg.F2SA(optax.sgd(0.01), optax.sgd(0.1), lambda k: 10.0 + k),
    "maid": hg.MAID(LBFGS),
    "random": hg.RandomSearch(INNER, lambda key: jax.tree.map(jnp.zeros_like, net().hparams)),
}
every = pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)


class Mixed(eqx.Module):
    """A model of every kind of part: layers, lambdas, functions that JAX has wrapped, integers, text, tables."""

    mlp: eqx.nn.MLP
    table: jax.Array
    activation: object
    inverse: object
    sizes: dict
    name: str = eqx.field(static=True)

    def __init__(self, key):
        self.mlp = eqx.nn.MLP("scalar", "scalar", 4, 2, jax.nn.relu, lambda x: x / 2, key=key)
        self.table = jnp.arange(3)
        self.activation, self.inverse, self.sizes, self.name = jnp.tanh, lambda x: 1 / x, {"a": 3}, "mixed"


def through_a_pipe(tree):
    return ForkingPickler.loads(ForkingPickler.dumps(tree))


def cloud(tree):
    return ForkingPickler.loads(pytest.importorskip("cloudpickle").dumps(tree))


copied = pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, through_a_pipe, cloud])


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


@copied
@pytest.mark.parametrize(
    "make", [lambda: Mixed(laws.KEY), lambda: {"w": jnp.ones(2), "b": (3, jax.nn.silu, None)}, lambda: jnp.ones(3)]
)
def test_a_partitioned_model(make, copied):
    partitioned = PartitionedModel(make())
    found = copied(partitioned)
    same(partitioned, found)
    assert hash(found.static) == hash(partitioned.static)
    assert jax.tree.structure(PartitionedModel(found.model)) == jax.tree.structure(partitioned)


def test_other_functions_are_another_structure():
    one, other = (PartitionedModel((jnp.ones(2), f)) for f in (lambda x: x + 1, lambda x: x + 2))
    assert jax.tree.structure(one) != jax.tree.structure(other)
    one, other = (PartitionedModel((jnp.ones(2), f)) for f in (jax.nn.relu, jax.nn.silu))
    assert jax.tree.structure(one) != jax.tree.structure(other)


def test_functions_still_work_in_a_copy():
    model = Mixed(laws.KEY)
    found = through_a_pipe(PartitionedModel(model)).model
    assert found.activation is jnp.tanh and found.mlp.activation is jax.nn.relu
    assert found.inverse(4.0) == 0.25 and found.mlp(jnp.ones(())) == model.mlp(jnp.ones(()))


@pytest.mark.variants(quick=["reverse-*", "soba-*"], slow=["hoag-deepcopy", "maid-cloud"])
@copied
@every
def test_a_state(search, copied):
    case = net()
    state = search.init(case.problem, case.params, case.hparams)
    same(state, copied(state))


@pytest.mark.variants(slow=["reverse"])
@pytest.mark.parametrize("name", ["reverse", "hoag"])
def test_a_search_goes_on_from_a_copy_of_its_state(name):
    case, search = net(), SEARCHES[name]
    state = search.init(case.problem, case.params, case.hparams)
    options = {"key": laws.KEY, "budget": 12}
    whole = hg.run(search, case.problem, state, **options)[0]
    same(whole, hg.run(search, case.problem, through_a_pipe(state), **options)[0])


@copied
def test_an_estimate_and_a_problem(copied):
    case, estimator = net(), hg.Reverse(INNER)
    state = estimator.init(case.problem, case.params, case.hparams)
    estimate, _ = estimator.step(case.problem, case.hparams, state, laws.KEY)
    same(estimate, copied(estimate))
    same(*(eqx.filter(one.params, eqx.is_array) for one in (estimate, copied(estimate))))
    data = hg.BilevelProblem(optax.l2_loss, optax.l2_loss, case.problem.train, case.problem.valid)
    same(data, copied(data))


@pytest.mark.variants(quick=["reverse", "soba", "saba", "f2sa", "random"], slow=["maid"])
@every
def test_no_two_arrays_of_a_fresh_state_are_one(search):
    case = net()
    leaves = jax.tree.leaves(search.init(case.problem, case.params, case.hparams))
    assert len({id(leaf) for leaf in leaves}) == len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)


@pytest.mark.variants(slow=["reverse"])
@every
def test_a_fresh_state_can_be_donated(search):
    case = net()
    params = jax.tree.map(lambda leaf: jnp.copy(leaf) if eqx.is_array(leaf) else leaf, case.params)
    state = search.init(case.problem, params, jax.tree.map(jnp.copy, case.hparams))
    wanted, _ = search.step(case.problem, state, laws.KEY)
    step = eqx.filter_jit(lambda rest, state: search.step(rest[0], state, rest[1]), donate="all-except-first")
    found, _ = step((case.problem, laws.KEY), state)
    for a, b in zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_only_repeated_arrays_are_copied():
    a, b = jnp.ones(2), jnp.zeros(2)
    found = distinct((a, b, a, 3, a))
    assert found[0] is a and found[1] is b and found[2] is not a and found[4] is not found[2]
    assert jnp.all(found[2] == a) and jnp.all(found[4] == a)
