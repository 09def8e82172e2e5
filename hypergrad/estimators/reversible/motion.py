"""Training with momentum as a motion that can be followed both ways."""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from ...ground.keys import step_key
from ...ground.units import norm
from ...inner import InnerState
from ...problem import at_step, inner_objective
from ...training import Training
from ..common.adjoint import Adjoint
from . import integers as fixed_point
from .momentum import Clock, MomentumSGD, MomentumState

Position = tuple[PyTree, PyTree]  # weights and velocities
Recovered = tuple[Position, Adjoint, Array]  # the beginning of a stretch, the adjoint there, and an error


def _moving(state: InnerState) -> tuple[PyTree, MomentumState]:
    return state.partitioned, state.solver.internal_state


class Motion(eqx.Module):
    """A training run with momentum, from its first state, step by step."""

    training: Training
    first: InnerState

    @property
    def optimiser(self) -> MomentumSGD:
        """The optimiser, with its rates."""
        return self.training.inner.options["opt"]

    def state(self, position: Position, done: int) -> InnerState:
        """Returns the inner state after `done` steps."""
        memory = MomentumState(Clock(self.first.solver.internal_state.steps + done), position[1])
        first = self.first
        solver = first.solver._replace(iter_num=first.solver.iter_num + done, internal_state=memory)
        return dataclasses.replace(first, partitioned=first.partitioned.with_arrays(position[0]), solver=solver)

    def rates(self, t: Array, like: PyTree) -> tuple[PyTree, PyTree]:
        """Returns learning rate and momentum of step t."""
        return self.optimiser.rates(self.training.hparams, self.first.solver.internal_state.steps + t, like)

    def gradient(self, weights: PyTree, hparams: PyTree, t: Array) -> PyTree:
        """Returns ∇_w L at step t."""
        key = step_key(self.training.key, t)
        count = self.first.solver.iter_num + t
        problem = at_step(self.training.problem, self.first.feed, count, key)
        return jax.grad(inner_objective(problem, self.first.partitioned, key))(weights, hparams)

    def move(self, weights: PyTree, velocity: PyTree, gradient: PyTree, hparams: PyTree, t: Array) -> Position:
        """Does step t from a gradient."""
        memory = MomentumState(Clock(self.first.solver.internal_state.steps + t), velocity)
        updates, memory = self.optimiser(hparams).update(gradient, memory, weights)
        return optax.apply_updates(weights, updates), memory.velocity

    def pull_back(
        self, before: Position, gradient: PyTree, pullback: Callable[[PyTree], PyTree], adjoint: Adjoint, t: Array
    ) -> Adjoint:
        """Does one step of the recursion of `Reverse`, through a gradient that is there already."""
        _, through_move = jax.vjp(lambda w, v, g, h: self.move(w, v, g, h, t), *before, gradient, self.training.hparams)
        after = adjoint.cotangent
        memory = after.solver.internal_state
        by_weights, by_velocity, by_gradient, by_hparams = through_move((after.partitioned.arrays, memory.velocity))
        by_weights, more = optax.tree.add((by_weights, by_hparams), pullback(by_gradient))
        cotangent = eqx.tree_at(
            _moving, after, (after.partitioned.with_arrays(by_weights), memory._replace(velocity=by_velocity))
        )
        return adjoint.moved(t, cotangent, more)


class FloatMotion(Motion):
    """A training run in floating point, from stored position to stored position."""

    def start(self) -> Position:
        """Returns the position and velocity at which training begins."""
        return self.first.partitioned.arrays, self.first.solver.internal_state.velocity

    def end(self, position: Position, done: int) -> InnerState:
        """Returns the inner state after `done` steps."""
        return self.state(position, done)

    def forwards(self, position: Position, stretch: Array) -> tuple[Position, Position]:
        """Walks over a stretch of steps, and keeps the position where it began."""

        def body(position: Position, t: Array) -> tuple[Position, None]:
            (weights, velocity), hparams = position, self.training.hparams
            return self.move(weights, velocity, self.gradient(weights, hparams, t), hparams, t), None

        return jax.lax.scan(body, position, stretch)[0], position

    def backwards(self, position: Position, adjoint: Adjoint, stretch: Array, kept: Position) -> Recovered:
        """Walks back over a stretch, to the stored position; returns the relative error of the recovered one too."""

        def body(carry: PyTree, t: Array) -> tuple[PyTree, None]:
            (weights, velocity), adjoint = carry
            rate, momentum = self.rates(t, weights)
            weights = jax.tree.map(lambda w, a, v: w + a * v, weights, rate, velocity)
            gradient, pullback = jax.vjp(lambda w, h: self.gradient(w, h, t), weights, self.training.hparams)
            velocity = jax.tree.map(lambda v, g, m: (v - g) / m, velocity, gradient, momentum)
            before = (weights, velocity)
            return (before, self.pull_back(before, gradient, pullback, adjoint, t)), None

        (found, adjoint), _ = jax.lax.scan(body, (position, adjoint), stretch, reverse=True)
        size = norm(kept)
        return kept, adjoint, norm(optax.tree.sub(found, kept)) / jnp.where(size > 0, size, 1)


