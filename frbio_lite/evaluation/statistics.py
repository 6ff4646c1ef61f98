"""What two models' scores on the same items show: intervals, tests, detectable effects, ranks.

A task is a ratio of sums over units that are drawn as a whole: items, clusters of items (a clinical case, a passage),
or documents. Differences are fractions here, positive when the model is better than the reference.

Intervals are percentile intervals of the paired bootstrap (Efron 1979) with two corrections of what it lacks with few
units. To 0/1 and other bounded scores two pseudo-items are added to the pool, one gained and one lost (the idea of
Bonett & Price 2012, Journal of Educational and Behavioral Statistics 37, 479–488), so that a handful of differing items,
or none, does not pass for certainty. And the interval is at least as wide as Student's (Hesterberg 2015, The American
Statistician 69, 371–386): resampling n units spreads like sqrt((n − 1) / n), and as if the variance were known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.optimize import brentq

LEVEL = 0.05  # two-sided
POWER = 0.80
FEWEST = 5  # units from which an interval is given
DRAWS = 1 << 22  # numbers drawn at once
KINDS = 16  # drawing how often a kind of unit occurs costs as much as drawing this many units

FloatArray = npt.NDArray[np.float64]
Change = Literal["gained", "no difference shown", "lost"]
Retention = Literal["non-inferior", "degraded", "inconclusive"]


@dataclass(frozen=True)
class Units:
    """One task of two models, [C] each: sums of the units' gains and their weights (items; for documents, nats).

    `pseudo` is the size of the two pseudo-items' gains; 0: there are none.
    """

    gains: FloatArray
    weights: FloatArray
    pseudo: float

    @property
    def value(self) -> float:
        return float(self.gains.sum() / self.weights.sum())

    @property
    def error(self) -> float:
        """Standard error of `value`, by linearisation of the ratio. Needs two units."""
        count = len(self.gains)
        residuals = self.gains - self.value * self.weights
        return float(np.sqrt(count / (count - 1) * np.square(residuals).sum()) / self.weights.sum())


@dataclass(frozen=True)
class Estimate:
    """A difference, its bootstrap replicates [R] (their deviations from it), its standard error, degrees of freedom.

    A `bounded` one lies between −1 and 1.
    """

    value: float
    deviations: FloatArray
    error: float
    freedom: float
    bounded: bool


def cluster_sums(values: FloatArray, clusters: Sequence[str] | None) -> tuple[FloatArray, FloatArray]:
    """Sums of `values` [N, K] by cluster, [C, K], and the clusters' sizes [C]; without clusters the items themselves."""
    if clusters is None:
        return values, np.ones(len(values))
    _, index = np.unique(np.asarray(clusters, dtype=np.str_), return_inverse=True)
    sums = np.zeros((int(index.max()) + 1, values.shape[1]))
    np.add.at(sums, index, values)
    return sums, np.bincount(index).astype(np.float64)


def item_units(reference: FloatArray, model: FloatArray, clusters: Sequence[str] | None = None) -> Units:
    """Units of a mean score: `reference` and `model` [N], in [0, 1], of the same items; `clusters` [N] if any."""
    differences = model - reference
    sums, sizes = cluster_sums(differences[:, None], clusters)
    differing = differences[differences != 0]
    return Units(sums[:, 0], sizes, float(np.sqrt(np.square(differing).mean())) if len(differing) else 1.0)


def document_units(reference: FloatArray, model: FloatArray, clusters: Sequence[str] | None = None) -> Units:
    """Units of the share of bits saved, from documents' negative log-likelihoods [N] in nats: 1 − Σ model / Σ reference.

    The bytes of the texts, the same for both, cancel out of bits per byte.
    """
    sums, _ = cluster_sums(np.stack([reference - model, reference], 1), clusters)
    return Units(sums[:, 0], sums[:, 1], 0.0)


def spearman_shares(predictions: FloatArray, golds: FloatArray) -> FloatArray:
    """What each item adds to Spearman's correlation, [N]: jackknife pseudo-values (Tukey 1958), shifted to average to it.

    A mean of items, as an accuracy is, to first order: so it is resampled and tested like one. N > 2; where all
    predictions or all golds are equal the correlation counts as 0.
    """
    count = len(golds)
    ranks = np.stack([stats.rankdata(values) for values in (predictions, golds)])
    values = np.stack([predictions, golds])
    whole = _correlation(ranks)
    left_out = np.empty(count)
    for i in range(count):
        here = values[:, i : i + 1]
        without = ranks - (values > here) - 0.5 * (values == here)  # the ranks among the others
        left_out[i] = _correlation(np.delete(without, i, axis=1))
    shares = count * whole - (count - 1) * left_out
    return np.asarray(shares - shares.mean() + whole, dtype=np.float64)


