"""The same recursions written by hand: plain arrays (w, v) in `lax.scan`, nothing counted, checked or reported.

    Φ:  v <- μ v + ∇L(w, λ),  w <- w - η v

Every function takes a `Benchmark` and returns `f(hparams, params, train, valid) -> (outer loss, hypergradient)`, to be
jitted.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from .problems import MOMENTUM, Benchmark

add = lambda a, b: jax.tree.map(jnp.add, a, b)
scale = lambda a, x: jax.tree.map(lambda x: a * x, x)
axpy = lambda a, x, y: jax.tree.map(lambda x, y: a * x + y, x, y)
dot = lambda a, b: sum(jax.tree.leaves(jax.tree.map(jnp.vdot, a, b)))
zeros = lambda a: jax.tree.map(jnp.zeros_like, a)


def inner_gradient(case: Benchmark, train) -> Callable:
    """Returns the function ∇_w L(w, λ)."""
    return jax.grad(lambda w, hparams: case.problem.inner_loss(w, hparams, train, None))


def outer(case: Benchmark, valid) -> Callable:
    """Returns the function `(w, λ) -> (F, (∂_w F, ∂_λ F))`."""
    return jax.value_and_grad(lambda w, hparams: case.problem.outer_loss(w, hparams, valid, None), argnums=(0, 1))


def stepper(case: Benchmark, train) -> Callable:
    """Returns the function `(λ, (w, v)) -> Φ(w, v)`."""
    gradient = inner_gradient(case, train)

    def step(hparams, state):
        w, v = state
        v = axpy(MOMENTUM, v, gradient(w, hparams))
        return axpy(-case.learning_rate, v, w), v

    return step


def train_for(case: Benchmark, train, hparams, state, steps: int):
    """Returns the state after `steps` updates."""
    step = stepper(case, train)
    return lax.scan(lambda state, _: (step(hparams, state), None), state, length=steps)[0]


def plain(case: Benchmark) -> Callable:
    """Returns training alone, the unit in which everything else is counted."""

    def f(hparams, params, train, valid):
        w, _ = train_for(case, train, hparams, (params, zeros(params)), case.num_steps)
        return case.problem.outer_loss(w, hparams, valid, None), w

    return f


def pull_back(case: Benchmark, train, hparams, carry, w):
    """Takes one adjoint step at w:  q = c_v - η c_w,  g += ∂²L/∂λ∂w q,  c_w += H q,  c_v = μ q; returns ∇L(w) too."""
    cw, cv, g = carry
    q = axpy(-case.learning_rate, cw, cv)
    gradient, pullback = jax.vjp(inner_gradient(case, train), w, hparams)
    hq, mixed = pullback(q)
    return (add(cw, hq), scale(MOMENTUM, q), add(g, mixed)), gradient


def record(case: Benchmark, train, hparams, state, steps: int):
    """Returns the state after `steps` updates, and the weights before each."""
    step = stepper(case, train)
    return lax.scan(lambda state, _: (step(hparams, state), state[0]), state, length=steps)


def reverse(case: Benchmark, horizon: int | None = None) -> Callable:
    """Returns the sweep that stores w_t, and makes one VJP per step over the last `horizon` steps."""
    steps = case.num_steps if horizon is None else horizon

    def f(hparams, params, train, valid):
        state = train_for(case, train, hparams, (params, zeros(params)), case.num_steps - steps)
        (w, _), path = record(case, train, hparams, state, steps)
        value, (cw, g) = outer(case, valid)(w, hparams)
        back = lambda carry, w: (pull_back(case, train, hparams, carry, w)[0], None)
        return value, lax.scan(back, (cw, zeros(cw), g), path, reverse=True)[0][2]

    return f


def reverse_remat(case: Benchmark) -> Callable:
    """Returns `jax.grad` through a scan over `jax.checkpoint`-ed steps."""
    return unrolled(case, jax.checkpoint)


def reverse_unrolled(case: Benchmark) -> Callable:
    """Returns `jax.grad` through a plain scan, which stores what every step computes."""
    return unrolled(case, lambda step: step)


def unrolled(case: Benchmark, transform: Callable[[Callable], Callable]) -> Callable:
    """Returns `jax.grad` through a scan over transformed steps."""

    def f(hparams, params, train, valid):
        step = transform(stepper(case, train))

        def loss(hparams):
            start = (params, zeros(params))
            (w, _), _ = lax.scan(lambda s, _: (step(hparams, s), None), start, length=case.num_steps)
            return case.problem.outer_loss(w, hparams, valid, None)

        return jax.value_and_grad(loss)(hparams)

    return f


def reverse_sqrt(case: Benchmark) -> Callable:
    """Returns the sweep with about √T stored states; each segment is run again and swept."""
    count = math.isqrt(case.num_steps)
    length = case.num_steps // count
    head = case.num_steps % count

    def f(hparams, params, train, valid):
        state, path = record(case, train, hparams, (params, zeros(params)), head)
        ahead = lambda state, _: (train_for(case, train, hparams, state, length), state)
        (w, _), anchors = lax.scan(ahead, state, length=count)
        value, (cw, g) = outer(case, valid)(w, hparams)
        sweep = lambda carry, w: (pull_back(case, train, hparams, carry, w)[0], None)

        def back(carry, anchor):
            _, segment = record(case, train, hparams, anchor, length)
            return lax.scan(sweep, carry, segment, reverse=True)[0], None

        carry, _ = lax.scan(back, (cw, zeros(cw), g), anchors, reverse=True)
        return value, lax.scan(sweep, carry, path, reverse=True)[0][2]

    return f


def reverse_sqrt_remat(case: Benchmark) -> Callable:
    """Returns `jax.grad` through a scan of checkpointed scans of checkpointed steps."""
    count = math.isqrt(case.num_steps)
    length, head = case.num_steps // count, case.num_steps % count

    def f(hparams, params, train, valid):
        step = jax.checkpoint(stepper(case, train))

        def loss(hparams):
            one = lambda state, _: (step(hparams, state), None)
            segment = jax.checkpoint(lambda state, _: lax.scan(one, state, length=length))
            state, _ = lax.scan(one, (params, zeros(params)), length=head)
            (w, _), _ = lax.scan(segment, state, length=count)
            return case.problem.outer_loss(w, hparams, valid, None)

        return jax.value_and_grad(loss)(hparams)

    return f


def trained(case: Benchmark, hparams, params, train, valid):
    """Returns the last state (w, v), the outer loss there, and the carry that an adjoint begins with."""
    state = train_for(case, train, hparams, (params, zeros(params)), case.num_steps)
    value, (cw, g) = outer(case, valid)(state[0], hparams)
    return state, value, (cw, zeros(cw), g)


def drmad(case: Benchmark) -> Callable:
    """Returns the adjoint along the straight line from w_0 to w_T; velocities do not enter an adjoint of SGD."""

    def f(hparams, params, train, valid):
        (w, _), value, carry = trained(case, hparams, params, train, valid)

        def back(carry, t):
            point = jax.tree.map(lambda a, b: a + (t / case.num_steps).astype(a.dtype) * (b - a), params, w)
            return pull_back(case, train, hparams, carry, point)[0], None

        return value, lax.scan(back, carry, jnp.arange(case.num_steps), reverse=True)[0][2]

    return f


def reversal(case: Benchmark) -> Callable:
    """Returns the adjoint along w_t = w_{t+1} + η v_{t+1},  v_t = (v_{t+1} - ∇L(w_t)) / μ."""

    def f(hparams, params, train, valid):
        (w, v), value, carry = trained(case, hparams, params, train, valid)

        def back(carry, _):
            w, v, carry = carry
            w = axpy(case.learning_rate, v, w)
            carry, gradient = pull_back(case, train, hparams, carry, w)
            return (w, scale(1 / MOMENTUM, axpy(-1.0, gradient, v)), carry), None

        return value, lax.scan(back, (w, v, carry), length=case.num_steps)[0][2][2]

    return f


def greedy(case: Benchmark) -> Callable:
    """Returns -η Σ_t (∂²L/∂λ∂w)(w_t) ∇F(w_{t+1}), summed on the way forward."""

    def f(hparams, params, train, valid):
        value_and_grads = outer(case, valid)

        def ahead(carry, _):
            w, v, total = carry
            gradient, pullback = jax.vjp(lambda hparams: inner_gradient(case, train)(w, hparams), hparams)
            v = axpy(MOMENTUM, v, gradient)
            w = axpy(-case.learning_rate, v, w)
            _, (by_w, _) = value_and_grads(w, hparams)
            return (w, v, add(total, pullback(scale(-case.learning_rate, by_w))[0])), None

        start = (params, zeros(params), zeros(hparams))
        (w, _, total), _ = lax.scan(ahead, start, length=case.num_steps)
        value, (_, direct) = value_and_grads(w, hparams)
        return value, add(direct, total)

    return f


def implicit(case: Benchmark, linear_solve: Callable) -> Callable:
    """Returns ∂_λ F - ∂²L/∂λ∂w v with v = `linear_solve(H, ∂_w F)`, and the size of the residual."""

    def f(hparams, params, train, valid):
        w, _ = train_for(case, train, hparams, (params, zeros(params)), case.num_steps)
        value, (by_w, by_hparams) = outer(case, valid)(w, hparams)
        gradient = inner_gradient(case, train)
        _, hvp = jax.linearize(lambda w: gradient(w, hparams), w)
        v = linear_solve(hvp, by_w)
        residual = axpy(-1.0, hvp(v), by_w)
        _, mixed = jax.vjp(lambda hparams: gradient(w, hparams), hparams)
        return value, axpy(-1.0, mixed(v)[0], by_hparams), dot(residual, residual)

    return f


def cg(steps: int) -> Callable:
    """Returns conjugate gradients with a fixed number of steps."""

    def solve(hvp, b):
        def body(carry, _):
            v, r, p, rr = carry
            hp = hvp(p)
            alpha = rr / dot(p, hp)
            v, r = axpy(alpha, p, v), axpy(-alpha, hp, r)
            rr_new = dot(r, r)
            return (v, r, axpy(rr_new / rr, p, r), rr_new), None

        return lax.scan(body, (zeros(b), b, b, dot(b, b)), length=steps)[0][0]

    return solve


def neumann(steps: int, step_size: float) -> Callable:
    """Returns v = α Σ_{k < steps} (I - αH)^k b."""

    def solve(hvp, b):
        body = lambda carry, _: ((axpy(step_size, carry[1], carry[0]), axpy(-step_size, hvp(carry[1]), carry[1])), None)
        return lax.scan(body, (zeros(b), b), length=steps)[0][0]

    return solve
