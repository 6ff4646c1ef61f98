"""The merge of opened inputs by rules: what is surveyed once, and any block of the merged tensors at any ratio."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from frbio_lite.errors import RequestError
from frbio_lite.merging.adapters import LoraAdapter
from frbio_lite.merging.blocks import Block, scratch, workers
from frbio_lite.merging.gram import Gram, Matrix, dot, inner_products
from frbio_lite.merging.inputs import Inputs
from frbio_lite.merging.methods import METHODS, Parameters, Rule, check_method
from frbio_lite.merging.profile import Profile
from frbio_lite.merging.weights import Bytes, Floats, narrow, upper_halves, widen
from frbio_lite.progress import Progress

Map = Callable[[Callable[[Any], Any], Any], Iterator[Any]]


@dataclass(frozen=True)
class Rounding:
    """To the dtype that is written (None: as the base stores each tensor), to the nearest or stochastically (to bfloat16).

    Stochastic rounding goes up or down with the probability that keeps the mean, so that small changes are not lost
    (Croci et al. 2022, "Stochastic rounding: implementation, error analysis and applications"); the seed fixes it.
    """

    dtype: str | None = None  # in the words of safetensors
    stochastic: bool = False
    seed: int = 17


NEAREST = Rounding()  # each tensor as the base stores it


@dataclass
class Merger:
    """`rules` and `factors`, what the ratio is multiplied by, by name of each tensor of floats."""

    inputs: Inputs
    rules: Mapping[str, Rule]
    factors: Mapping[str, float]
    grams: dict[str, Gram] = field(default_factory=dict)

    def survey(self, every_gram: bool = False) -> None:
        """The passes over the inputs that come before the first ratio: what the rules ask for, once for all ratios.

        With `every_gram` the inner products of all tensors are among it, and with them NaN and Inf are found. Raises
        RequestError on NaN or Inf where it meets them.
        """
        wanted = {n for n, rule in self.rules.items() if every_gram or rule.needs_gram or rule.surveys}
        wanted -= self.grams.keys()
        passes = max((max(1, self.rules[n].surveys) for n in wanted), default=0)
        with workers() as run:
            for number in range(passes):
                names = [n for n in self.inputs.names if n in wanted and number < max(1, self.rules[n].surveys)]
                self._pass(run, number, names)

    def _pass(self, run: Map, number: int, names: Sequence[str]) -> None:
        blocks = [b for name in names for b in self.inputs.blocks(name)]

        def look(block: Block) -> tuple[Matrix | None, Any]:
            tensors = self.inputs.read(block)
            matrix = self.products(block, tensors) if number == 0 else None
            rule = self.rules[block.name]
            return matrix, rule.survey(number, block, tensors) if number < rule.surveys else None

        with Progress("survey", sum(b.count for b in blocks), "weights") as bar:
            seen = zip(blocks, run(look, blocks), strict=True)
            for name, results in itertools.groupby(seen, key=lambda pair: pair[0].name):
                found = []
                for block, result in results:
                    found.append(result)
                    bar.advance(block.count)
                self._settle(name, number, found)

    def _settle(self, name: str, number: int, found: Sequence[tuple[Matrix | None, Any]]) -> None:
        """What a pass found in all blocks of a tensor, in their order."""
        if number == 0:
            self.grams[name] = Gram(sum((matrix for matrix, _ in found if matrix is not None), np.zeros(())))
        if number < self.rules[name].surveys:
            self.rules[name].settle(number, [seen for _, seen in found])

    def products(self, block: Block, tensors: Sequence[Floats]) -> Matrix:
        """Inner products of a block. Raises RequestError when a tensor holds NaN or Inf."""
        matrix = inner_products(tensors)
        if not np.isfinite(matrix).all():  # also squares beyond fp32, which are no fault of the weights
            self.inputs.require_finite(block, tensors)
        return matrix

    def merged(self, block: Block, tensors: Sequence[Floats], ratio: float) -> Floats:
        """The merged block at `ratio`, fp32 [count]: the base itself at 0. In scratch memory, or one of `tensors`."""
        share = self.factors[block.name] * ratio
        if share == 0.0:
            return tensors[0]
        return self.rules[block.name].combine(block, tensors, self.grams.get(block.name), share)

    def rounded(self, block: Block, merged: Floats, rounding: Rounding) -> Bytes:
        """A merged block as it is written, in scratch memory of this thread.

        Raises RequestError when float16 cannot hold a value.
        """
        dtype = self.written(block.name, rounding)
        out = scratch(-3, block.count).view(np.uint32)
        if rounding.stochastic and dtype == "BF16":
            return _stochastic(merged, _generator(rounding.seed, block, "rounding"), out)
        raw = narrow(merged, dtype, out)
        if dtype == "F16" and not np.isfinite(raw.view(np.float16)).all():
            raise RequestError(
                f"{block.name}: the value {np.abs(merged).max():.3g} is beyond float16, which ends at 65504: "
                "merge with dtype bfloat16 or float32"
            )
        return raw

    def written(self, name: str, rounding: Rounding) -> str:
        """The dtype in which a tensor of floats is written."""
        return rounding.dtype or self.inputs.dtype(name)

    def moved(self, block: Block, base: Floats, written: Bytes, rounding: Rounding) -> float:
        """‖written − base‖² of one block."""
        values = widen(written, self.written(block.name, rounding), scratch(-1, block.count))
        np.subtract(values, base, out=values)
        return dot(values, values)


def by_method(inputs: Inputs, method: str, parameters: Parameters, profile: Profile) -> Merger:
    """The merge of all adapted models into the base by one method. Raises RequestError when it does not fit them."""
    check_method(method, len(inputs.adapted))
    if method == "lora_scale":
        _check_scalable(inputs)
    names = [n for n in inputs.names if inputs.is_float(n)]
    return Merger(
        inputs,
        {n: METHODS[method].rule(n, len(inputs.adapted), parameters) for n in names},
        {n: profile.at(n, inputs.layers) for n in names},
    )


def _check_scalable(inputs: Inputs) -> None:
    for source in inputs.adapted:
        reason = source.unscalable if isinstance(source, LoraAdapter) else "is a whole model"
        if reason:
            raise RequestError(
                f"lora_scale scales a LoRA adapter, but {source.directory} {reason}: use the method linear, "
                "which mixes it with the base at any ratio"
            )


def check_ratio(ratio: float) -> None:
    if not 0.0 <= ratio <= 1.0:  # false for NaN as well
        raise RequestError(f"the ratio {ratio} is not between 0 (the base) and 1 (the adapted model)")


def _generator(seed: int, block: Block, purpose: str) -> np.random.Generator:
    """Random numbers of one block: the same whichever thread asks, and whatever was asked before."""
    return np.random.default_rng([seed, zlib.crc32(f"{purpose}:{block.name}".encode()), block.index])


def _stochastic(values: Floats, generator: np.random.Generator, out: npt.NDArray[np.uint32]) -> Bytes:
    """fp32 [count] to bfloat16: 16 random bits are added below the last bit that is kept, and the rest is cut off."""
    np.add(values.view(np.uint32), generator.integers(0, 1 << 16, values.size, dtype=np.uint32), out=out)
    return upper_halves(out)
