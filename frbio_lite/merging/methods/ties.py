"""Elements chosen by magnitude, exactly and without holding the tensor; the largest for TIES.

Yadav et al. 2023, "TIES-Merging: Resolving Interference When Merging Models", arXiv 2306.01708.

Magnitudes of fp32 are in the order of their bit patterns, so the element at a given rank is found in two passes that
count: the upper 16 bits, then the lower 16 bits of those that share the decisive upper ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from frbio_lite.merging.blocks import Block, scratch, zeros
from frbio_lite.merging.methods.task_vectors import MAGNITUDE, MASK, SPARE
from frbio_lite.merging.weights import Floats, narrow, widen

HALF = 1 << 16
Ints = npt.NDArray[np.int64]
Counted = tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint32]]  # values that occur, ascending, and how often


@dataclass(frozen=True)
class Cut:
    """A place among all elements in ascending order, equal ones in the order of the tensor.

    Below it: magnitudes under `value`, and of the equal ones those in the blocks before number `block` and the first
    `count` of that block.
    """

    value: float
    block: int
    count: int

    def below(self, block: Block, magnitude: Floats, out: Floats) -> Floats:
        """1 where a magnitude, fp32 [count], lies below and 0 elsewhere, fp32, into `out`."""
        compare = np.less_equal if block.index < self.block else np.less
        compare(magnitude, np.float32(self.value), out=out)
        return self._first(block, magnitude, out)

    def above(self, block: Block, magnitude: Floats, out: Floats) -> Floats:
        """1 where a magnitude exceeds `value`, and where it is one of the equal ones that `below` includes."""
        compare = np.greater_equal if block.index < self.block else np.greater
        compare(magnitude, np.float32(self.value), out=out)
        return self._first(block, magnitude, out)

    def _first(self, block: Block, magnitude: Floats, out: Floats) -> Floats:
        if block.index == self.block and self.count:
            equal = np.flatnonzero(magnitude == np.float32(self.value))
            out[equal[: self.count]] = 1.0
        return out


@dataclass(frozen=True)
class Level:
    """The magnitude at one rank: how many elements are smaller, and how many in each block are equal to it."""

    value: float
    smaller: int
    equal: Ints

    def first(self, count: int) -> Cut:
        """The cut behind the first `count` of the equal elements."""
        ends = np.cumsum(self.equal)
        block = int(np.searchsorted(ends, count, side="right"))
        return Cut(self.value, block, count - int(ends[block - 1]) if block else count)


class ByMagnitude(ABC):
    """A sparsity that follows from the magnitudes at some ranks; `precision` is what they are rounded to before."""

    surveys = 2

    def __init__(self, precision: str) -> None:
        self.precision = precision
        self._total = 0
        self._ranks: list[int] = []
        self._upper: list[int] = []  # for each rank the upper half of the bits of its magnitude
        self._smaller: list[int] = []  # and how many elements have a lesser upper half

    @abstractmethod
    def ranks(self, total: int) -> list[int]:
        """The ranks to find among `total` elements: 0, the smallest magnitude, to total − 1."""

    @abstractmethod
    def decide(self, total: int, levels: Sequence[Level]) -> None:
        """Take the levels at the ranks asked for, none when the tensor is empty."""

    @abstractmethod
    def keep(self, block: Block, difference: Floats) -> Floats | None: ...

    def survey(self, number: int, block: Block, difference: Floats) -> Any:
        """0: how often each upper half occurs. 1: for each decisive one, how often each lower half occurs with it."""
        bits = self.magnitude(difference).view(np.int32)
        upper = np.right_shift(bits, 16, out=scratch(SPARE, block.count).view(np.int32))
        if number == 0:
            return _counted(upper)
        return {u: _counted(bits[np.flatnonzero(upper == u)] & (HALF - 1)) for u in set(self._upper)}

    def settle(self, number: int, found: Sequence[Any]) -> None:
        if number == 0:
            counts = _sum(found)
            self._total = int(counts.sum())
            self._ranks = self.ranks(self._total) if self._total else []
            ends = np.cumsum(counts)
            self._upper = [int(np.searchsorted(ends, rank, side="right")) for rank in self._ranks]
            self._smaller = [int(ends[u] - counts[u]) for u in self._upper]
        else:
            places = zip(self._ranks, self._upper, self._smaller, strict=True)
            self.decide(self._total, [_level(r, u, smaller, [f[u] for f in found]) for r, u, smaller in places])

    def magnitude(self, difference: Floats) -> Floats:
        """|difference| rounded to the precision, fp32 [count] in scratch memory."""
        out = np.abs(difference, out=scratch(MAGNITUDE, difference.size))
        if self.precision != "F32":
            widen(narrow(out, self.precision, scratch(SPARE, out.size).view(np.uint32)), self.precision, out)
        return out


class Largest(ByMagnitude):
    """The max(1, int(density · n)) elements of largest magnitude; all at a density of 1 or more, none at 0 or less.

    Of equal magnitudes at the threshold the first in the tensor are kept; mergekit's sort is unstable and keeps any.
    """

    def __init__(self, density: float, precision: str = "F32") -> None:
        super().__init__(precision)
        self.density = density
        self.surveys = 2 if 0.0 < density < 1.0 else 0
        self._cut = Cut(0.0, 0, 0)

    def ranks(self, total: int) -> list[int]:
        return [total - self._kept(total)]

    def _kept(self, total: int) -> int:
        return max(1, int(self.density * total))

    def decide(self, total: int, levels: Sequence[Level]) -> None:
        for level in levels:
            larger = total - level.smaller - int(level.equal.sum())
            self._cut = level.first(self._kept(total) - larger)

    def keep(self, block: Block, difference: Floats) -> Floats | None:
        if self.density >= 1.0:
            return None
        if self.density <= 0.0:
            return zeros(MASK, block.count)
        return self._cut.above(block, self.magnitude(difference), scratch(MASK, block.count))


def _counted(values: npt.NDArray[np.int32]) -> Counted:
    counts = np.bincount(values)
    held = np.flatnonzero(counts)
    return held.astype(np.uint16), counts[held].astype(np.uint32)


def _sum(found: Sequence[Counted]) -> Ints:
    """How often each of the 65536 values occurs over all blocks."""
    total = np.zeros(HALF, dtype=np.int64)
    for values, counts in found:
        total[values] += counts
    return total


def _level(rank: int, upper: int, smaller: int, found: Sequence[Counted]) -> Level:
    """The level at `rank`, whose magnitude has this upper half, `smaller` elements before it, and these lower halves."""
    counts = _sum(found)
    ends = np.cumsum(counts)
    lower = int(np.searchsorted(ends, rank - smaller, side="right"))
    equal = np.array([c[values == lower].sum(dtype=np.int64) for values, c in found], dtype=np.int64)
    value = np.array([upper << 16 | lower], dtype=np.uint32).view(np.float32)
    return Level(float(value[0]), smaller + int(ends[lower] - counts[lower]), equal)