class ExactMotion(Motion):
    """A training run in integers; what each stretch loses is kept as one word of bits per weight.

    `unit`: of each array of weights, and of its velocities, the number that stands for 1; see `fitting`.
    """

    unit: PyTree

    @classmethod
    def fitting(cls, training: Training, first: InnerState, least_momentum: float) -> "ExactMotion":
        """Returns the motion in units that leave room around the weights, the velocities and what the first gradient
        can make of them."""
        motion = Motion(training, first)
        weights, velocity = first.partitioned.arrays, first.solver.internal_state.velocity
        _, momentum = motion.rates(jnp.int32(0), weights)
        gradient = motion.gradient(weights, training.hparams, jnp.int32(0))

        def unit(w: Array, v: Array, g: Array, m: Array) -> Array:
            largest = lambda leaf: jnp.max(jnp.abs(leaf).astype(jnp.float64), initial=0)
            room = 1 - jnp.clip(m.astype(jnp.float64), least_momentum, 1 - 1e-3)
            return fixed_point.unit_for(jnp.maximum(largest(w), jnp.maximum(largest(v), largest(g) / room)))

        return cls(training, first, jax.tree.map(unit, weights, velocity, gradient, momentum))

    def start(self) -> Position:
        """Returns the position and velocity at which training begins."""
        begin = (self.first.partitioned.arrays, self.first.solver.internal_state.velocity)
        return jax.tree.map(fixed_point.encode, begin, (self.unit, self.unit))

    def numbers(self, position: Position) -> Position:
        """Returns the weights and velocities as floats."""
        like = (self.first.partitioned.arrays,) * 2
        decode = lambda fixed, unit, like: fixed_point.decode(fixed, unit, like.dtype)
        return jax.tree.map(decode, position, (self.unit, self.unit), like)

    def end(self, position: Position, done: int) -> InnerState:
        """Returns the inner state after `done` steps."""
        return self.state(self.numbers(position), done)

    def same_gradient(self, weights: PyTree, t: Array) -> PyTree:
        """Returns the gradient in fixed point, the same bits in every program: the compiler may not mix it with what
        stands around it."""
        gradient = self.gradient(jax.lax.optimization_barrier(weights), self.training.hparams, t)
        return jax.tree.map(fixed_point.encode, jax.lax.optimization_barrier(gradient), self.unit)

    def shift(self, velocity: PyTree, t: Array) -> PyTree:
        """Returns learning_rate · v in fixed point."""
        rate, _ = self.rates(t, self.first.partitioned.arrays)
        double = jnp.dtype("float64")
        exact = lambda a, v, u: fixed_point.encode(a.astype(double) * fixed_point.decode(v, u, double), u)
        return jax.tree.map(exact, rate, velocity, self.unit)

    def inside(self, *trees: PyTree) -> Array:
        """Returns whether all these numbers are within the range of fixed-point numbers: none was folded over."""
        fits = lambda fixed: jnp.all(jnp.abs(fixed) < fixed_point.RANGE * 2**fixed_point.FRACTION)
        return jnp.all(jnp.stack([fits(leaf) for tree in trees for leaf in jax.tree.leaves(tree)]))

    def scaled(
        self, operation: Callable[..., tuple[Array, Array]], velocity: PyTree, bits: PyTree, t: Array
    ) -> tuple[PyTree, PyTree]:
        """Multiplies the velocity and the bits by the momentum, or divides them by it."""
        momentum = self.optimiser.momentum
        if callable(momentum):
            _, tree = self.rates(t, self.first.partitioned.arrays)
        else:
            tree = jax.tree.broadcast(momentum, velocity)
        pairs = jax.tree.map(lambda v, b, m: operation(v, b, *fixed_point.ratio(m)), velocity, bits, tree)
        return jax.tree.transpose(jax.tree.structure(velocity), jax.tree.structure((0, 0)), pairs)

    def forwards(self, position: Position, stretch: Array) -> tuple[Position, PyTree]:
        """Walks over a stretch of steps; returns the end, and the bits with whether all stayed within range."""

        def body(carry: PyTree, t: Array) -> tuple[PyTree, None]:
            (fixed, velocity), (bits, inside) = carry
            gradient = self.same_gradient(self.numbers((fixed, velocity))[0], t)
            velocity, bits = self.scaled(fixed_point.multiply, velocity, bits, t)
            velocity = optax.tree.add(velocity, gradient)
            shift = self.shift(velocity, t)
            moved = optax.tree.sub(fixed, shift)
            inside &= self.inside(gradient, velocity, shift, moved)
            return ((moved, velocity), (bits, inside)), None

        empty = (optax.tree.zeros_like(position[0]), self.inside(position))
        return jax.lax.scan(body, (position, empty), stretch)[0]

    def backwards(self, position: Position, adjoint: Adjoint, stretch: Array, kept: PyTree) -> Recovered:
        """Walks back over a stretch; returns where it began, the adjoint there and an error, which is 1 where numbers
        left the range or the bits are not used up, as they are if every step was the same, else 0."""
        bits, inside = kept

        def body(carry: PyTree, t: Array) -> tuple[PyTree, None]:
            (fixed, velocity), bits, adjoint = carry
            fixed = optax.tree.add(fixed, self.shift(velocity, t))
            weights = self.numbers((fixed, velocity))[0]
            velocity = optax.tree.sub(velocity, self.same_gradient(weights, t))
            velocity, bits = self.scaled(fixed_point.divide, velocity, bits, t)
            gradient, pullback = jax.vjp(lambda w, h: self.gradient(w, h, t), weights, self.training.hparams)
            before = self.numbers((fixed, velocity))
            return ((fixed, velocity), bits, self.pull_back(before, gradient, pullback, adjoint, t)), None

        carry, _ = jax.lax.scan(body, (position, bits, adjoint), stretch, reverse=True)
        position, bits, adjoint = carry
        left = optax.tree.sum(jax.tree.map(lambda leaf: jnp.any(leaf != 0), bits))
        return position, adjoint, jnp.asarray((left > 0) | ~inside, adjoint.sizes.dtype)
