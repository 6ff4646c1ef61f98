"""Differences dropped at random, small ones more often: DELLA.

Deep et al. 2024, "DELLA-Merging: Reducing Interference in Model Merging through Magnitude-Based Sampling",
arXiv 2406.11617.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from frbio_lite.errors import RequestError
from frbio_lite.merging.blocks import Block, scratch, zeros
from frbio_lite.merging.methods import dare
from frbio_lite.merging.methods.task_vectors import MAGNITUDE, SPARE
from frbio_lite.merging.weights import Floats

LOWER = (1 << 32) - 1


class ByRank:
    """Each element with a probability from density − epsilon to density + epsilon, by its magnitude's rank in its row.

    Rows are those of the last dimension, and a vector is one; equal magnitudes rank in their order. All at a density of
    1 or more, none at 0 or less. A row of one element, for which mergekit fails, is kept with probability density.
    Raises RequestError when a probability would not lie between 0 and 1.
    """

    surveys = 0

    def __init__(self, density: float, epsilon: float, seed: int, name: str, model: int) -> None:
        if 0.0 < density < 1.0 and not (density - epsilon > 0.0 and density + epsilon < 1.0):
            raise RequestError(
                f"della with density {density:g} and epsilon {epsilon:g} would keep elements with probabilities from "
                f"{density - epsilon:g} to {density + epsilon:g}: choose a smaller epsilon, so that they lie between 0 and 1"
            )
        self.density, self.epsilon, self.seed, self.name, self.model = density, epsilon, seed, name, model

    def survey(self, number: int, block: Block, difference: Floats) -> Any:
        raise AssertionError("ranks within rows need no survey")

    def settle(self, number: int, found: Sequence[Any]) -> None:
        raise AssertionError("ranks within rows need no survey")

    def keep(self, block: Block, difference: Floats) -> Floats | None:
        if self.density >= 1.0:
            return None
        if self.density <= 0.0:
            return zeros(SPARE, block.count)
        probability = self._probabilities(difference, block.width)
        return np.less(dare.uniform(self.seed, self.name, self.model, block), probability, out=probability)

    def _probabilities(self, difference: Floats, width: int) -> Floats:
        out = scratch(SPARE, difference.size)
        if width == 1:
            out.fill(self.density)
            return out
        by_rank = np.arange(width, dtype=np.float32) / np.float32(width - 1)
        by_rank = by_rank * np.float32(2.0) * np.float32(self.epsilon) + np.float32(self.density - self.epsilon)
        order = _order(difference, width)
        np.put_along_axis(out.reshape(-1, width), order, np.broadcast_to(by_rank, order.shape), axis=1)
        return out


def _order(difference: Floats, width: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """For each row the places of its elements by ascending magnitude, equal ones in their order, int64 [rows, width].

    Bit patterns of magnitudes are in their order; with the place below them one sort of whole numbers does it all.
    """
    magnitude = np.abs(difference, out=scratch(MAGNITUDE, difference.size))
    keys = magnitude.view(np.int32).reshape(-1, width).astype(np.int64)
    np.left_shift(keys, 32, out=keys)
    np.bitwise_or(keys, np.arange(width, dtype=np.int64), out=keys)
    keys.sort(axis=1)
    return np.bitwise_and(keys, LOWER, out=keys)