def _correlation(pair: FloatArray) -> float:
    """Pearson's, of two lines [2, N]."""
    centred = pair - pair.mean(1, keepdims=True)
    scale = float(np.sqrt(np.square(centred).sum(1).prod()))
    return float(centred.prod(0).sum() / scale) if scale > 1e-12 else 0.0


def resampled_sums(rows: FloatArray, draws: int, resamples: int, rng: np.random.Generator) -> FloatArray:
    """Column sums [resamples, K] of `draws` rows drawn with replacement from `rows` [N, K].

    Where many rows are alike, as with 0/1 scores, what is drawn is how often each kind occurs.
    """
    kinds, counts = np.unique(rows, axis=0, return_counts=True)
    few = KINDS * len(kinds) <= draws
    sums = np.empty((resamples, rows.shape[1]))
    step = max(1, DRAWS // (len(kinds) if few else draws))
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        if few:
            sums[start : start + count] = rng.multinomial(draws, counts / len(rows), size=count) @ kinds
            continue
        index = rng.integers(0, len(rows), size=(count, draws), dtype=np.int32)
        for column in range(rows.shape[1]):
            sums[start : start + count, column] = np.take(rows[:, column], index).sum(1)
    return sums


def bootstrap(units: Units, resamples: int, rng: np.random.Generator) -> Estimate:
    """The paired bootstrap of a task's difference; units are resampled. Needs two units or more."""
    pool = np.stack([units.gains, units.weights], 1)
    if units.pseudo:
        pool = np.concatenate([pool, [[units.pseudo, 1.0], [-units.pseudo, 1.0]]])
    sums = resampled_sums(pool, len(units.gains), resamples, rng)
    deviations = sums[:, 0] / sums[:, 1] - pool[:, 0].sum() / pool[:, 1].sum()
    return Estimate(units.value, deviations, units.error, len(units.gains) - 1, units.pseudo > 0)


def macro_average(tasks: Sequence[Estimate]) -> Estimate:
    """The mean over tasks of independent estimates, all with as many replicates.

    Tasks are fixed and items within tasks resampled: a benchmark's tasks are chosen, not drawn, so the interval is about
    other items of these tasks, not about other tasks. Degrees of freedom as in Satterthwaite 1946.
    """
    variances = np.array([task.error**2 for task in tasks])
    freedoms = np.array([task.freedom for task in tasks])
    total = variances.sum()
    return Estimate(
        value=float(np.mean([task.value for task in tasks])),
        deviations=np.mean([task.deviations for task in tasks], axis=0),
        error=float(np.sqrt(total) / len(tasks)),
        freedom=float(total**2 / (variances**2 / freedoms).sum()) if total else float(freedoms.sum()),
        bounded=all(task.bounded for task in tasks),
    )


def interval(estimate: Estimate) -> tuple[float, float]:
    """95 % interval of a difference: see the head of this file."""
    low, high = np.quantile(estimate.deviations, [LEVEL / 2, 1 - LEVEL / 2])
    spread = float(estimate.deviations.std())
    student = float(stats.t.ppf(1 - LEVEL / 2, estimate.freedom) / stats.norm.ppf(1 - LEVEL / 2))
    widened = max(1.0, student * estimate.error / spread) if spread else 1.0
    low, high = estimate.value + widened * float(low), estimate.value + widened * float(high)
    return (max(-1.0, low), min(1.0, high)) if estimate.bounded else (low, high)


def mcnemar(better: int, worse: int) -> float:
    """Exact two-sided p of McNemar's test: the discordant pairs are as often better as worse."""
    return float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0


def sign_flip(gains: FloatArray, resamples: int, rng: np.random.Generator) -> float:
    """Two-sided p of the paired permutation test of a sum of units' gains [C]: each has either sign with equal chance.

    All sign patterns where there are no more than `resamples` of them; else that many at random, with the observed one
    counted among them (Phipson & Smyth 2010), so that p is never 0.
    """
    sizes = np.abs(gains[gains != 0])
    if not len(sizes):
        return 1.0
    least = abs(float(gains.sum())) - 1e-9 * float(sizes.sum())  # sums in another order differ in the last bits
    if 2 ** len(sizes) <= resamples:
        sums: FloatArray = np.zeros(1)
        for i in range(len(sizes)):
            sums = np.concatenate([sums + sizes[i], sums - sizes[i]])
        return float(np.mean(np.abs(sums) >= least))
    width = -(-len(sizes) // 8)
    step = max(1, DRAWS // len(sizes))
    extreme = 0
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        packed = np.frombuffer(rng.bytes(count * width), dtype=np.uint8).reshape(count, width)
        flipped = np.unpackbits(packed, axis=1, count=len(sizes)) @ sizes
        extreme += int(np.count_nonzero(np.abs(sizes.sum() - 2 * flipped) >= least))
    return (1 + extreme) / (1 + resamples)


def adjusted(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of a family: below q, the expected share of false discoveries is at most q.

    Benjamini & Hochberg 1995.
    """
    return [float(p) for p in stats.false_discovery_control(p_values)] if p_values else []


def detectable_by_mcnemar(items: int, discordant: int) -> float | None:
    """The smallest difference that the exact McNemar test at 5 % finds with a power of 80 %, by the exact distribution.

    The share of discordant pairs is the observed one, or the difference itself where that is larger. None where the test
    finds nothing, below six items.
    """

    def lacking(effect: float) -> float:
        return POWER - _mcnemar_power(items, max(discordant / items, effect), effect)

    return float(brentq(lacking, 0.0, 1.0, xtol=1e-5)) if lacking(1.0) < 0 else None


def _mcnemar_power(items: int, share: float, effect: float) -> float:
    """Power of the exact test where a `share` of the pairs is discordant, and better − worse is `effect` of all."""
    if share == 0:
        return 0.0
    law = stats.binom(items, share)
    pairs = np.arange(int(law.ppf(1e-9)), int(law.ppf(1 - 1e-9)) + 1)
    smallest = np.asarray(stats.binom.ppf(LEVEL / 2, pairs, 0.5))
    # the most of one kind at which the test rejects
    critical = smallest - (stats.binom.cdf(smallest, pairs, 0.5) > LEVEL / 2)
    better = min(1.0, (1 + effect / share) / 2)
    rejected = stats.binom.cdf(critical, pairs, better) + stats.binom.sf(pairs - critical - 1, pairs, better)
    return float(law.pmf(pairs) @ rejected)


def detectable(error: float, freedom: float) -> float | None:
    """The smallest difference that a paired test at 5 % finds with a power of 80 %, from the standard error observed."""
    found = float(stats.t.ppf(1 - LEVEL / 2, freedom) + stats.t.ppf(POWER, freedom)) * error
    return found if found > 0 else None


def average_ranks(
    tasks: Sequence[tuple[FloatArray, FloatArray]], resamples: int, rng: np.random.Generator
) -> list[tuple[float, float, float]]:
    """(rank, low, high) of each of K models: its mean rank over tasks, 1 the best, equals sharing the mean of theirs.

    A task is (sums [C, K], weights [C]) of its units, higher better; units within tasks are resampled, for all models
    alike. The interval of 95 % is about the rank to expect on as many other items of these tasks, which lies nearer to
    the middle than a rank without noise would. Resampling adds the noise a second time, so it is the hull of the
    percentile interval and of the basic one (Davison & Hinkley 1997, 5.2), which leaves that bias out.
    """
    observed = np.zeros(tasks[0][0].shape[1])
    drawn = np.zeros((resamples, len(observed)))
    for sums, weights in tasks:
        observed += _ranks(sums.sum(0, keepdims=True) / weights.sum())[0]
        both = resampled_sums(np.concatenate([sums, weights[:, None]], 1), len(sums), resamples, rng)
        drawn += _ranks(both[:, :-1] / both[:, -1:])
    ranks = observed / len(tasks)
    low, high = np.quantile(drawn / len(tasks), [LEVEL / 2, 1 - LEVEL / 2], axis=0)
    lowest = np.maximum(1.0, np.minimum(low, 2 * ranks - high))
    highest = np.minimum(float(len(ranks)), np.maximum(high, 2 * ranks - low))
    return [(float(r), float(a), float(b)) for r, a, b in zip(ranks, lowest, highest, strict=True)]


def _ranks(means: FloatArray) -> FloatArray:
    """Ranks within each line of `means` [R, K]. Rounded: equal scores summed in another order are equal."""
    return np.asarray(stats.rankdata(-np.round(means, 12), axis=1), dtype=np.float64)


def change(bounds: tuple[float, float] | None) -> Change:
    """What the interval of a difference shows; none shows nothing."""
    if bounds is None:
        return "no difference shown"
    return "gained" if bounds[0] > 0 else "lost" if bounds[1] < 0 else "no difference shown"


def retention(bounds: tuple[float, float] | None, margin: float) -> Retention:
    """Non-inferior: the interval ends above −margin, so a larger loss is excluded (one-sided 2.5 %).

    Else degraded where a loss is shown (the whole interval is below 0), and inconclusive where none is.
    """
    if bounds is None:
        return "inconclusive"
    return "non-inferior" if bounds[0] > -margin else "degraded" if bounds[1] < 0 else "inconclusive"
