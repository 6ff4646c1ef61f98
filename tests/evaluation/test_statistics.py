"""Intervals cover, tests hold their level, effects called detectable are detected: exactly where that can be counted."""

from __future__ import annotations

import itertools
import time
import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from scipy import stats

from frbio_lite.evaluation import statistics
from frbio_lite.evaluation.statistics import (
    Estimate,
    Units,
    adjusted,
    average_ranks,
    bootstrap,
    change,
    detectable,
    detectable_by_mcnemar,
    document_units,
    interval,
    item_units,
    macro_average,
    mcnemar,
    resampled_sums,
    retention,
    sign_flip,
    spearman_shares,
)

RESAMPLES = 1000
Array = np.ndarray


def binary(better: int, worse: int, items: int) -> Units:
    """Scores of a pair of models with these discordant counts."""
    reference = np.repeat([0.0, 1.0, 1.0], [better, worse, items - better - worse])
    model = np.repeat([1.0, 0.0, 1.0], [better, worse, items - better - worse])
    return item_units(reference, model)


def outcomes(items: int, discordant: float, effect: float) -> Iterator[tuple[float, int, int]]:
    """(probability, better, worse) of all results of `items` pairs that are not too rare."""
    up, down = (discordant + effect) / 2, (discordant - effect) / 2
    counts = range(items + 1)
    for better, worse in itertools.product(counts, counts):
        if better + worse > min(items, 4 * discordant * items + 10):
            continue
        p = stats.multinomial.pmf([better, worse, items - better - worse], items, [up, down, 1 - up - down])
        if p > 1e-5:
            yield float(p), better, worse


def exact_coverage(items: int, discordant: float, effect: float) -> tuple[float, float]:
    """(coverage, chance that the interval lies wholly above `effect`) over all results, by their probability."""
    rng = np.random.default_rng(items)
    covered = above = total = 0.0
    for p, better, worse in outcomes(items, discordant, effect):
        low, high = interval(bootstrap(binary(better, worse, items), RESAMPLES, rng))
        total += p
        covered += p * (low <= effect <= high)
        above += p * (low > effect)
    assert total > 0.99
    return covered / total, above / total


def repeated(times: int, seed: int, once: Callable[[np.random.Generator], bool]) -> float:
    """How often `once` is true."""
    rng = np.random.default_rng(seed)
    return float(np.mean([once(rng) for _ in range(times)]))


def covers(estimate: Estimate, truth: float) -> bool:
    low, high = interval(estimate)
    return low <= truth <= high


# Paired differences


@pytest.mark.parametrize("discordant, effect", [(0.2, 0.0), (0.2, 0.043), (0.4, 0.11)])
def test_interval_of_60_paired_items_covers(discordant: float, effect: float) -> None:
    coverage, _ = exact_coverage(60, discordant, effect)
    assert 0.935 <= coverage <= 0.965


@pytest.mark.parametrize("discordant, effect", [(0.1, 0.0), (0.1, 0.032), (0.3, 0.047)])
def test_interval_of_300_paired_items_covers(discordant: float, effect: float) -> None:
    coverage, _ = exact_coverage(300, discordant, effect)
    assert 0.935 <= coverage <= 0.965


@pytest.mark.parametrize("items, discordant, effect", [(60, 0.05, 0.0), (60, 0.04, 0.031), (300, 0.012, -0.01)])
def test_interval_errs_on_the_safe_side_where_almost_nothing_differs(
    items: int, discordant: float, effect: float
) -> None:
    coverage, above = exact_coverage(items, discordant, effect)
    assert coverage >= 0.935 and above <= 0.05


def test_no_discordant_pair_is_no_certainty() -> None:
    low, high = interval(bootstrap(binary(0, 0, 100), 10_000, np.random.default_rng(1)))
    assert low == -high == -0.03
    assert interval(bootstrap(binary(7, 0, 7), 10_000, np.random.default_rng(1)))[1] == 1.0


