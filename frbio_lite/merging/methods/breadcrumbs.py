"""Neither the largest nor the smallest differences.

Davari & Belilovsky 2023, "Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks", arXiv 2312.06795.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from frbio_lite.merging.blocks import Block, scratch, zeros
from frbio_lite.merging.methods.task_vectors import MASK, SPARE
from frbio_lite.merging.methods.ties import ByMagnitude, Cut, Level
from frbio_lite.merging.weights import Floats


class Middle(ByMagnitude):
    """int(density · n) elements: those left without the int(gamma · n) largest, and then without the smallest.

    All at a density of 1 or more, none at 0 or less. Fewer large ones are dropped where the density could not be reached
    otherwise. Equal magnitudes count as ascending in the order of the tensor; mergekit's sort puts them in any order.
    """

    def __init__(self, density: float, gamma: float, precision: str = "F32") -> None:
        super().__init__(precision)
        self.density, self.gamma = density, gamma
        self.surveys = 2 if 0.0 < density < 1.0 else 0
        self._cuts = [Cut(0.0, 0, 0), Cut(0.0, 0, 0)]

    def _ends(self, total: int) -> tuple[int, int]:
        """The ranks from which and before which elements are kept."""
        kept = int(self.density * total)
        first = max(0, total - kept - int(self.gamma * total))
        return first, first + kept

    def ranks(self, total: int) -> list[int]:
        return [min(rank, total - 1) for rank in self._ends(total)]

    def decide(self, total: int, levels: Sequence[Level]) -> None:
        everything = Cut(math.inf, 0, 0)
        self._cuts = [
            level.first(rank - level.smaller) if rank < total else everything
            for rank, level in zip(self._ends(total), levels, strict=False)  # an empty tensor has no levels
        ]

    def keep(self, block: Block, difference: Floats) -> Floats | None:
        if self.density >= 1.0:
            return None
        if self.density <= 0.0:
            return zeros(MASK, block.count)
        mask = scratch(MASK, block.count)
        magnitude = self.magnitude(difference)
        lower, upper = self._cuts
        upper.below(block, magnitude, mask)
        return np.subtract(mask, lower.below(block, magnitude, scratch(SPARE, block.count)), out=mask)
