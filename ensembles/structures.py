"""The matrix I + BᵀB of a Laplace approximation, BᵀB = P^-½ G P^-½: whole, as products, Kronecker factors, diagonal."""

import abc
import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array

from .checks import integer
from .covariance import beyond, orthonormal, triangles
from .ground.kinds import random_key


class Factor(eqx.Module):
    """The matrix B of shape (n k, d), for n rows of k outputs and d weights, not written out.

    B = Sᵀ J P^-½ with J the derivative of the outputs, S Sᵀ the curvature of the likelihood, P = diag exp(-h).
    """

    of: Callable[[Array], Array]  # weights -> outputs of shape (n, k)
    weights: Array
    h: Array
    root: Array
    shapes: tuple[tuple[int, ...], ...] = eqx.field(static=True)  # of the arrays that `weights` holds one after another

    def dense(self) -> Array:
        """Returns B."""
        found = jacobian(self.of, self.weights, self.root.shape[0] * self.root.shape[1])
        return (transposed(self.root) @ found * jnp.exp(self.h / 2)).reshape(-1, self.weights.size)

    def product(self, v: Array) -> Array:
        """Returns (I + BᵀB) v by one derivative in each mode."""
        scale = jnp.exp(self.h / 2)
        _, change = jax.jvp(self.of, (self.weights,), (scale * v,))
        curved = jnp.einsum("nab,ncb,nc->na", self.root, self.root, change)
        return v + scale * jax.vjp(self.of, self.weights)[1](curved)[0]


class Structure(eqx.Module):
    """A way to take the determinant and the inverse of I + BᵀB."""

    @abc.abstractmethod
    def log_det(self, factor: Factor) -> Array:
        """Returns log det (I + BᵀB)."""

    @abc.abstractmethod
    def covariance(self, factor: Factor, at: Array) -> Array:
        """Returns V (I + BᵀB)⁻¹ Vᵀ for every V of shape (k, d)."""


class Full(Structure):
    """The whole matrix. *Cost* and *memory*: min(d, n k) derivatives of all outputs, min(d, n k)³ and n k d."""

    def log_det(self, factor: Factor) -> Array:
        """Returns log det (I + BᵀB) or log det (I + BBᵀ), whichever is smaller."""
        return _log_det(factor.dense())

    def covariance(self, factor: Factor, at: Array) -> Array:
        """Returns V (I + BᵀB)⁻¹ Vᵀ."""
        return _covariance(factor.dense(), at)


class Diagonal(Structure):
    """The diagonal, which bounds the evidence from below. *Cost* and *memory*: min(d, n k) derivatives, n k d."""

    def log_det(self, factor: Factor) -> Array:
        """Returns log det (I + diag(BᵀB))."""
        return jnp.sum(jnp.log1p(jnp.sum(factor.dense() ** 2, 0)))

    def covariance(self, factor: Factor, at: Array) -> Array:
        """Returns V (I + diag(BᵀB))⁻¹ Vᵀ."""
        return (at / (1 + jnp.sum(factor.dense() ** 2, 0))) @ transposed(at)


class Kronecker(Structure):
    """One Kronecker product for every matrix of weights, and the whole block of every vector such as a bias.

    With M the rows of B in the shape of the matrix, the block BᵀB of its weights is replaced by

        (Σ M Mᵀ) ⊗ (Σ Mᵀ M) / Σ ‖M‖²

    which has the block's own partial traces. Arrays of more axes count as matrices of their first axis against the
    rest. Correlations between arrays are left out. For dense layers M is the gradient in the layer's outputs times the
    layer's inputs, and the factors are those of K-FAC but for the weights of the rows. It is exact for one linear layer
    with Gaussian noise and a prior per weight matrix, per input or per output.
    *Cost* and *memory*: min(d, n k) derivatives, n k d, and the eigenvalues of matrices of the size of the layers.
    *Bias*: no bound; between `Diagonal` and `Full` in what it neglects.

    **Source**: Martens and Grosse (2015); Ritter, Botev, Barber (2018); Immer et al. (2021).
    """

    def log_det(self, factor: Factor) -> Array:
        """Returns the sum of log (1 + μ_i ν_j) over the eigenvalues of both factors, and of log det of other blocks."""
        total = jnp.zeros((), factor.weights.dtype)
        for rows in _blocks(factor):
            if rows.ndim == 2:
                total += _log_det(rows)
            else:
                size, *roots = _roots(rows)
                left, right = (_told(jnp.linalg.svd(root, compute_uv=False)) for root in roots)
                total += 2 * jnp.sum(jnp.log(jnp.hypot(1, size * left[:, None] * right)))
        return total

    def covariance(self, factor: Factor, at: Array) -> Array:
        """Returns V (I + BᵀB)⁻¹ Vᵀ."""
        total = jnp.zeros((*at.shape[:2], at.shape[1]), at.dtype)
        for rows, part in zip(_blocks(factor), _split(at, factor.shapes), strict=True):
            if rows.ndim == 2:
                total += _covariance(rows, part)
            else:
                size, *roots = _roots(rows)
                (across, left, _), (along, right, _) = map(jnp.linalg.svd, roots)
                halved = across.T @ part @ along / jnp.hypot(1, size * _told(left)[:, None] * _told(right))
                total += jnp.einsum("nkij,nlij->nkl", halved, halved)
        return total