def fractional(rng: np.random.Generator, items: int) -> tuple[Array, Array]:
    """Jaccard-like scores in fifths, the model 0.06 better on average."""
    reference = rng.integers(0, 5, items) / 5
    step = rng.choice([-1, 0, 1], items, p=[0.15, 0.4, 0.45]) / 5
    return reference, reference + step  # the mean step is 0.06


@pytest.mark.parametrize("items", [60, 300])
def test_interval_of_fractional_scores_covers(items: int) -> None:
    def once(rng: np.random.Generator) -> bool:
        return covers(bootstrap(item_units(*fractional(rng, items)), 500, rng), 0.06)

    assert 0.935 <= repeated(1500, 7, once) <= 0.965


def clustered(rng: np.random.Generator, clusters: int, effect: float = 0.0) -> tuple[Array, Array, list[str]]:
    """0/1 scores of a pair of models in clusters of 2 to 12 items; a cluster leans to one model: correlation ≈ 0.3."""
    sizes = rng.integers(2, 13, clusters)
    labels = np.repeat(np.arange(clusters), sizes)
    lean = rng.choice([-0.55, 0.55], clusters)[labels]
    differs = rng.random(len(labels)) < 0.6
    ahead = rng.random(len(labels)) < 0.5 + lean * 0.9 + effect / 1.2
    reference = np.where(differs, ~ahead, rng.random(len(labels)) < 0.5).astype(float)
    model = np.where(differs, ahead, reference)
    return reference, model, [f"case {n}" for n in labels]


@pytest.mark.parametrize("clusters", [12, 40])
def test_clustered_interval_covers_where_the_plain_one_fails(clusters: int) -> None:
    plain: list[bool] = []

    def once(rng: np.random.Generator) -> bool:
        reference, model, labels = clustered(rng, clusters)
        plain.append(covers(bootstrap(item_units(reference, model), 200, rng), 0.0))
        return covers(bootstrap(item_units(reference, model, labels), 600, rng), 0.0)

    assert 0.935 <= repeated(1500, 3, once) <= 0.965
    assert np.mean(plain) < 0.85


def test_bits_saved_cover() -> None:
    """Documents of very different lengths, of which a share of 4 % is saved on average."""

    def once(rng: np.random.Generator) -> bool:
        reference = rng.gamma(1.5, 400.0, 80) + 20
        model = reference * (0.96 + rng.normal(0, 0.05, 80))
        return covers(bootstrap(document_units(reference, model), 500, rng), 0.04)

    assert 0.935 <= repeated(1500, 5, once) <= 0.965


@pytest.mark.filterwarnings("ignore:An input array is constant")
def test_spearman_is_a_mean_of_its_shares() -> None:
    rng = np.random.default_rng()
    for count in (3, 20, 63):
        golds, predictions = rng.integers(0, 6, (2, count)).astype(float)  # with ties
        expected = stats.spearmanr(predictions, golds).statistic if min(np.ptp(golds), np.ptp(predictions)) else 0.0
        shares = spearman_shares(predictions, golds)
        assert shares.mean() == pytest.approx(expected)
        without = [stats.spearmanr(np.delete(predictions, i), np.delete(golds, i)).statistic for i in range(count)]
        if np.isfinite(without).all():
            assert shares - shares[0] == pytest.approx(-(count - 1) * (np.array(without) - without[0]), abs=1e-9)
    assert spearman_shares(np.ones(9), np.arange(9.0)).tolist() == [0.0] * 9


def test_interval_of_a_difference_of_correlations_covers() -> None:
    """Normal variables that correlate by r have Spearman's correlation 6/π asin(r/2)."""
    truth = 6 / np.pi * (np.arcsin(0.4) - np.arcsin(0.25))

    def once(rng: np.random.Generator) -> bool:
        golds, shared, *own = rng.normal(size=(4, 150))
        models = [
            r * golds + np.sqrt(1 - r * r) * (shared + x) / np.sqrt(2) for r, x in zip((0.5, 0.8), own, strict=True)
        ]
        before, after = (spearman_shares(m, golds) for m in models)
        return covers(bootstrap(item_units(before, after), 500, rng), truth)

    assert 0.935 <= repeated(400, 17, once) <= 0.965


