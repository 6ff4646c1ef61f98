"""Tensors in memory as inputs of a real merge, in small blocks, with every scratch buffer poisoned before each block."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from frbio_lite.merging import blocks
from frbio_lite.merging.blocks import Block, blocks_of, scratch
from frbio_lite.merging.merger import Merger
from frbio_lite.merging.methods import METHODS, Parameters, Rule
from frbio_lite.merging.weights import Floats


@dataclass(frozen=True)
class MemoryInputs:
    """`tensors`: by name the base's tensor and each adapted one."""

    tensors: Mapping[str, Sequence[Tensor]]
    layers: int = 1

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self.tensors))

    @property
    def adapted(self) -> Sequence[Tensor]:
        return next(iter(self.tensors.values()))[1:]

    @property
    def directories(self) -> tuple[Path, ...]:
        return tuple(Path(f"model-{i}") for i in range(len(self.adapted) + 1))

    def is_float(self, name: str) -> bool:
        return True

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name][0].shape)

    def dtype(self, name: str) -> str:
        return {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}[self.tensors[name][0].dtype]

    def blocks(self, name: str) -> list[Block]:
        return blocks_of(name, self.shape(name))

    def read(self, block: Block) -> list[Floats]:
        poison(block.count)
        found = []
        for i, tensor in enumerate(self.tensors[block.name]):
            found.append(scratch(i, block.count))
            np.copyto(found[-1], tensor.reshape(-1)[block.start : block.start + block.count].float().numpy())
        return found

    def require_finite(self, block: Block, tensors: Sequence[Floats]) -> None:
        assert all(np.isfinite(t).all() for t in tensors)


def poison(count: int) -> None:
    for number in range(-12, 0):
        scratch(number, count).fill(math.nan)


@contextmanager
def settings(block: int, threads: int) -> Iterator[None]:
    """Blocks of about `block` elements, on this many threads."""
    with mock.patch.object(blocks, "BLOCK", block), mock.patch.object(blocks, "cores", lambda: threads):
        yield


def run(merger: Merger, ratio: float, name: str = "weight") -> Tensor:
    """Survey and merge one tensor as a merge on disk does; fp32, in the tensor's shape."""
    merger.survey()
    inputs = merger.inputs
    merged = torch.full((math.prod(inputs.shape(name)),), math.nan)

    def do(block: Block) -> None:
        tensors = inputs.read(block)
        kept = [t.copy() for t in tensors]
        if block.name not in merger.grams:
            merger.products(block, tensors)
        merged[block.start : block.start + block.count] = torch.from_numpy(merger.merged(block, tensors, ratio))
        assert all(np.array_equal(t.view(np.int32), k.view(np.int32)) for t, k in zip(tensors, kept, strict=True))

    with blocks.workers() as mapped:
        list(mapped(do, inputs.blocks(name)))
    return merged.reshape(inputs.shape(name))


def merge(
    method: str,
    tensors: Sequence[Tensor],
    ratio: float,
    parameters: Parameters = Parameters(),  # noqa: B008
    *,
    block: int = 64,
    threads: int = 2,
) -> Tensor:
    """`tensors`, the base first, merged by a method of ours."""
    rule = METHODS[method].rule("weight", len(tensors) - 1, parameters)
    return merge_by(rule, tensors, ratio, block=block, threads=threads)


def merge_by(rule: Rule, tensors: Sequence[Tensor], ratio: float = 1.0, *, block: int = 64, threads: int = 2) -> Tensor:
    """`tensors`, the base first, merged by a rule."""
    with settings(block, threads):
        return run(Merger(MemoryInputs({"weight": tensors}), {"weight": rule}, {"weight": 1.0}), ratio)  # type: ignore[arg-type]
