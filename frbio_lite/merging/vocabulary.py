"""Vocabularies of base and adapted model: the same, or the adapted one's rows brought to the base's order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from frbio_lite.errors import RequestError
from frbio_lite.merging.blocks import Block
from frbio_lite.merging.weights import Floats, Weights

FILE = "tokenizer.json"


@dataclass(frozen=True)
class RowMap:
    """For each of the base's token numbers the adapted model's, int64 [base tokens]; −1 where it has no such token.

    Rows beyond the tokens, which pad a matrix to a round size, map to themselves.
    """

    rows: npt.NDArray[np.int64]

    def fill(self, weights: Weights, block: Block, base: Floats, out: Floats) -> None:
        """The rows of a block, in the base's order, fp32, into `out`; a token that only the base has keeps its row."""
        np.copyto(out, base)
        width, held = block.width, weights.shape(block.name)[0]
        target = out.reshape(-1, width)
        first, last = block.rows.start, block.rows.stop
        padding = np.arange(max(first, len(self.rows)), max(last, len(self.rows)))
        wanted = np.concatenate([self.rows[first:last], padding])
        wanted[wanted >= held] = -1
        for start, length in _runs(wanted.tolist()):
            weights.fill(block.name, int(wanted[start]) * width, target[start : start + length].reshape(-1))


def _runs(wanted: list[int]) -> list[tuple[int, int]]:
    """(place, length) of the stretches whose rows follow each other in the adapted model."""
    runs: list[tuple[int, int]] = []
    for place, row in enumerate(wanted):
        if row < 0:
            continue
        if runs and runs[-1][0] + runs[-1][1] == place and wanted[place - 1] == row - 1:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((place, 1))
    return runs


def row_map(base_directory: Path, adapted_directory: Path, vocabulary: Literal["same", "base"]) -> RowMap | None:
    """None when both tokenizers, where both directories have one, give each token the same number.

    Raises RequestError when they do not and `vocabulary` is "same".
    """
    paths = [d / FILE for d in (base_directory, adapted_directory)]
    if not all(p.is_file() for p in paths) or paths[0].read_bytes() == paths[1].read_bytes():
        return None
    base, adapted = (_vocabulary(p) for p in paths)
    if base == adapted:
        return None
    if vocabulary == "same":
        token = min(t for t in base.keys() | adapted.keys() if base.get(t) != adapted.get(t))
        raise RequestError(
            f"{base_directory} and {adapted_directory} have different vocabularies: "
            f"token {token!r} is {base.get(token)} in the first and {adapted.get(token)} in the second; "
            "--vocab base keeps the first one's"
        )
    rows = np.full(max(base.values()) + 1, -1, dtype=np.int64)
    for token, number in base.items():
        rows[number] = adapted.get(token, -1)
    return RowMap(rows)


def _vocabulary(path: Path) -> dict[str, int]:
    from tokenizers import Tokenizer

    try:
        found: dict[str, int] = Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
    except Exception as error:  # tokenizers raises bare Exception
        raise RequestError(f"{path} is not a usable tokenizer: {error}") from error
    return found
