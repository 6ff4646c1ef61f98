"""What a merging method is to the merge: a rule that serves one tensor name.

Most methods are a weighted sum whose weights follow from the tensors' inner products (`WeightedSum`); those that treat
single elements (TIES, DARE, DELLA, breadcrumbs) are rules of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from frbio_lite.errors import RequestError
from frbio_lite.merging.blocks import Block, scratch, zeros
from frbio_lite.merging.gram import Gram
from frbio_lite.merging.weights import Floats


@dataclass(frozen=True)
class Parameters:
    """What methods can be told beside the ratio; each reads what concerns it. Raises RequestError for impossible values."""

    density: float = 0.5  # share of the differences that is kept: ties, dare, della, breadcrumbs
    gamma: float = 0.01  # share of the largest differences that breadcrumbs drops
    epsilon: float = 0.15  # della: the probabilities of being kept span density ± epsilon
    seed: int = 17  # of the random methods

    def __post_init__(self) -> None:
        if not 0.0 < self.density <= 1.0:  # false for NaN as well
            raise RequestError(f"density {self.density} is not a share of differences to keep: choose 0 < density <= 1")
        if not 0.0 <= self.gamma < 1.0:
            raise RequestError(f"gamma {self.gamma} is not a share of differences to drop: choose 0 <= gamma < 1")
        if not 0.0 <= self.epsilon < 1.0:
            raise RequestError(f"epsilon {self.epsilon} is not a distance of probabilities: choose 0 <= epsilon < 1")
        if self.seed < 0:
            raise RequestError(f"the seed {self.seed} is negative: choose 0 or more")


class Rule(Protocol):
    """How the tensors of one name become one tensor, block by block.

    `surveys` passes over all blocks come first: `survey` looks at one (from any thread), `settle` gets what it returned
    for all blocks in their order. `combine` then gives a block of the merged tensor, at any ratio and from any thread.
    """

    needs_gram: bool  # whether `combine` reads the inner products
    surveys: int

    def survey(self, number: int, block: Block, tensors: Sequence[Floats]) -> Any: ...

    def settle(self, number: int, found: Sequence[Any]) -> None: ...

    def combine(self, block: Block, tensors: Sequence[Floats], gram: Gram | None, ratio: float) -> Floats:
        """The merged block, fp32 [count], in scratch memory of this thread.

        `tensors` are fp32 [count] each, the base first; they must not be changed.
        """
        ...


@dataclass
class WeightedSum:
    """Σ weightᵢ · tensorᵢ, with the weights that `coefficients` makes of the inner products and the ratio."""

    coefficients: Callable[[Gram | None, float], Sequence[float]]
    needs_gram: bool = False
    surveys: int = 0
    _known: dict[float, Sequence[float]] = field(default_factory=dict)

    def survey(self, number: int, block: Block, tensors: Sequence[Floats]) -> Any:
        raise AssertionError("a weighted sum needs no survey")

    def settle(self, number: int, found: Sequence[Any]) -> None:
        raise AssertionError("a weighted sum needs no survey")

    def combine(self, block: Block, tensors: Sequence[Floats], gram: Gram | None, ratio: float) -> Floats:
        if ratio not in self._known:
            self._known[ratio] = self.coefficients(gram, ratio)
        return weighted_sum(tensors, self._known[ratio])


def weighted_sum(tensors: Sequence[Floats], weights: Sequence[float]) -> Floats:
    """Σ weightᵢ · tensorᵢ of fp32 vectors, in scratch memory.

    Multiplied and added one after the other, each step rounded to fp32 (fused, the bits would depend on the processor); a
    tensor of weight 0 takes no part, and one of weight 1 alone is copied exactly.
    """
    count = tensors[0].size
    total: Floats | None = None
    for tensor, weight in zip(tensors, weights, strict=True):
        if weight == 0.0:
            continue
        if total is None:
            total = np.multiply(tensor, np.float32(weight), out=scratch(-1, count))
        else:
            np.add(total, np.multiply(tensor, np.float32(weight), out=scratch(-2, count)), out=total)
    return total if total is not None else zeros(-1, count)
