"""The mean of low-rank products, of the best rank, without forming one of them."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, final

import numpy as np
import numpy.typing as npt

Gauge: TypeAlias = Literal["kept", "balanced", "orthonormal"]
_Matrix: TypeAlias = npt.NDArray[np.floating[Any]]


@final
@dataclass(frozen=True, slots=True)
class Factors:
    """A matrix as a product, B A.

    Attributes:
        b: Rows of the matrix by the rank, float64.
        a: The rank by columns of the matrix, float64.
    """

    b: _Matrix
    a: _Matrix

    @property
    def rank(self) -> int:
        """How many columns B and rows A have."""
        return len(self.a)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Squared Frobenius norms that tell what became of a mean of products.

    Attributes:
        energy: Of the mean of the products.
        least: Of what the nearest factors of the rank lack of it.
        averaging: Of what the product of the averaged factors lacks of it.
        made: Of what the factors that came out lack of it.
    """

    energy: float
    least: float
    averaging: float
    made: float


def product_mean(
    updates: Sequence[Factors],
    weights: Sequence[float],
    gauge: Gauge = "kept",
    free: int = 0,
) -> tuple[Factors, Losses]:
    r"""Return the factors whose product is nearest to the mean of the products.

    For :math:`M = \sum_i p_i B_i A_i` with the truncated singular value decomposition
    :math:`U S V^T`, these are :math:`B = U \sqrt S` and :math:`A = \sqrt S V^T`: no
    others of the rank come nearer (Eckart and Young, 1936).  M itself is never formed:
    the factors, each times :math:`\sqrt{p_i}`, are stacked and their QR decompositions
    taken, which leaves a matrix of K times the rank (FlexLoRA, Bai et al., NeurIPS
    2024, https://arxiv.org/abs/2402.11505; FLoRIST,
    https://arxiv.org/abs/2506.09199).

    Of each singular pair the largest element in A is positive.  Where M has less than
    the rank, columns of B are 0, and the rows of A span what the mean of the
    :math:`A_i` has beside it: with zeros there, too, training could never go on.

    Args:
        updates: At least one, of the same shapes.
        weights: Theirs, relative to each other; those with 0 are left out.
        gauge: ``"balanced"`` for the factors above; ``"kept"`` the same, but factors
            that all updates agree on, to the bit, come back as they are;
            ``"orthonormal"`` for :math:`B = U S` and :math:`A = V^T` (FedSVD, Lee et
            al., NeurIPS 2025, https://arxiv.org/abs/2505.12805).
        free: In how many of the last ranks both factors are 0.

    Raises:
        numpy.linalg.LinAlgError: If the values are too large.
    """
    if gauge == "kept" and _agree(updates):
        return updates[0], _none_lost(updates[0])
    core = _Core.of(updates, weights, free)
    left, values, right = core.decomposed
    rows, lengths = core.spare(right)
    roots = np.sqrt(values)
    if gauge == "orthonormal":
        of_b, of_a, of_spare = values, np.ones_like(values), np.ones_like(lengths)
    else:
        of_b, of_a, of_spare = roots, roots, lengths
    b = np.zeros((len(left), core.rank))
    b[:, : len(values)] = left * of_b
    a = np.zeros((core.rank, right.shape[1]))
    a[: len(values)] = of_a[:, None] * right
    a[len(values) : len(values) + len(rows)] = of_spare[:, None] * rows
    factors = _signed(core.left @ b, a @ core.right.T)
    return factors, core.losses(core.least)


def factor_mean(
    updates: Sequence[Factors], weights: Sequence[float]
) -> tuple[Factors, Losses]:
    """Return the mean of each factor by itself, and what is lost by that.

    Args:
        updates: At least one, of the same shapes.
        weights: Theirs, relative to each other; those with 0 are left out.

    Raises:
        numpy.linalg.LinAlgError: If the values are too large.
    """
    core = _Core.of(updates, weights)
    return core.averaged, core.losses(core.averaging)


def padded_mean(
    updates: Sequence[Factors], weights: Sequence[float]
) -> tuple[Factors, Losses]:
    r"""Return the mean of each factor, weighed by the lengths of the products.

    The weight of an update is :math:`\|B_i A_i\|_F`, so that a site of a small rank
    counts for what it has learned (HetLoRA, Cho et al., EMNLP 2024,
    https://arxiv.org/abs/2401.06432).

    Args:
        updates: At least one, padded with zeros to the same shapes.
        weights: Theirs in the mean of the products that is wanted, and here where no
            update has learned anything; those with 0 are left out.

    Raises:
        numpy.linalg.LinAlgError: If the values are too large.
    """
    core = _Core.of(updates, weights)
    lengths = [math.sqrt(_energy(one)) for one in core.updates]
    mean = core.mean_of(lengths) if any(lengths) else core.averaged
    return mean, core.losses(core.lost(mean))


