"""Learning-rate schedules, per-pixel penalties and the short-horizon bias: what is written, and what it shows."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import pixel_decay
from experiments.schedules import model as scheduled
from experiments.schedules import run as schedules
from experiments.short_horizon import model as quadratics
from experiments.short_horizon import run as short_horizon

pytestmark = pytest.mark.usefixtures("as_users_run_it")


def check_output(folder, summary, plots):
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert set(summary) >= {"config", "environment", "runs", "table"}
    with open(folder / "history.csv") as file:
        assert len(list(csv.DictReader(file))) > 1
    for name in plots:
        assert (folder / f"{name}.png").stat().st_size > 5000


def test_noisy_quadratic_reference_values():
    """Methods notes 4.7: rates .909, .335 (step 10) and .097 (step 50), final losses .2555 and .1680 at .409."""
    with jax.enable_x64(True):
        config = short_horizon.Config()
        rates, losses = quadratics.greedy_schedule(config.quadratic(), 50)
        np.testing.assert_allclose(rates[jnp.array([0, 9, 49])], [0.909, 0.335, 0.097], atol=5e-4)
        np.testing.assert_allclose(losses[-1], 0.2555, atol=5e-5)
        best = short_horizon.best_constant(config)
        np.testing.assert_allclose(best, 0.409, atol=1e-3)
        constant = quadratics.losses_of(config.quadratic(), jnp.full(50, best))
        np.testing.assert_allclose(constant[-1], 0.1680, atol=5e-5)


def test_greedy_rate_is_the_best_of_one_step():
    quadratic = short_horizon.Config().quadratic()
    rates = jnp.linspace(0.5, 1.5, 1001)
    after = jax.vmap(
        lambda rate: quadratics.expected_loss(quadratic, quadratics.advance(quadratic, quadratic.start, rate))
    )
    assert abs(rates[after(rates).argmin()] - quadratics.greedy_rate(quadratic, quadratic.start)) < 2e-3


def test_simulated_moments_follow_the_recursion():
    quadratic, rates = short_horizon.Config().quadratic(), jnp.full(20, 0.3)
    problem, weights = (
        quadratics.simulated_problem(quadratic),
        quadratics.particles(quadratic, 20_000, jax.random.key(0)),
    )
    solver = short_horizon.hg.OptaxSolver(quadratics.scheduled_sgd, 20)
    value = short_horizon.hg.evaluate(solver, problem, weights, jnp.log(rates), jax.random.key(1)).value
    np.testing.assert_allclose(value, quadratics.losses_of(quadratic, rates)[-1], rtol=0.03)


@pytest.mark.slow
def test_short_horizon_bias(tmp_path):
    config = short_horizon.Config(hyper_steps=150, hyper_lr=0.05, particles=300, seeds=1, out=tmp_path)
    summary = short_horizon.main(config)
    check_output(tmp_path, summary, ("schedules", "learning"))
    final = {run["method"]: run["final_loss"] for run in summary["runs"]}
    for learned in ("learned, expected loss", "learned, hg.Reverse"):
        assert final[learned] < 0.25 * final["best constant"]
    assert final["best constant"] < 0.8 * min(final["greedy, closed form"], final["greedy, hg.Greedy"])
    assert final["greedy, hg.Greedy"] == pytest.approx(final["greedy, closed form"], rel=0.1)


@pytest.mark.slow
def test_pixel_decay(tmp_path):
    config = pixel_decay.Config(
        data="digits", num_train=400, num_valid=300, hyper_steps=12, num_steps=25, seeds=1, out=tmp_path
    )
    summary = pixel_decay.main(config)
    check_output(tmp_path, summary, ("validation_loss", "penalties"))
    runs = {run["method"]: run for run in summary["runs"]}
    assert runs["learned"]["rises"] == 0
    assert runs["learned"]["valid_loss"] < 0.85 * runs["start"]["valid_loss"]
    assert runs["learned"]["gradients"] == pytest.approx(runs["best single"]["gradients"], rel=0.05)
    assert all(run["test_loss"] > 0 and 0 <= run["test_accuracy"] <= 1 for run in runs.values())


def test_momentum_is_the_published_recursion():
    """v <- γ v - (1 - γ) g, w <- w + α v, at the schedules' own entries."""
    hparams = scheduled.Hparams(jnp.log(jnp.array([0.5, 0.2])), jnp.array([0.0, 1.0]), jnp.zeros(()))
    optimiser, w, velocity = scheduled.scheduled_momentum(hparams), jnp.ones(3), 0.0
    state, expected = optimiser.init(w), np.ones(3)
    for gradient, rate, momentum in ((2.0, 0.5, 0.5), (-1.0, 0.2, 1 / (1 + np.exp(-1)))):
        updates, state = optimiser.update(jnp.full(3, gradient), state, w)
        w = w + updates
        velocity = momentum * velocity - (1 - momentum) * gradient
        expected = expected + rate * velocity
    np.testing.assert_allclose(w, expected, rtol=1e-6)


@pytest.mark.slow
def test_the_displacement_has_the_gradient_of_the_weights():
    x, y = jax.random.normal(jax.random.key(0), (30, 5)), jnp.arange(30) % 10
    noise = scheduled.draw(5, jax.random.key(1))
    hparams = scheduled.constant(noise, 4, -1.0, 0.5, jax.tree.map(lambda _: -1.5, noise))
    displacement = jax.tree.map(lambda z: 0.1 * z[::-1], noise)
    _, outer_loss = scheduled.losses(10)
    found = jax.jit(jax.grad(outer_loss))(displacement, hparams, ((x, y), noise), jax.random.key(2))
    start = jax.tree.map(lambda d, z: d + np.exp(-1.5) * z, displacement, noise)
    expected = jax.jit(jax.grad(scheduled.cross_entropy))(start, (x, y))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected)


@pytest.mark.slow
def test_learned_schedules_beat_a_constant_rate_from_the_same_start(tmp_path):
    sizes = {"num_train": 400, "num_valid": 200, "num_steps": 12, "hyper_steps": 15, "hyper_lr": 0.15}
    summary = schedules.main(schedules.Config(data="digits", evaluations=2, seeds=1, out=tmp_path, **sizes))
    check_output(tmp_path, summary, ("schedules", "training_loss", "initial_scales"))
    runs = {run["method"]: run for run in summary["runs"]}
    assert set(runs) == set(schedules.METHODS)
    assert runs["learned"]["train_loss"] < 0.8 * runs["start"]["train_loss"]
    assert runs["learned"]["gradients"] == pytest.approx(runs["best constant"]["gradients"], rel=0.15)
    assert "2.4" in [row["rate"] for row in summary["table"]]


@pytest.mark.parametrize(
    ("name", "options", "bad"),
    [
        ("short_horizon", ("--curvatures", "--num-steps", "--hyper-lr"), ("--starts", "1")),
        ("pixel_decay", ("--data-dir", "--hyper-prior"), ("--hyper-prior", "-1")),
        ("schedules", ("--data-dir", "--evaluations"), ("--evaluations", "0")),
    ],
)
def test_help_is_printed_and_bad_options_are_named(says, name, options, bad):
    status, text = says(name, "--help")
    assert status == 0 and all(option in text for option in ("--quick", "--seeds", "--out", *options))
    status, text = says(name, "--quick", *bad)
    assert status != 0 and bad[0].lstrip("-").replace("-", "_") in text
