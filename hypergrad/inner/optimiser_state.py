"""Parts of an optimiser's state that come from the hyperparameters, to be renewed where training goes on at others."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import KeyEntry, SequenceKey, keystr
from jaxtyping import Array, PyTree

from ..ground.dependence import Origin, Origins, origins
from ..ground.surprises import shape_of

Transformation: TypeAlias = optax.GradientTransformation | optax.MultiSteps

HPARAMS, LEARNED, FIRST_OF_STATE = 1, 2, 2  # two bits, and the index of the first bit of the state


class Carried(NamedTuple):
    """Parts of an optimiser's state that follow the hyperparameters and not the weights, a truth value per leaf.

    - `copies`: hyperparameters put there by `init` and never changed, as by `optax.inject_hyperparams`.
    - `clocks`: counters, and other states, of schedules in which hyperparameters enter.
    - `adrift`: paths of leaves that start from a hyperparameter and then change by themselves, next to moments: their
      value at other hyperparameters in the midst of training is undefined.
    """

    copies: PyTree
    clocks: PyTree
    adrift: tuple[str, ...]

    def refuse_adrift(self, num_steps: int) -> None:
        """Raises `ValueError` naming a part that a warm start of so many steps cannot go on with."""
        if self.adrift:
            raise ValueError(
                f"the optimiser's state{self.adrift[0]} starts from a hyperparameter and then changes by itself, so "
                "that a warm start would not follow the hyperparameter; keep the hyperparameter out of the state, or "
                "use warm_start=False"
            )
        if num_steps == 1 and any(jax.tree.leaves(self.clocks)):
            raise ValueError(
                "a schedule in which hyperparameters enter counts the steps of one training, of which there is 1 here: "
                "the optimiser would stay at step 0; separate what is fixed, as in "
                "optax.chain(optax.sgd(rate), optax.scale_by_schedule(schedule)), or use more inner steps"
            )


def carried(optimiser: Callable[[PyTree], Any], hparams: PyTree, params: PyTree) -> Carried:
    """Reads the parts from the jaxprs of `init` and `update`; nothing is computed."""
    shape = lambda tree: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), tree)
    hparams, params = shape(hparams), shape(params)
    init = lambda hparams, params: optimiser(hparams).init(params)
    state = jax.eval_shape(init, hparams, params)
    leaves, structure = jax.tree_util.tree_flatten_with_path(state)
    of = lambda tree, bit: [Origin(bit)] * len(jax.tree.leaves(tree))
    started = origins(init, (hparams, params), of(hparams, HPARAMS) + of(params, LEARNED)).outputs
    first = [bool(origin.inputs & HPARAMS) for origin in started]
    own = [Origin(1 << FIRST_OF_STATE + k, k) for k in range(len(leaves))]
    moved = origins(
        lambda hparams, *args: with_loss(optimiser(hparams), optax.tree.sum).update(*args),
        (hparams, params, state, params),
        of(hparams, HPARAMS) + of(params, LEARNED) + own + of(params, LEARNED),
    )
    updated = moved.outputs[len(moved.outputs) - len(leaves) :]
    by_itself, used = _unlearned(updated), _used(moved.outputs, len(leaves))
    copies = [start and origin.copied == k for k, (start, origin) in enumerate(zip(first, updated, strict=True))]
    follows = [
        alone and read and not copy and (start or meets)
        for alone, read, copy, start, meets in zip(
            by_itself, used, copies, first, _scheduled(moved, by_itself), strict=True
        )
    ]
    paths = [path for path, _ in leaves]
    free = [alone and not _random(leaf) for alone, (_, leaf) in zip(by_itself, leaves, strict=True)]
    groups = _groups(paths, free)
    clocks = [group in {g for g, f in zip(groups, follows, strict=True) if f and g} for group in groups]
    adrift = [f and start and not clock for f, start, clock in zip(follows, first, clocks, strict=True)]
    tree = lambda flags: jax.tree.unflatten(structure, flags)
    return Carried(tree(copies), tree(clocks), tuple(keystr(p) for p, a in zip(paths, adrift, strict=True) if a))


def check_changes(optimiser: Any, hparams: PyTree, params: PyTree) -> None:
    """Warns of an optimiser whose first step is another function each time that JAX traces it."""

    def first(hparams: PyTree, params: PyTree) -> PyTree:
        made = optimiser if isinstance(optimiser, Transformation) else optimiser(hparams)
        made = with_loss(made, lambda params: jnp.sum(jnp.real(jax.tree.leaves(params)[0])))
        return made.update(params, made.init(params), params)

    shape_of("optimiser", first, hparams, params)


def with_loss(
    optimiser: Transformation, loss: Callable[[PyTree], Array], value: Callable[[], Array] | None = None
) -> optax.GradientTransformation:
    """Returns the optimiser with all that some of optax's ask for besides the gradient: the loss, at the weights and as
    a function of them. `value` returns that at the weights where it is known, so that it is not traced once more."""

    if isinstance(optimiser, optax.MultiSteps):
        optimiser = optimiser.gradient_transformation()

    def update(gradient: PyTree, state: PyTree, params: PyTree | None = None) -> tuple[PyTree, PyTree]:
        more = {"value": loss(params) if value is None else value(), "grad": gradient, "value_fn": loss}
        if "grad_fn" in inspect.signature(optimiser.update).parameters:  # line searches refuse what they do not know
            more["grad_fn"] = lambda params, _: jax.grad(loss)(params)
        if optax.tree.get_all_with_path(state, "hessian_fn_state"):  # of optax.contrib.sophia, inside a chain or not
            more["obj_fn"] = loss
        return update_with(optimiser, gradient, state, params, **more)

    return optax.GradientTransformation(optimiser.init, update)


def options_with_value(
    optimiser: Any, hparams: PyTree, objective: Callable[..., Any], loss: Callable[[PyTree], Array], has_aux: bool
) -> dict[str, Any]:
    """Returns the options of jaxopt's solver with which the optimiser is told the value found with the gradient."""
    optimiser = optimiser(hparams) if callable(optimiser) else optimiser
    if not isinstance(optimiser, Transformation):
        raise TypeError(f"a function of the hyperparameters must return an optax optimiser, it returned {optimiser!r}")
    found: list[Any] = []

    def value_and_grad(arrays: PyTree, *args: Any) -> Any:
        value, gradient = jax.value_and_grad(objective, has_aux=has_aux)(arrays, *args)
        found[:] = [value[0] if has_aux else value]
        return value, gradient

    return {"opt": with_loss(optimiser, loss, found.pop), "value_and_grad": value_and_grad}