def test_macro_average_covers() -> None:
    """Tasks of several sizes and kinds: 0/1, fractional, in few clusters."""
    truth = (0.05 + 0.03 + 0.06 + 0.0) / 4

    def once(rng: np.random.Generator) -> bool:
        tasks = []
        for items, up, down in ((60, 0.15, 0.10), (400, 0.09, 0.06)):
            better, worse, _ = rng.multinomial(items, [up, down, 1 - up - down])
            tasks.append(binary(int(better), int(worse), items))
        tasks += [item_units(*fractional(rng, 100)), item_units(*clustered(rng, 30))]
        return covers(macro_average([bootstrap(t, 500, rng) for t in tasks]), truth)

    assert 0.935 <= repeated(1500, 11, once) <= 0.965


def test_macro_average_of_few_clusters_covers() -> None:
    """Six tasks of eight clusters each: Student's width by task would be too wide, the normal one too narrow."""

    def once(rng: np.random.Generator) -> bool:
        tasks = [item_units(*clustered(rng, 8)) for _ in range(6)]
        return covers(macro_average([bootstrap(t, 300, rng) for t in tasks]), 0.0)

    assert 0.93 <= repeated(1200, 13, once) <= 0.97


def test_macro_average_by_hand() -> None:
    a = Estimate(0.1, np.array([0.0, 0.2]), 0.03, 9, True)
    b = Estimate(0.3, np.array([-0.2, 0.0]), 0.04, 4, True)
    both = macro_average([a, b])
    assert both.value == pytest.approx(0.2) and both.deviations.tolist() == pytest.approx([-0.1, 0.1])
    assert both.error == pytest.approx(0.025)
    assert both.freedom == pytest.approx(0.0025**2 / (0.0009**2 / 9 + 0.0016**2 / 4))
    one = macro_average([a])
    assert (one.value, one.error, one.freedom) == pytest.approx((a.value, a.error, a.freedom))
    same = Estimate(0.0, np.zeros(2), 0.0, 5, False)
    assert macro_average([same, same]).freedom == 10 and interval(same) == (0.0, 0.0)


def test_interval_is_at_least_as_wide_as_students() -> None:
    replicates = stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000) * 0.02
    narrow = interval(Estimate(0.1, replicates, 0.025, 4, True))
    half = stats.t.ppf(0.975, 4) * 0.025
    assert narrow == pytest.approx((0.1 - half, 0.1 + half), rel=1e-3)
    wide = interval(Estimate(0.1, replicates, 0.005, 4, True))  # already wider than that
    assert wide == pytest.approx((0.1 - 1.96 * 0.02, 0.1 + 1.96 * 0.02), rel=1e-3)
    assert interval(Estimate(0.99, replicates, 0.02, 40, True))[1] == 1.0
    assert interval(Estimate(0.99, replicates, 0.02, 40, False))[1] > 1.0


def test_error_is_that_of_the_mean_and_clusters_change_it() -> None:
    reference, model = fractional(np.random.default_rng(), 63)
    units = item_units(reference, model)
    assert units.value == pytest.approx((model - reference).mean())
    assert units.error == pytest.approx(stats.sem(model - reference))
    doubled = item_units(np.tile(reference, 2), np.tile(model, 2), [str(n) for n in range(63)] * 2)
    assert len(doubled.gains) == 63 and doubled.error == pytest.approx(units.error)
    with pytest.raises(ValueError):
        item_units(reference, model[:-1])


def test_both_ways_of_resampling_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """How often each kind occurs, or which rows are drawn; whole or in portions: the same distribution."""
    rows = np.stack([np.random.default_rng(2).integers(-1, 2, 500).astype(float), np.ones(500)], 1)
    found = []
    for kinds, draws in ((16, 1 << 22), (10**9, 1 << 22), (16, 97), (10**9, 1999)):
        monkeypatch.setattr(statistics, "KINDS", kinds)
        monkeypatch.setattr(statistics, "DRAWS", draws)
        sums = resampled_sums(rows, 400, 20_000, np.random.default_rng(1))
        assert sums.shape == (20_000, 2) and (sums[:, 1] == 400).all()
        found.append((sums[:, 0].mean(), sums[:, 0].std()))
    mean, deviation = 400 * rows[:, 0].mean(), np.sqrt(400) * rows[:, 0].std()
    for got in found:
        assert got == (pytest.approx(mean, abs=5 * deviation / 141), pytest.approx(deviation, rel=0.03))


