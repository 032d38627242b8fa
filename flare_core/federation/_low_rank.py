"""The mean of low-rank products, of the best rank, without forming one of them."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import numpy as np
import numpy.typing as npt

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
        dropped: Of what the nearest factors of the rank lack of it.
        averaging: Of what the product of the averaged factors lacks of it.
    """

    energy: float
    dropped: float
    averaging: float


def product_mean(
    updates: Sequence[Factors], weights: Sequence[float]
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

    Factors that all updates agree on, to the bit, come back as they are.

    Args:
        updates: At least one, of the same shapes.
        weights: Theirs, relative to each other.

    Raises:
        numpy.linalg.LinAlgError: If the values are too large.
    """
    if _agree(updates):
        return updates[0], _none_lost(updates[0])
    core = _Core.of(updates, weights)
    left, values, right = np.linalg.svd(core.mean, full_matrices=False)
    num_live = min(int(np.sum(values > _negligible(values, core.mean))), core.rank)
    roots = np.sqrt(values[:num_live])
    b = np.zeros((len(left), core.rank))
    b[:, :num_live] = left[:, :num_live] * roots
    alive = right[:num_live]
    a = np.concatenate([roots[:, None] * alive, core.spare(alive)])
    factors = _signed(core.left @ b, a @ core.right.T)
    dropped = float(np.sum(values[num_live:] ** 2))
    return factors, core.losses(dropped)


@final
@dataclass(frozen=True, slots=True)
class _Core:
    """The mean of products, in orthonormal bases of its columns and of its rows.

    Attributes:
        left: Basis of the columns.
        right: Basis of the rows, as columns.
        mean: The mean of the products, in them.
        mean_b: The mean of B, in the basis of the columns.
        mean_a: The mean of A, in that of the rows.
    """

    left: _Matrix
    right: _Matrix
    mean: _Matrix
    mean_b: _Matrix
    mean_a: _Matrix

    @classmethod
    def of(cls, updates: Sequence[Factors], weights: Sequence[float]) -> "_Core":
        roots = np.sqrt(np.asarray(weights) / np.sum(weights))
        pairs = list(zip(roots, updates, strict=True))
        left, of_b = np.linalg.qr(np.hstack([root * one.b for root, one in pairs]))
        right, of_a = np.linalg.qr(np.hstack([root * one.a.T for root, one in pairs]))
        total = np.kron(roots[:, None], np.eye(updates[0].rank))
        return cls(left, right, of_b @ of_a.T, of_b @ total, (of_a @ total).T)

    @property
    def rank(self) -> int:
        return len(self.mean_a)

    def losses(self, dropped: float) -> Losses:
        beside = self.mean - self.mean_b @ self.mean_a
        return Losses(
            energy=float(np.sum(self.mean**2)),
            dropped=dropped,
            averaging=float(np.sum(beside**2)),
        )

    def spare(self, alive: _Matrix) -> _Matrix:
        """Return rows that fill A up to the rank, beside those that are alive."""
        num_rows = self.rank - len(alive)
        beside = self.mean_a - self.mean_a @ alive.T @ alive
        _, lengths, rows = np.linalg.svd(beside, full_matrices=False)
        filled = np.zeros((num_rows, self.mean_a.shape[1]))
        found = (lengths[:, None] * rows)[:num_rows]
        filled[: len(found)] = found
        return filled


def _agree(updates: Sequence[Factors]) -> bool:
    first = updates[0]
    return all(
        np.array_equal(one.b, first.b) and np.array_equal(one.a, first.a)
        for one in updates[1:]
    )


def _none_lost(factors: Factors) -> Losses:
    energy = float(np.sum((factors.b.T @ factors.b) * (factors.a @ factors.a.T)))
    return Losses(energy=energy, dropped=0.0, averaging=0.0)


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
