"""From scored items to figures: intervals of 95 %, and what a model gained over its base."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from frbio_lite.errors import RequestError
from frbio_lite.evaluation import statistics
from frbio_lite.evaluation.statistics import FloatArray, Units

COUNTED = ("domain", "general")  # the groups that rules and verdicts count
Z = 1.959963984540054  # the 97.5 % quantile of the normal distribution
FEWEST = 5  # documents from which an interval is given
DRAWS = 1 << 22  # bootstrap indices held at once


@dataclass(frozen=True)
class Row:
    """A line of results.json. Accuracies are fractions; bits per byte are bits per UTF-8 byte of text.

    A task has a row for each of its metrics; the first is `primary`, the one that counts.
    """

    task: str
    group: str
    split: str
    metric: str
    value: float
    low: float | None  # no interval where too few documents were measured
    high: float | None
    items: int
    shots: int
    primary: bool = True
    shots_from_test: bool = False  # the examples were test items: no figure to compare with others


def wilson(successes: float, trials: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927, the score interval). `trials` > 0."""
    share, spread = successes / trials, Z * Z / trials
    centre = (share + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    # at the ends the closed form is exactly 0 or 1, which rounding misses by an epsilon
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == trials else centre + half)


def mean_score(
    scores: FloatArray, clusters: Sequence[str] | None, resamples: int, seed: int
) -> tuple[float, float | None, float | None]:
    """(value, low, high) of the mean of `scores` [N] in [0, 1].

    The interval is Wilson's for independent 0/1 scores; else that of the bootstrap of items, or of clusters where they
    share one (see `statistics`). Where no unit differs from another Wilson's is given for as many units, since resampling
    would find certainty. Fractions and clusters have no interval below FEWEST units.
    """
    value = float(scores.mean())
    binary = bool(np.isin(scores, (0.0, 1.0)).all())
    if binary and clusters is None:
        return value, *wilson(int(scores.sum()), len(scores))
    sums, sizes = statistics.cluster_sums(scores[:, None], clusters)
    if len(sizes) < FEWEST:
        return value, None, None
    units = Units(sums[:, 0], sizes, 0.0)
    if np.ptp(units.gains / units.weights) == 0:
        return value, *wilson(value * len(sizes), len(sizes))
    low, high = statistics.interval(statistics.bootstrap(units, resamples, np.random.default_rng(seed)))
    return value, max(0.0, low), min(1.0, high)


def spearman(
    predictions: FloatArray, golds: FloatArray, clusters: Sequence[str] | None, resamples: int, seed: int
) -> tuple[float, float | None, float | None]:
    """(value, low, high) of Spearman's rank correlation of two arrays [N]; 0 where all values of one are equal.

    The interval resamples what each item, or cluster, adds to the correlation (`statistics.spearman_shares`).
    """
    if np.ptp(predictions) == 0 or np.ptp(golds) == 0:
        return 0.0, None, None
    value = float(stats.spearmanr(predictions, golds).statistic)
    if len(golds) < FEWEST:
        return value, None, None
    shares = statistics.spearman_shares(predictions, golds)
    sums, sizes = statistics.cluster_sums(shares[:, None], clusters)
    if len(sizes) < FEWEST:
        return value, None, None
    units = Units(sums[:, 0], sizes, 0.0)
    low, high = statistics.interval(statistics.bootstrap(units, resamples, np.random.default_rng(seed)))
    return value, max(-1.0, low), min(1.0, high)


def bootstrap_ratio(numerators: FloatArray, denominators: FloatArray, resamples: int, seed: int) -> tuple[float, float]:
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
    """What a model gained over its base, by group, in points: the mean of 100 × (value − base) over its scored tasks.

    Only each task's own metric counts, in the groups domain and general. A group without scored tasks has the mean
    percentage of bits saved, 100 × (base − value) / base.
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
    counted = [[row for row in given if row.primary and row.group in COUNTED] for given in (rows, base_rows)]
    ours, theirs = ({_identity(row): row for row in given} for given in counted)
    if [len(ours), len(theirs)] != [len(given) for given in counted]:
        raise RequestError("results to compare name the same task twice")
    if differing := sorted({key[0] for key in ours.keys() ^ theirs.keys()}):
        raise RequestError(
            f"results do not cover the same tasks and items: {', '.join(differing)} differ; evaluate both the same way"
        )
    return [(ours[key], theirs[key]) for key in sorted(ours)]


def _identity(row: Row) -> tuple[str, str, str, str, int, int, bool]:
    return row.task, row.group, row.split, row.metric, row.items, row.shots, row.shots_from_test
