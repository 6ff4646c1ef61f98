"""Inner products of the tensors of one name, taken as single vectors: all that slerp and its kin need to know of them.

The differences from the first tensor are multiplied, not the tensors themselves: after an adaptation of 1 % the angle
shows in the eighth digit of a cosine, but in the first of a difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from frbio_lite.merging.blocks import scratch
from frbio_lite.merging.weights import Floats

SLICE = 1 << 13  # elements of one fp32 product; the sums of slices are added in fp64 (relative error below 1e-6).
# Short enough that BLAS uses one thread: with more, the sum would depend on their number.
OPPOSITE = 5e-3  # radians: with products of that error, closer vectors cannot be told from opposite ones
Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Gram:
    """`matrix` [n, n], fp64: inner products of x₀, x₁ − x₀, …, xₙ₋₁ − x₀."""

    matrix: Matrix

    @property
    def count(self) -> int:
        return int(self.matrix.shape[0])

    def _vector(self, i: int) -> Matrix:
        """The coordinates of xᵢ among x₀ and the differences."""
        e = np.zeros(self.count)
        e[0] = e[i] = 1.0
        return e

    def inner(self, i: int, j: int) -> float:
        """xᵢ · xⱼ."""
        return float(self._vector(i) @ self.matrix @ self._vector(j))

    def norm(self, i: int) -> float:
        return math.sqrt(max(0.0, self.inner(i, i)))

    def difference(self, i: int) -> float:
        """‖xᵢ − x₀‖."""
        return math.sqrt(max(0.0, float(self.matrix[i, i]))) if i else 0.0

    def mean_difference(self) -> float:
        """‖mean of x₁, x₂, … − x₀‖; 0 when there is x₀ alone."""
        others = self.matrix[1:, 1:]
        return math.sqrt(max(0.0, float(others.mean()))) if others.size else 0.0

    def angle(self, i: int) -> float:
        """Between x₀ and xᵢ, in radians; NaN when either is zero."""
        if i == 0 or self.norm(0) == 0.0 or self.norm(i) == 0.0:
            return 0.0 if i == 0 and self.norm(0) > 0.0 else math.nan
        return math.atan2(self._area(0, i), self.matrix[0, 0] + self.matrix[0, i])

    def angle_of_differences(self, i: int, j: int) -> float:
        """Between xᵢ − x₀ and xⱼ − x₀, in radians; NaN when either is zero."""
        if self.difference(i) == 0.0 or self.difference(j) == 0.0:
            return math.nan
        return math.atan2(self._area(i, j), self.matrix[i, j])

    def _area(self, i: int, j: int) -> float:
        """Of the parallelogram of two of the matrix's vectors; of x₀ and xᵢ − x₀ it is that of x₀ and xᵢ."""
        m = self.matrix
        return math.sqrt(max(0.0, m[i, i] * m[j, j] - m[i, j] * m[i, j]))


def inner_products(tensors: Sequence[Floats]) -> Matrix:
    """The matrix of `Gram` for one block of fp32 tensors [count] each; blocks add up."""
    vectors = [tensors[0]]
    for i, tensor in enumerate(tensors[1:], start=1):
        vectors.append(np.subtract(tensor, tensors[0], out=scratch(-i, tensor.size)))
    found = np.empty((len(vectors), len(vectors)))
    for i, x in enumerate(vectors):
        for j, y in enumerate(vectors[: i + 1]):
            found[i, j] = found[j, i] = dot(x, y)
    return found


def dot(x: Floats, y: Floats) -> float:
    """x · y of two fp32 vectors, also where it is beyond fp32; NaN or Inf only where the vectors hold them."""
    whole = x.size - x.size % SLICE
    with np.errstate(over="ignore", invalid="ignore"):
        sums = np.vecdot(x[:whole].reshape(-1, SLICE), y[:whole].reshape(-1, SLICE))
        found = float(sums.sum(dtype=np.float64)) + float(np.vecdot(x[whole:], y[whole:]))
    if not math.isfinite(found):
        return float(np.einsum("i,i->", x, y, dtype=np.float64))
    return found