def _split(rows: Array, shapes: tuple[tuple[int, ...], ...]) -> list[Array]:
    """Returns the entries of every array: (..., size) for vectors, (..., first axis, rest) for others."""
    ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
    parts = jnp.split(rows, ends, -1)
    matrix = lambda part, shape: part if len(shape) < 2 else part.reshape(*part.shape[:-1], shape[0], -1)
    return [matrix(part, shape) for part, shape in zip(parts, shapes, strict=True)]


def _blocks(factor: Factor) -> list[Array]:
    """Returns the columns of B of every array: (n k, size) for vectors, (n k, first axis, rest) for others."""
    return _split(factor.dense(), factor.shapes)


def _roots(rows: Array) -> tuple[Array, Array, Array]:
    """Returns s = √Σ ‖M‖², and square roots R with R Rᵀ = Σ M Mᵀ / s² and Σ Mᵀ M / s²."""
    squares = jnp.sum(rows**2)
    size = jnp.sqrt(jnp.where(squares > 0, squares, 1))
    halves = jnp.swapaxes(rows, 1, 2).reshape(-1, rows.shape[1]), rows.reshape(-1, rows.shape[2])
    left, right = (_root(half / size) for half in halves)
    return size, left, right


def _root(half: Array) -> Array:
    """Returns a square matrix R with R Rᵀ = HᵀH, whose singular values have all digits of those of H.

    The square roots of the small eigenvalues of HᵀH would lose them. Its columns are orthogonal already but for
    rounding, and fall in size: a Cholesky factor of the rest is exact, and so are its derivatives.
    """
    fixed = jax.lax.stop_gradient(half)
    first, second, third = triangles(fixed, float(jnp.finfo(half.dtype).eps))[1]
    across, values, _ = jnp.linalg.svd(first @ second @ third)
    told = _told(values)
    rest = half @ across / jnp.where(told > 0, told, jnp.inf)
    return across * told @ jnp.linalg.cholesky(rest.T @ rest + jnp.diag(1.0 * (told == 0)))


class Lanczos(Structure):
    """The whole matrix by products alone: stochastic Lanczos quadrature.

        log det A ≈ mean of zᵀ log(A) z,    ∂ log det A ≈ mean of zᵀ A⁻¹ ∂A z,    z random signs

    Both come from the Krylov space of `num_steps` dimensions that starts at z. Without `key` the signs are the same at
    every call, so that the criterion is a smooth function. A search along many hyperparameters would learn those signs:
    give it the key of the outer loss as `key`, and each call draws its own. `hypergrad.run` then evaluates it up to 64
    times for every new best; with a `holdout` it does not. *Cost*: `num_probes` · `num_steps`
    products. *Memory*: `num_steps` vectors for each probe. *Bias*: none from the probes. That of the quadrature is
    positive and falls exponentially with the steps: more of them, until the value stays. The error of the mean falls
    with the root of the number of probes.

    **Source**: Ubaru, Chen, Saad (2017); the derivative as in Gardner et al. (2018).
    """

    num_probes: int = eqx.field(converter=integer("num_probes", least=1), default=16)
    num_steps: int = eqx.field(converter=integer("num_steps", least=1), default=20)
    key: Array | None = eqx.field(converter=random_key(optional=True), default=None)

    def log_det(self, factor: Factor) -> Array:
        """Returns log det (I + BᵀB), estimated."""
        fixed = lambda v: jax.lax.stop_gradient(factor.product(v))
        steps, like = min(self.num_steps, factor.weights.size), factor.weights

        def estimate(key: Array) -> Array:
            z = jax.random.rademacher(key, like.shape, like.dtype)
            basis, matrix = lanczos(fixed, z, steps)
            values, vectors = eigh(matrix)
            values, first = jnp.maximum(values, 1), vectors[0]  # the smallest eigenvalue of A is at least 1
            value = like.size * jnp.sum(first**2 * jnp.log(values))
            solved = jax.lax.stop_gradient(jnp.sqrt(1.0 * like.size) * basis.T @ (vectors @ (first / values)))
            slope = jnp.vdot(solved, factor.product(z))
            return jax.lax.stop_gradient(value - slope) + slope

        key = jax.random.key(0) if self.key is None else self.key
        return jnp.mean(jax.vmap(estimate)(jax.random.split(key, self.num_probes)))

    def covariance(self, factor: Factor, at: Array) -> Array:
        """Returns V (I + BᵀB)⁻¹ Vᵀ by as many conjugate gradients as it takes, NaN where they stay 1 % away."""

        def solve(row: Array) -> Array:
            tol = 0.01 * jnp.sqrt(jnp.finfo(row.dtype).eps)
            found = cg(factor.product, row, tol=tol)[0]
            left = row - factor.product(found)
            rest = jnp.linalg.norm(left)
            error = (jnp.linalg.norm(found) + rest) * rest  # of rowᵀ A⁻¹ row, because A is at least 1
            return jnp.where(error <= 0.01 * jnp.vdot(row, found), found, jnp.nan)

        return at @ transposed(jax.vmap(jax.vmap(solve))(at))


