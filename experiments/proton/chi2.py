"""chi2 of many replicas at the price of few rows: linear points whitened once and reduced by QR."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree
from scipy.linalg import solve_triangular
from threadpoolctl import threadpool_limits

from .data import Measurements, ProtonTables
from .model import AbstractTheory


class Misfit(eqx.Module):
    """chi2 per point of M members, each with its own data, in S selections of points (M/S consecutive members share
    one):

        chi2_m = (|R_s f_m - q_m|² + o_m + |W_s (t(f_m) - d_m)|²)/n_s

    f are the fields, t the points that are not linear in them. With the points' map A, their data D and L Lᵀ = C among
    the points of the selection, Q R = L⁻¹ A, q = Qᵀ L⁻¹ D and o = |L⁻¹ D|² - |q|²: exact, with as many rows as there
    are fields, whatever the number of points.
    """

    rows: Array | None  # R, (S, columns, columns)
    targets: Array | None  # q, (M, columns)
    offsets: Array  # o, (M,)
    white: Array  # W: (S, points, points), or (S, points) where the covariance is diagonal
    rest: Array  # d, (M, points)
    num: Array  # n, (S,)

    def __call__(self, fields: Array, rest: Array) -> Array:
        """Returns chi2 of shape (M,), from fields (M, columns) and `theory.rest` of them, (M, points)."""
        groups = lambda a: a.reshape(len(self.num), -1, a.shape[-1])
        residuals = groups(rest - self.rest)
        if self.white.ndim == 3:
            white = jnp.einsum("sij,srj->sri", self.white, residuals)
        else:
            white = self.white[:, None] * residuals
        total = jnp.sum(white**2, axis=-1)
        if self.rows is not None:
            linear = jnp.einsum("sij,srj->sri", self.rows, groups(fields)) - groups(self.targets)
            total = total + jnp.sum(linear**2, axis=-1)
        return ((total + self.offsets.reshape(total.shape)) / self.num[:, None]).ravel()


def make_misfit(measured: Measurements, masks: np.ndarray, data: np.ndarray) -> Misfit:
    """Returns the chi2 with the t0 covariance of the points of `masks`, of shape (S, N), to `data` of shape (M, N).

    **Raises** `ValueError` where a selection is empty, or covariances couple points that are linear to others.
    """
    masks, data = np.asarray(masks, bool), np.asarray(data, float)
    if not masks.any(1).all() or len(data) % len(masks):
        raise ValueError("masks: every selection needs points, and data must be a multiple of the selections")
    float_type = jnp.result_type(float)
    to = lambda parts: jnp.asarray(np.stack(parts), float_type)
    shared = len(data) // len(masks)
    own = [data[s * shared : (s + 1) * shared] for s in range(len(masks))]
    num = to(masks.sum(1))
    if not isinstance(measured.tables, ProtonTables):
        white = masks / np.sqrt(np.diag(measured.covariance_t0))
        return Misfit(None, None, jnp.zeros(len(data), float_type), to(white), to(data), num)
    C, is_rest = measured.covariance_t0, np.zeros(data.shape[1], bool)
    is_rest[measured.tables.ratio_rows] = True
    if np.any(C[np.ix_(is_rest, ~is_rest)]):
        raise ValueError("covariance_t0 couples points that are linear in the PDFs to points that are not")
    reduce = lambda D, mask: _reduce(measured.tables.map, D, C, mask & ~is_rest)
    whiten = lambda mask: _white(C[np.ix_(is_rest, is_rest)], mask[is_rest])
    # Hundreds of selections; LAPACK lets other threads run, and threads of its own would wait for each other in turns.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(os.cpu_count()) as pool:
        rows, targets, offsets = zip(*pool.map(reduce, own, masks), strict=True)
        whites = list(pool.map(whiten, masks))
    join = lambda parts: jnp.asarray(np.concatenate(parts), float_type)
    return Misfit(to(rows), join(targets), join(offsets), to(whites), to(data[:, is_rest]), num)


def _reduce(table: np.ndarray, data: np.ndarray, C: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns R padded to a square with rows of 0, q and o of every member."""
    points, columns = np.flatnonzero(mask), table.shape[1]
    L = np.linalg.cholesky(C[np.ix_(points, points)]) if len(points) else np.zeros((0, 0))
    Q, R = np.linalg.qr(solve_triangular(L, table[points], lower=True)) if len(points) else (L, np.zeros((0, columns)))
    white = solve_triangular(L, data[:, points].T, lower=True) if len(points) else np.zeros((0, len(data)))
    pad = lambda a: np.concatenate([a, np.zeros((columns - len(a), a.shape[1]))])
    q = Q.T @ white
    return pad(R), pad(q).T, np.sum(white**2, axis=0) - np.sum(q**2, axis=0)


def _white(C: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns L⁻¹ among the points of `mask`, 0 elsewhere."""
    points, full = np.flatnonzero(mask), np.zeros_like(C)
    if len(points):
        L = np.linalg.cholesky(C[np.ix_(points, points)])
        full[np.ix_(points, points)] = solve_triangular(L, np.eye(len(points)), lower=True)
    return full


class Split(NamedTuple):
    """The points that train and those that stop the training, of shape (S, N) each."""

    train: np.ndarray
    valid: np.ndarray


def split_points(measured: Measurements, used: np.ndarray, fraction: float, seed: int, num: int) -> Split:
    """Draws the fraction of the points `used` of every set, of shape (K, N), that trains, `num` times each.

    The rest validates. One draw serves all K folds: a point has the same role wherever it is used.
    """
    rng = np.random.default_rng(seed)
    train = np.zeros((num, len(measured.values)), bool)
    for mask in train:
        for index in range(len(measured.sets)):
            points = np.flatnonzero(measured.set_of_point == index)
            mask[rng.permutation(points)[: round(fraction * len(points))]] = True
    split = lambda part: (used[:, None] & part[None]).reshape(-1, used.shape[1])
    return Split(split(train), split(~train))


def all_fields(theory: AbstractTheory, members: PyTree, own: Any, hparams: Any, choices: Any) -> tuple[Array, Array]:
    """Returns fields and `rest` of all members, (M, columns) and (M, points)."""

    def one(*args):
        fields = theory.fields(*args)
        return fields, theory.rest(fields)

    return eqx.filter_vmap(one)(members, own, hparams, choices)