@final
@dataclass(frozen=True, slots=True)
class _Core:
    """The mean of products, in orthonormal bases of its columns and of its rows.

    Attributes:
        updates: Those that count.
        weights: Theirs; their sum is 1.
        left: Basis of the columns.
        right: Basis of the rows, as columns.
        mean: The mean of the products, in them.
        values: All its singular values.
        decomposed: Its singular value decomposition, up to `most`, without zeros.
        most: How many singular values come out.
    """

    updates: Sequence[Factors]
    weights: Sequence[float]
    left: _Matrix
    right: _Matrix
    mean: _Matrix
    values: _Matrix
    decomposed: tuple[_Matrix, _Matrix, _Matrix]
    most: int

    @classmethod
    def of(
        cls, updates: Sequence[Factors], weights: Sequence[float], free: int = 0
    ) -> "_Core":
        total = sum(weights)
        pairs = [
            (math.sqrt(weight / total), one)
            for weight, one in zip(weights, updates, strict=True)
            if weight
        ]
        left, of_b = np.linalg.qr(np.hstack([root * one.b for root, one in pairs]))
        right, of_a = np.linalg.qr(np.hstack([root * one.a.T for root, one in pairs]))
        mean = of_b @ of_a.T
        u, values, v = np.linalg.svd(mean, full_matrices=False)
        live = int(np.sum(values > _negligible(values, mean)))
        most = updates[0].rank - free
        live = min(live, most)
        return cls(
            updates=[one for _, one in pairs],
            weights=[root**2 for root, _ in pairs],
            left=left,
            right=right,
            mean=mean,
            values=values,
            decomposed=(u[:, :live], values[:live], v[:live]),
            most=most,
        )

    @property
    def rank(self) -> int:
        return self.updates[0].rank

    @property
    def least(self) -> float:
        return float(np.sum(self.values[self.most :] ** 2))

    @property
    def averaged(self) -> Factors:
        return self.mean_of(self.weights)

    @property
    def averaging(self) -> float:
        return self.lost(self.averaged)

    def mean_of(self, weights: Sequence[float]) -> Factors:
        """Return the mean of each factor by itself."""
        shares = np.asarray(weights) / sum(weights)
        pairs = list(zip(shares, self.updates, strict=True))
        b: _Matrix = np.sum([share * one.b for share, one in pairs], axis=0)
        a: _Matrix = np.sum([share * one.a for share, one in pairs], axis=0)
        return Factors(b, a)

    def lost(self, factors: Factors) -> float:
        """Return what factors lack of the mean that lie in the bases."""
        product = (self.left.T @ factors.b) @ (factors.a @ self.right)
        return float(np.sum((self.mean - product) ** 2))

    def losses(self, made: float) -> Losses:
        return Losses(
            energy=float(np.sum(self.values**2)),
            least=self.least,
            averaging=self.averaging,
            made=made,
        )

    def spare(self, alive: _Matrix) -> tuple[_Matrix, _Matrix]:
        """Return rows, and their lengths, that A can have beside those in use.

        What rounding leaves of rows in use is none: nothing could be learnt with it.
        """
        mean_a = self.averaged.a @ self.right
        beside = mean_a - mean_a @ alive.T @ alive
        _, lengths, rows = np.linalg.svd(beside, full_matrices=False)
        least = _negligible(np.linalg.norm(mean_a, axis=1), mean_a)
        num_rows = min(int(np.sum(lengths > least)), self.most - len(alive))
        return rows[:num_rows], lengths[:num_rows]


def _agree(updates: Sequence[Factors]) -> bool:
    first = updates[0]
    return all(
        np.array_equal(one.b, first.b) and np.array_equal(one.a, first.a)
        for one in updates[1:]
    )


def _none_lost(factors: Factors) -> Losses:
    return Losses(energy=_energy(factors), least=0.0, averaging=0.0, made=0.0)


def _energy(factors: Factors) -> float:
    """Return the squared Frobenius norm of a product."""
    return float(np.sum((factors.b.T @ factors.b) * (factors.a @ factors.a.T)))


def _negligible(values: _Matrix, matrix: _Matrix) -> float:
    """Return what a singular value is that stands for 0."""
    largest = float(values.max(initial=0.0))
    size = max(len(matrix), len(matrix.T))
    return largest * size * sys.float_info.epsilon


def _signed(b: _Matrix, a: _Matrix) -> Factors:
    """Return the factors, with the sign of each pair that is ours to choose."""
    largest = np.take_along_axis(a, np.abs(a).argmax(axis=1)[:, None], axis=1)
    signs = np.where(largest < 0, -1.0, 1.0)
    return Factors(b * signs.T, a * signs)
