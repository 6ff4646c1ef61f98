"""Differences dropped at random: DARE.

Yu et al. 2023, "Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch",
arXiv 2311.03099.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from frbio_lite.merging.blocks import Block, scratch, zeros
from frbio_lite.merging.methods.task_vectors import MASK
from frbio_lite.merging.weights import Floats


def uniform(seed: int, name: str, model: int, block: Block) -> Floats:
    """Random numbers in [0, 1), fp32 [count] in scratch memory: the same whichever thread asks, and in any order."""
    generator = np.random.default_rng([seed, zlib.crc32(f"sparsity:{name}".encode()), model, block.index])
    out = scratch(MASK, block.count)
    generator.random(dtype=np.float32, out=out)
    return out


class Random:
    """Each element with probability `density`; all at 1 or more, none at 0 or less."""

    surveys = 0

    def __init__(self, density: float, seed: int, name: str, model: int) -> None:
        self.density, self.seed, self.name, self.model = density, seed, name, model

    def survey(self, number: int, block: Block, difference: Floats) -> Any:
        raise AssertionError("random elements need no survey")

    def settle(self, number: int, found: Sequence[Any]) -> None:
        raise AssertionError("random elements need no survey")

    def keep(self, block: Block, difference: Floats) -> Floats | None:
        if self.density >= 1.0:
            return None
        if self.density <= 0.0:
            return zeros(MASK, block.count)
        drawn = uniform(self.seed, self.name, self.model, block)
        return np.less(drawn, np.float32(self.density), out=drawn)