# Tests of no difference


@pytest.mark.parametrize("items, discordant", [(60, 0.1), (60, 0.3), (300, 0.1)])
def test_mcnemar_holds_its_level(items: int, discordant: float) -> None:
    pairs = np.arange(items + 1)
    weights = stats.binom.pmf(pairs, items, discordant)
    rejected = 0.0
    for n in pairs[weights > 1e-9].tolist():
        rejecting = [k for k in range(n + 1) if mcnemar(k, n - k) <= 0.05]
        rejected += weights[n] * stats.binom.pmf(rejecting, n, 0.5).sum()
    assert 0.005 < rejected <= 0.05


def test_mcnemar_is_the_binomial_test() -> None:
    assert mcnemar(0, 0) == 1.0 and mcnemar(3, 3) == 1.0
    assert mcnemar(8, 1) == mcnemar(1, 8) == pytest.approx(2 * (1 + 9) / 2**9)


def test_sign_flips_of_few_units_are_all_counted() -> None:
    gains = np.array([0.3, -0.1, 0.0, 0.4, 0.2, 0.2])
    values = gains[gains != 0]
    sums = [abs(np.dot(signs, values)) for signs in itertools.product([1, -1], repeat=5)]
    expected = np.mean(np.array(sums) >= 1.0 - 1e-9)
    assert sign_flip(gains, 10_000, np.random.default_rng()) == pytest.approx(expected)
    assert sign_flip(np.zeros(9), 100, np.random.default_rng()) == 1.0


def test_random_sign_flips_agree_with_mcnemar(monkeypatch: pytest.MonkeyPatch) -> None:
    units = binary(30, 14, 200)
    expected = mcnemar(30, 14)
    for draws in (1 << 22, 100):
        monkeypatch.setattr(statistics, "DRAWS", draws)
        found = sign_flip(units.gains, 40_000, np.random.default_rng(1))
        assert found == pytest.approx(expected, abs=4 * np.sqrt(expected / 40_000))
    assert sign_flip(np.ones(400), 999, np.random.default_rng(1)) == 1 / 1000


def test_permutation_holds_its_level() -> None:
    """Fractional scores without a difference, and clusters of 0/1 ones."""

    def items(rng: np.random.Generator) -> bool:
        gains = rng.choice([-0.5, -0.2, 0.0, 0.2, 0.5], 80)
        return sign_flip(gains, 999, rng) <= 0.05

    def cases(rng: np.random.Generator) -> bool:
        return sign_flip(item_units(*clustered(rng, 30)).gains, 999, rng) <= 0.05

    assert 0.04 <= repeated(4000, 1, items) <= 0.06
    assert 0.04 <= repeated(4000, 2, cases) <= 0.06


def test_permutation_of_items_would_fail_on_clusters() -> None:
    def once(rng: np.random.Generator) -> bool:
        reference, model, _ = clustered(rng, 30)
        return sign_flip(model - reference, 999, rng) <= 0.05

    assert repeated(300, 2, once) > 0.15


def test_adjusted_p_values_keep_the_false_discovery_rate() -> None:
    """40 comparisons, 10 of them real: the share of false ones among the discoveries is 5 % × 30/40 on average."""
    rng = np.random.default_rng(4)
    shares, found = [], 0
    for _ in range(1500):
        z = rng.normal(size=40) + np.repeat([3.0, 0.0], [10, 30])
        discovered = np.array(adjusted((2 * stats.norm.sf(np.abs(z))).tolist())) <= 0.05
        shares.append(discovered[10:].sum() / max(1, discovered.sum()))
        found += discovered[:10].sum()
    assert 0.03 <= np.mean(shares) <= 0.045
    assert found / 15_000 > 0.5


