"""A space with conditions and searchers of all kinds, for the tests of black-box search."""

import jax
import numpy as np
import optuna

import hypergrad as hg

KEY = jax.random.key(3)
SPACE = hg.trials.Space(
    {
        "layers": hg.trials.Int(1, 3, block="a"),
        "units_3": hg.trials.Int(8, 64, log=True, block="a", when=hg.trials.When("layers", at_least=3)),
        "act": hg.trials.Categorical(("relu", "tanh", None), block="b"),
        "slope": hg.trials.Float(0.0, 1.0, block="b", when=hg.trials.When("act", one_of=("relu",))),
        "l2": hg.trials.Float(1e-4, 1.0, log=True, block="c"),
        "lr": hg.trials.Float(1e-4, 1e-1, log=True),
    }
)


def tpe(seed):
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=3)


def cma_es(seed):
    return optuna.samplers.CmaEsSampler(seed=seed, n_startup_trials=3, warn_independent_sampling=False)


TPE = hg.trials.Optuna(tpe)
NESTED = hg.trials.SubnetworkAdaptive(
    hg.trials.DivideAndConquer(TPE, top=3, warmup=3, probability=0.7), hg.trials.PedAnova(), warmup=4, probability=0.7
)
SEARCHERS = {
    "random": hg.trials.Random(),
    "sobol": hg.trials.Sobol(),
    "grid": hg.trials.Grid(3),
    "tpe": TPE,
    "cma-es": hg.trials.Optuna(cma_es),
    "nested": NESTED,
    "other way round": hg.trials.DivideAndConquer(
        hg.trials.SubnetworkAdaptive(hg.trials.Random(), hg.trials.RidgeImportance(), warmup=3), warmup=3
    ),
}


def loss(params):
    return (params["layers"] - 2) ** 2 + abs(np.log(params["l2"]) + 3) + 0.1 * (params["act"] == "relu")


def told(searcher, space, number, function=loss, start=None):
    state = start or searcher.init(space, KEY)
    for _ in range(number):
        state, trial = searcher.ask(state)
        state = searcher.tell(state, trial, hg.trials.Result(function(trial.params)))
    return state
