"""The weighted Karcher mean on the sphere: the point with the least weighted sum of squared arcs to all tensors.

arXiv 2603.04972. The mean stays in the span of the tensors, so it is found on their coefficients and inner products
alone, in fp64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from frbio_lite.merging.gram import OPPOSITE, Gram, Matrix

MAX_ITERATIONS = 100  # of a few products of tiny matrices: the default is to converge
TOLERANCE = 1e-9  # radians


def coefficients(
    gram: Gram, weights: Sequence[float], max_iter: int = MAX_ITERATIONS, tol: float = TOLERANCE
) -> list[float]:
    """Of all tensors: the mean of their directions, in the length Σ weightᵢ · ‖tensorᵢ‖; the weights sum to 1.

    Iterated until the mean moves by less than `tol` radians, `max_iter` times at most. Tensors of weight or norm zero
    take no part; where fewer than two are left, the weights are those of a plain sum.
    """
    norms = [gram.norm(i) for i in range(gram.count)]
    part = [i for i, (w, n) in enumerate(zip(weights, norms, strict=True)) if w != 0.0 and n > 0.0]
    if len(part) < 2:
        return list(weights)
    shares = np.array([weights[i] for i in part]) / sum(weights[i] for i in part)
    units = np.zeros((len(part), gram.count))  # coordinates in x₀ and the differences from it, as in the matrix
    for row, i in enumerate(part):
        units[row, 0] = units[row, i] = 1.0 / norms[i]
    mean = _mean(units, shares, gram.matrix, max_iter, tol)
    mean *= sum(w * n for w, n in zip(weights, norms, strict=True))
    return [float(mean[0] - mean[1:].sum()), *mean[1:].tolist()]


def _mean(units: Matrix, shares: Matrix, products: Matrix, max_iter: int, tol: float) -> Matrix:
    """Gradient descent of step 1 from the normalised plain mean. Units [k, n] and the result [n] are coordinates."""

    def size(v: Matrix) -> float:
        return math.sqrt(max(0.0, float(v @ products @ v)))

    mean = shares @ units
    mean = units[0].copy() if size(mean) < max(tol, OPPOSITE) else mean / size(mean)
    for _ in range(max_iter):
        tangent = np.zeros_like(mean)
        for share, unit in zip(shares, units, strict=True):
            cosine = float(unit @ products @ mean)
            across = unit - cosine * mean
            sine = size(across)
            if sine < (tol if cosine > 0.0 else max(tol, OPPOSITE)):  # the mean itself, or opposite: no direction to go
                continue
            tangent += share * math.atan2(sine, cosine) / sine * across
        step = size(tangent)
        if step < tol:
            break
        mean = math.cos(step) * mean + math.sin(step) / step * tangent
        mean /= size(mean)
    return mean
