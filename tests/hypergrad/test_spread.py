"""The spread of a hypergradient over keys."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.testing import laws
from hypergrad.testing.problems import net, ridge

INNER = hg.OptaxSolver(optax.sgd(0.1), 5)


@pytest.mark.slow
def test_it_is_that_of_single_keys():
    case = net()
    found = hg.spread(case.problem, hg.Reverse(INNER), case.params, case.hparams, key=laws.KEY, num_keys=6)
    estimate = hg.value_and_hypergrad(case.problem, hg.Reverse(INNER))
    values, gradients = zip(
        *(estimate(case.hparams, case.params, k) for k in jax.random.split(laws.KEY, 6)), strict=True
    )
    np.testing.assert_allclose(found.value, np.mean(values), rtol=1e-9)
    np.testing.assert_allclose(found.value_std, np.std(values, ddof=1), rtol=1e-9)
    for name in case.hparams:
        each = np.array([g[name] for g in gradients])
        np.testing.assert_allclose(found.hypergradient[name], each.mean(), rtol=1e-9)
        np.testing.assert_allclose(found.hypergradient_std[name], each.std(ddof=1), rtol=1e-9)
        np.testing.assert_allclose(found.signal_to_noise[name], abs(each.mean()) / each.std(ddof=1), rtol=1e-9)
    assert str(found).startswith("Spread over 6 keys: value ") and "signal to noise: log_l2 " in str(found)


def test_without_noise_there_is_no_spread():
    case = ridge()
    found = hg.spread(case.problem, hg.Reverse(INNER), case.params, case.hparams, key=laws.KEY)
    np.testing.assert_allclose(found.hypergradient_std["log_l2"], 0, atol=1e-15)
    assert jnp.isinf(found.signal_to_noise["unused"])
    with pytest.raises(ValueError, match="num_keys must be an integer of at least 2, got 1"):
        hg.spread(case.problem, hg.Reverse(INNER), case.params, case.hparams, key=laws.KEY, num_keys=1)