def lanczos(product: Callable[[Array], Array], start: Array, num_steps: int) -> tuple[Array, Array]:
    """Returns an orthonormal basis of the Krylov space, of shape (num_steps, d), and the matrix in that basis.

    Orthogonalisation has two passes. Where the space is exhausted the rest of the basis is zero, and the rest of the
    matrix has the diagonal 1.
    """
    basis = jnp.zeros((num_steps, start.size), start.dtype).at[0].set(start / jnp.linalg.norm(start))

    def body(k: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        basis, main, off = carry
        image = product(basis[k])
        alpha = jnp.vdot(basis[k], image)
        rest = image
        for _ in range(2):
            rest = rest - basis.T @ (basis @ rest)
        beta = jnp.linalg.norm(rest)
        exhausted = beta <= 1e-6 * jnp.abs(alpha)
        beta = jnp.where(exhausted, 0, beta)
        new = jnp.where(exhausted, 0, rest / jnp.where(exhausted, 1, beta))
        dead = jnp.all(basis[k] == 0)
        return basis.at[k + 1].set(new, mode="drop"), main.at[k].set(jnp.where(dead, 1, alpha)), off.at[k].set(beta)

    zeros = jnp.zeros(num_steps, start.dtype)
    basis, main, off = jax.lax.fori_loop(0, num_steps, body, (basis, zeros, zeros))
    return basis, jnp.diag(main) + jnp.diag(off[:-1], 1) + jnp.diag(off[:-1], -1)


@jax.custom_batching.sequential_vmap  # type: ignore[untyped-decorator]
def eigh(matrix: Array) -> tuple[Array, Array]:
    """Returns eigenvalues and eigenvectors, of several matrices one after another.

    Given many matrices, jaxlib's kernel waits for threads of the pool that it runs in itself: two programs that do so
    at the same time may wait for ever.
    """
    values, vectors = jnp.linalg.eigh(matrix)
    return values, vectors


def jacobian(of: Callable[[Array], Array], weights: Array, num_outputs: int) -> Array:
    """Returns the derivative of the outputs, of shape (rows, k, d), in the mode with fewer passes."""
    return (jax.jacrev if num_outputs < weights.size else jax.jacfwd)(of)(weights)


def _told(values: Array) -> Array:
    """Returns the singular values of a matrix of norm 1, zero where rounding alone may have made them."""
    return jnp.where(values > len(values) * jnp.finfo(values.dtype).eps, values, 0)


def _log_det(rows: Array) -> Array:
    """Returns log det (I + BᵀB) or log det (I + BBᵀ), whichever is smaller."""
    return orthonormal(rows.T if rows.shape[0] < rows.shape[1] else rows)[1]


def _covariance(rows: Array, at: Array) -> Array:
    """Returns V (I + BᵀB)⁻¹ Vᵀ, by what least squares with B leave of V where B has fewer rows than columns."""
    count, weights = rows.shape
    if count < weights:  # V Vᵀ less what B explains would cancel
        rest, _ = beyond(rows.T, transposed(at.reshape(-1, weights)))
        left = transposed(rest).reshape(*at.shape[:2], -1)
    else:
        left = at @ orthonormal(rows)[0][count:]
    return left @ transposed(left)


def transposed(stack: Array) -> Array:
    """Returns every matrix of a stack transposed."""
    return jnp.swapaxes(stack, -1, -2)