def test_adjusted_by_hand() -> None:
    assert adjusted([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.5])
    assert adjusted([]) == [] and adjusted([0.3]) == [0.3]


# Detectable effects


@pytest.mark.parametrize("items, discordant", [(60, 18), (300, 30), (4343, 500)])
def test_mcnemar_detects_what_is_called_detectable(items: int, discordant: int) -> None:
    effect = detectable_by_mcnemar(items, discordant)
    assert effect is not None
    share = discordant / items
    rng = np.random.default_rng(9)
    drawn = rng.multinomial(items, [(share + effect) / 2, (share - effect) / 2, 1 - share], size=4000)
    kinds, counts = np.unique(drawn[:, :2], axis=0, return_counts=True)
    rejected = sum(c for (b, w), c in zip(kinds.tolist(), counts.tolist(), strict=True) if mcnemar(b, w) <= 0.05)
    assert 0.78 <= rejected / 4000 <= 0.82


def test_detectable_grows_where_there_is_less_to_see() -> None:
    sizes = [detectable_by_mcnemar(n, n // 5) for n in (25, 100, 1000, 5000)]
    assert all(a is not None and b is not None and a > b for a, b in itertools.pairwise(sizes))
    # nothing differs: as many items must all change to one side that six of them do with a chance of 80 %
    none = detectable_by_mcnemar(200, 0)
    assert none is not None and stats.binom.sf(5, 200, none) == pytest.approx(0.8, abs=1e-3)
    assert detectable_by_mcnemar(5, 3) is None and detectable(0.0, 10) is None


@pytest.mark.parametrize("clusters", [12, 60])
def test_sign_flip_detects_what_is_called_detectable(clusters: int) -> None:
    """Clusters' sums around a difference that is `detectable` for their true spread."""
    effect = detectable(1 / np.sqrt(clusters), clusters - 1)
    assert effect is not None

    def once(rng: np.random.Generator) -> bool:
        return sign_flip(rng.normal(effect, 1.0, clusters), 999, rng) <= 0.05

    assert 0.77 <= repeated(3000, 6, once) <= 0.83


# Ranks


def scores(rng: np.random.Generator, accuracies: list[float], items: int) -> tuple[Array, Array]:
    """0/1 scores of correlated models on the same items, [N, K], and weights."""
    shared, own = rng.random((items, 1)), rng.random((items, len(accuracies)))
    draws = np.where(rng.random((items, 1)) < 0.7, shared, own)
    return (draws < np.array(accuracies)).astype(float), np.ones(items)


def test_ranks_by_hand() -> None:
    """Best, equal and worst; the equal two share ranks 2 and 3 on the first task, and 1 and 2 on the second."""
    first = np.array([[1.0, 0, 1, 0]] * 4 + [[1.0, 1, 0, 0]] * 4)
    second = np.array([[0.0, 1, 1, 0]] * 6 + [[1.0, 1, 1, 0]] * 2)
    found = average_ranks([(first, np.ones(8)), (second, np.ones(8))], 500, np.random.default_rng(1))
    assert [rank for rank, _, _ in found] == pytest.approx([2.0, 2.0, 2.0, 4.0])
    assert all(1.0 <= low <= rank <= high <= 4.0 for rank, low, high in found)
    assert found[3][1:] == (3.75, 4.0)  # on the second task the first model has no point in one resample of ten
    same = np.random.default_rng(1).random((50, 1)).repeat(2, 1)
    assert average_ranks([(same, np.ones(50))], 500, np.random.default_rng(1)) == [(1.5, 1.5, 1.5)] * 2


@pytest.mark.parametrize("accuracies", [[0.5, 0.5], [0.5, 0.53], [0.5, 0.51, 0.56]])
def test_rank_intervals_cover_the_rank_to_expect(accuracies: list[float]) -> None:
    rng = np.random.default_rng(8)
    found = np.array(
        [average_ranks([scores(rng, accuracies, 150) for _ in range(6)], 300, rng) for _ in range(250)]
    )  # [400, K, 3]
    expected = found[:, :, 0].mean(0)
    covered = ((found[:, :, 1] <= expected) & (expected <= found[:, :, 2])).mean(0)
    assert (covered >= 0.935).all()
    assert np.diff(expected).max() < 0 or accuracies[0] == accuracies[1]
    assert (found[:, :, 1] <= found[:, :, 0]).all() and (found[:, :, 0] <= found[:, :, 2]).all()


def test_a_narrow_lead_everywhere_is_within_its_interval() -> None:
    """6 items gained, 5 lost, on each of eight tasks: resamples turn the order round, the sample never does."""
    task = np.repeat([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [6, 5, 89], axis=0)
    found = average_ranks([(task, np.ones(100))] * 8, 1000, np.random.default_rng(1))
    assert found[0][:2] == (1.0, 1.0) and found[0][2] >= 1.5 and found[1][0] == found[1][2] == 2.0


def test_equal_scores_summed_in_another_order_share_ranks() -> None:
    task = np.array([[0.1, 0.3], [0.2, 0.2], [0.3, 0.1]])
    assert len(set(task.sum(0).tolist())) == 2  # they differ in the last bit
    assert [r for r, _, _ in average_ranks([(task, np.ones(3))], 50, np.random.default_rng(1))] == [1.5, 1.5]


def test_clear_ranks_have_narrow_intervals() -> None:
    rng = np.random.default_rng(8)
    found = average_ranks([scores(rng, [0.3, 0.6, 0.45], 500) for _ in range(4)], 1000, rng)
    assert [(r, lo, hi) for r, lo, hi in found] == [(3.0, 3.0, 3.0), (1.0, 1.0, 1.0), (2.0, 2.0, 2.0)]


# Verdicts


@pytest.mark.parametrize("items, discordant", [(250, 0.01), (300, 0.03), (300, 0.1)])
def test_non_inferiority_is_rarely_claimed_at_the_margin(items: int, discordant: float) -> None:
    """The true loss is the margin, one point: also where all that differs is lost."""
    _, above = exact_coverage(items, discordant, -0.01)
    assert above <= 0.05


def test_non_inferiority_of_a_macro_average_at_the_margin() -> None:
    def claim(rng: np.random.Generator, loss: float) -> bool:
        tasks = []
        for items in (400, 900, 1500):
            better, worse, _ = rng.multinomial(items, [0.05 - loss / 2, 0.05 + loss / 2, 0.9])
            tasks.append(bootstrap(binary(int(better), int(worse), items), 300, rng))
        low, high = interval(macro_average(tasks))
        return retention((100 * low, 100 * high), 1.0) == "non-inferior"

    assert 0.01 <= repeated(1500, 21, lambda rng: claim(rng, 0.01)) <= 0.035
    assert repeated(200, 22, lambda rng: claim(rng, -0.01)) > 0.8


def test_verdicts() -> None:
    assert [change(b) for b in ((0.1, 3.0), (-1.0, 2.0), (0.0, 1.0), (-3.0, -0.1), None)] == [
        "gained",
        "no difference shown",
        "no difference shown",
        "lost",
        "no difference shown",
    ]
    assert retention((-0.9, 2.0), 1.0) == retention((-0.9, -0.1), 1.0) == "non-inferior"
    assert retention((-1.0, 0.5), 1.0) == retention((-4.0, 0.0), 1.0) == retention(None, 1.0) == "inconclusive"
    assert retention((-4.0, -0.1), 1.0) == "degraded"


# Speed and memory


def test_large_tasks_take_seconds_and_little_memory() -> None:
    """A task of 5,000 items, 10,000 resamples: 0/1 scores, and real numbers, which cannot be counted by kind."""
    rng = np.random.default_rng(1)
    right = (rng.random((2, 5000)) < 0.5).astype(float)
    nats = rng.gamma(2.0, 300.0, (2, 5000))
    start = time.process_time()
    for _ in range(10):
        bootstrap(item_units(right[0], right[1]), 10_000, rng)
    assert time.process_time() - start < 3
    tracemalloc.start()
    units = document_units(nats[0], nats[1])
    bootstrap(units, 10_000, rng)
    sign_flip(units.gains, 10_000, rng)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150e6