def update_with(
    optimiser: optax.GradientTransformation, gradient: PyTree, state: PyTree, params: PyTree, **more: Any
) -> tuple[PyTree, PyTree]:
    """Returns `optimiser.update(gradient, state, params)`, with those of the extra arguments that it takes."""
    taken = inspect.signature(optimiser.update).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        more = {name: value for name, value in more.items() if name in taken}
    return optimiser.update(gradient, state, params, **more)


def _random(leaf: jax.ShapeDtypeStruct) -> bool:
    """Returns whether a leaf is a key, of either style: draws are not to be repeated at every training."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) or leaf.dtype == jnp.uint32


def _unlearned(outputs: Sequence[Origin]) -> list[bool]:
    """Returns, for every leaf of the state, whether it changes without gradients and weights ever entering."""
    learned = LEARNED
    while True:
        more = learned
        for k, origin in enumerate(outputs):
            if origin.inputs & learned:
                more |= 1 << FIRST_OF_STATE + k
        if more == learned:
            return [not learned >> FIRST_OF_STATE + k & 1 for k in range(len(outputs))]
        learned = more


def _used(outputs: Sequence[Origin], size: int) -> list[bool]:
    """Returns, for every leaf of the state, whether anything is computed from it."""
    return [any(origin.inputs >> FIRST_OF_STATE + k & 1 for origin in outputs) for k in range(size)]


def _scheduled(moved: Origins, by_itself: Sequence[bool]) -> list[bool]:
    """Returns, for every leaf, whether it meets a hyperparameter before anything learned, as in a rate λ[count]."""
    learned = LEARNED | sum(1 << FIRST_OF_STATE + k for k, alone in enumerate(by_itself) if not alone)
    met = 0
    for inputs in moved.met:
        if inputs & HPARAMS and not inputs & learned:
            met |= inputs
    return [bool(met >> FIRST_OF_STATE + k & 1) for k in range(len(by_itself))]


def _groups(paths: Sequence[tuple[KeyEntry, ...]], free: Sequence[bool]) -> list[tuple[KeyEntry, ...] | None]:
    """Returns the state that every leaf is a part of; `None` where not all of that is free to start again.

    Adam's counter stands with its moments and goes on with them, a schedule's stands alone. The tuple of a chain is no
    state: its entries are.
    """
    groups = [path if not path or isinstance(path[-1], SequenceKey) else path[:-1] for path in paths]
    inside = lambda group: [alone for path, alone in zip(paths, free, strict=True) if path[: len(group)] == group]
    return [group if all(inside(group)) else None for group in groups]
