"""From scored items to figures: intervals of 95 %, and what a model gained over its base."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from frbio_lite.errors import RequestError

Z = 1.959963984540054  # the 97.5 % quantile of the normal distribution
FEWEST = 5  # documents from which an interval is given
DRAWS = 1 << 22  # bootstrap indices held at once


@dataclass(frozen=True)
class Row:
    """A line of results.json. Accuracies are fractions; bits per byte are bits per UTF-8 byte of text."""

    task: str
    group: str
    split: str
    metric: str
    value: float
    low: float | None  # no interval where too few documents were measured
    high: float | None
    items: int
    shots: int


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927, the score interval). `trials` > 0."""
    share, spread = successes / trials, Z * Z / trials
    centre = (share + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    # at the ends the closed form is exactly 0 or 1, which rounding misses by an epsilon
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == trials else centre + half)


def bootstrap_ratio(
    numerators: npt.NDArray[np.float64], denominators: npt.NDArray[np.float64], resamples: int, seed: int
) -> tuple[float, float]:
    """95 % percentile interval of sum(numerators) / sum(denominators), both [N], resampling documents (Efron 1979)."""
    rng = np.random.default_rng(seed)
    n = len(numerators)
    ratios = np.empty(resamples)
    step = max(1, DRAWS // n)
    for start in range(0, resamples, step):
        drawn = rng.integers(0, n, size=(min(step, resamples - start), n), dtype=np.int32)
        ratios[start : start + step] = numerators[drawn].sum(1) / denominators[drawn].sum(1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)


def bits_per_byte(
    nats: Sequence[float], sizes: Sequence[int], resamples: int, seed: int
) -> tuple[float, float | None, float | None]:
    """(value, low, high): documents' negative log-likelihoods (nats) in bits, per UTF-8 byte of their text.

    Below FEWEST documents resampling says nothing about others, and there is no interval.
    """
    bits = np.array(nats, dtype=np.float64) / math.log(2)
    lengths = np.array(sizes, dtype=np.float64)
    if len(nats) < FEWEST:
        return float(bits.sum() / lengths.sum()), None, None
    return float(bits.sum() / lengths.sum()), *bootstrap_ratio(bits, lengths, resamples, seed)


def gains(rows: Sequence[Row], base_rows: Sequence[Row]) -> dict[str, float]:
    """What a model gained over its base, by group, in points: the mean of 100 × (value − base) over its accuracy tasks.

    A group without accuracy tasks has the mean percentage of bits saved, 100 × (base − value) / base.
    Raises RequestError when the two lists do not cover the same tasks and items.
    """
    pairs = _paired(rows, base_rows)
    found: dict[str, float] = {}
    for group in sorted({row.group for row, _ in pairs}):
        mine = [(r, b) for r, b in pairs if r.group == group]
        points = [100 * (r.value - b.value) for r, b in mine if r.metric != "bits_per_byte"]
        saved = [100 * (b.value - r.value) / b.value for r, b in mine if r.metric == "bits_per_byte"]
        counted = points or saved
        found[group] = sum(counted) / len(counted)
    return found


def _paired(rows: Sequence[Row], base_rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    ours, theirs = ({_identity(row): row for row in given} for given in (rows, base_rows))
    if len(ours) != len(rows) or len(theirs) != len(base_rows):
        raise RequestError("results to compare name the same task twice")
    if differing := sorted({key[0] for key in ours.keys() ^ theirs.keys()}):
        raise RequestError(
            f"results do not cover the same tasks and items: {', '.join(differing)} differ; evaluate both the same way"
        )
    return [(ours[key], theirs[key]) for key in sorted(ours)]


def _identity(row: Row) -> tuple[str, str, str, str, int, int]:
    return row.task, row.group, row.split, row.metric, row.items, row.shots
