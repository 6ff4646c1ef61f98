"""Tensors in blocks: the unit that is read, merged, measured and written, by as many threads as there are cores.

Which elements form a block depends on the tensor's shape alone, and results are collected in the order of the blocks,
so neither the number of threads nor who asks (a merge on disk, an ablation in memory) changes a bit.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

BLOCK = 1 << 19  # elements: the fastest of those that were tried (benchmarks/merging)

Item = TypeVar("Item")
Result = TypeVar("Result")
_scratch = threading.local()


@dataclass(frozen=True)
class Block:
    """`count` elements of a tensor from element `start` on: whole rows of `width` elements (a vector is one row)."""

    name: str
    index: int
    start: int
    count: int
    width: int

    @property
    def rows(self) -> slice:
        return slice(self.start // self.width, (self.start + self.count) // self.width)


def blocks_of(name: str, shape: tuple[int, ...]) -> list[Block]:
    """The blocks of a tensor in order; none when it is empty."""
    total = math.prod(shape)
    if total == 0:
        return []
    width = shape[-1] if len(shape) > 1 else total
    step = max(1, BLOCK // width) * width
    return [Block(name, i, start, min(step, total - start), width) for i, start in enumerate(range(0, total, step))]


def scratch(number: int, count: int) -> npt.NDArray[np.float32]:
    """fp32 [count]: buffer `number` of this thread, uninitialised, overwritten by the next call with that number."""
    held: dict[int, npt.NDArray[np.float32]] = _scratch.__dict__.setdefault("held", {})
    if number not in held or held[number].size < count:
        held[number] = np.empty(max(count, BLOCK), dtype=np.float32)
    return held[number][:count]


def zeros(number: int, count: int) -> npt.NDArray[np.float32]:
    """`scratch`, filled with zeros."""
    found = scratch(number, count)
    found.fill(0.0)
    return found


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def workers() -> Iterator[Callable[[Callable[[Item], Result], Iterable[Item]], Iterator[Result]]]:
    """A `map` that runs on one thread per core and yields in order; numpy's operations on a block hold no lock.

    Each thread has a block of its own, so none waits for another within a block, however busy the machine is.
    """
    pool = ThreadPoolExecutor(cores())
    try:
        yield pool.map
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
