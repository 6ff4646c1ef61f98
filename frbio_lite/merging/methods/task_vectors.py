"""Base plus task vectors (adapted − base) of which single elements are dropped, with or without an elected sign.

TIES, DARE, DELLA and breadcrumbs are this rule with another choice of elements each (`Sparsity`). The order of the fp32
operations is that of mergekit's generalised task arithmetic, so that the results agree with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from frbio_lite.merging.blocks import Block, scratch, zeros
from frbio_lite.merging.gram import Gram
from frbio_lite.merging.methods.task_arithmetic import TINY
from frbio_lite.merging.weights import Floats

VANISHING = 1e-7  # sums of magnitudes below this are not rescaled (mergekit's bound)
# Scratch buffers: a sparsity has MAGNITUDE, MASK and SPARE for its own use in `survey` and `keep`.
MIX, ELECTED, WORK, AGREEING, MAGNITUDE, MASK, SPARE, PARTS = -1, -2, -3, -4, -5, -6, -7, -8


class Sparsity(Protocol):
    """Which elements of one model's difference from the base take part, for one tensor name.

    Surveyed as a `Rule` is, but with the difference, fp32 [count], instead of the tensors.
    """

    surveys: int

    def survey(self, number: int, block: Block, difference: Floats) -> Any: ...

    def settle(self, number: int, found: Sequence[Any]) -> None: ...

    def keep(self, block: Block, difference: Floats) -> Floats | None:
        """1 where an element takes part and 0 elsewhere, fp32 [count] in scratch memory; None when all do."""
        ...


@dataclass
class TaskVectors:
    """base + ratio · scale · mix, where mix is Σ weightᵢ · (adaptedᵢ − base) over the elements that take part.

    weights, sparsity   one of each per adapted model
    consensus           per element, only terms with the sign of their sum take part (a sum of 0 counts as positive)
    normalize           mix is divided by the weights that take part: per element with consensus, else by their sum
    rescale             each difference regains the sum of magnitudes, over the whole tensor, that it had before dropping
    """

    weights: Sequence[float]
    sparsity: Sequence[Sparsity]
    consensus: bool = field(kw_only=True)
    normalize: bool = field(kw_only=True)
    rescale: bool = field(kw_only=True)
    scale: float = field(default=1.0, kw_only=True)
    needs_gram: bool = field(default=False, init=False)
    surveys: int = field(init=False)

    def __post_init__(self) -> None:
        self._choosing = max(s.surveys for s in self.sparsity)  # passes after which each mask is known
        self.surveys = self._choosing + self.rescale
        self._factors = [1.0] * len(self.weights)

    def survey(self, number: int, block: Block, tensors: Sequence[Floats]) -> list[Any]:
        found: list[Any] = []
        for sparsity, adapted in zip(self.sparsity, tensors[1:], strict=True):
            difference = np.subtract(adapted, tensors[0], out=scratch(WORK, block.count))
            if number == self._choosing:
                found.append(_magnitudes(difference, sparsity.keep(block, difference)))
            else:
                found.append(sparsity.survey(number, block, difference) if number < sparsity.surveys else None)
        return found

    def settle(self, number: int, found: Sequence[Any]) -> None:
        for i, sparsity in enumerate(self.sparsity):
            of_model = [f[i] for f in found]
            if number == self._choosing:
                before, after = (math.fsum(sums) for sums in zip(*of_model, strict=True)) if of_model else (0.0, 0.0)
                self._factors[i] = before / after if min(before, after) >= VANISHING else 1.0
            elif number < sparsity.surveys:
                sparsity.settle(number, of_model)

    def combine(self, block: Block, tensors: Sequence[Floats], gram: Gram | None, ratio: float) -> Floats:
        elect = self.consensus and len(self.weights) > 1  # a single term has its own sign
        mix = self._elected(block, tensors) if elect else self._sum(block, tensors)
        if self.normalize and not elect:
            _multiply(mix, self._total(), divide=True)
        return np.add(_multiply(mix, ratio * self.scale), tensors[0], out=mix)

    def _term(self, i: int, block: Block, tensors: Sequence[Floats], number: int) -> Floats:
        """weightᵢ · (adaptedᵢ − base) with zeros where elements are dropped, in scratch buffer `number`."""
        term = np.subtract(tensors[i + 1], tensors[0], out=scratch(number, block.count))
        keep = self.sparsity[i].keep(block, term)
        if keep is not None:
            np.multiply(term, keep, out=term)
        return _multiply(_multiply(term, self._factors[i]), self.weights[i])

    def _sum(self, block: Block, tensors: Sequence[Floats]) -> Floats:
        mix = self._term(0, block, tensors, MIX)
        for i in range(1, len(self.weights)):
            np.add(mix, self._term(i, block, tensors, WORK), out=mix)
        return mix

    def _total(self) -> float:
        """The divisor of a sum in which all weights take part, fp32."""
        total = float(np.array(self.weights, dtype=np.float32).sum())
        return 1.0 if abs(total) < TINY else total

    def _elected(self, block: Block, tensors: Sequence[Floats]) -> Floats:
        """The terms of the elected sign, added, and divided by their weights where that is asked for."""
        terms = [self._term(i, block, tensors, PARTS - i) for i in range(len(self.weights))]
        mix = scratch(MIX, block.count)
        np.copyto(mix, terms[0])
        for term in terms[1:]:
            np.add(mix, term, out=mix)
        elected = np.greater_equal(mix, 0.0, out=scratch(ELECTED, block.count))
        np.subtract(np.multiply(elected, 2.0, out=elected), 1.0, out=elected)  # ±1
        mix.fill(0.0)
        divisor = zeros(AGREEING, block.count)
        for term, weight in zip(terms, self.weights, strict=True):
            np.multiply(term, elected, out=term)
            agreeing = np.maximum(term, 0.0, out=term)  # magnitudes where the signs agree: exact, as ±1 is
            np.add(mix, agreeing, out=mix)
            if self.normalize:
                np.sign(agreeing, out=agreeing)
                np.add(divisor, np.multiply(agreeing, np.float32(weight), out=agreeing), out=divisor)
        np.multiply(mix, elected, out=mix)
        if self.normalize:
            np.add(divisor, np.equal(divisor, 0.0, out=scratch(WORK, block.count)), out=divisor)
            np.divide(mix, divisor, out=mix)
        return mix


def _multiply(values: Floats, factor: float, divide: bool = False) -> Floats:
    """In place; 1 changes no bit and is left out."""
    if factor == 1.0:
        return values
    return (np.divide if divide else np.multiply)(values, np.float32(factor), out=values)


def _magnitudes(difference: Floats, keep: Floats | None) -> tuple[float, float]:
    """Σ|d| over a block, of all elements and of those that are kept."""
    magnitude = np.abs(difference, out=scratch(MAGNITUDE, difference.size))
    before = float(magnitude.sum())
    return before, before if keep is None else float(np.multiply(magnitude, keep, out=magnitude).sum())
