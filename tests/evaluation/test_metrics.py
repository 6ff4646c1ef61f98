"""Intervals against scipy and by coverage; gains by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest, spearmanr

from frbio_lite.errors import RequestError
from frbio_lite.evaluation import metrics
from frbio_lite.evaluation.metrics import Row, bits_per_byte, bootstrap_ratio, gains, mean_score, spearman, wilson


@pytest.mark.parametrize("trials", [1, 2, 7, 264, 4343])
def test_wilson_equals_scipy(trials: int) -> None:
    for right in sorted({0, 1, trials // 3, trials // 2, trials - 1, trials}):
        low, high = wilson(right, trials)
        expected = binomtest(right, trials).proportion_ci(0.95, method="wilson")
        assert low == pytest.approx(expected.low, abs=1e-12) and high == pytest.approx(expected.high, abs=1e-12)
        assert 0.0 <= low <= right / trials <= high <= 1.0


def test_bits_per_byte_is_a_ratio_of_sums() -> None:
    nats, sizes = [10 * math.log(2), 90 * math.log(2)], [10, 30]
    value, low, high = bits_per_byte(nats * 3, sizes * 3, 2000, 1)
    assert value == pytest.approx(100 / 40)
    assert low is not None and high is not None and 1.0 <= low < value < high <= 3.0
    assert bits_per_byte(nats * 2, sizes * 2, 500, 1) == (pytest.approx(100 / 40), None, None)


def test_bootstrap_is_repeatable_and_chunked_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng()
    a, b = rng.gamma(2.0, 1.0, 300), rng.uniform(1, 5, 300)
    first = bootstrap_ratio(a, b, 1000, 17)
    assert bootstrap_ratio(a, b, 1000, 17) == first != bootstrap_ratio(a, b, 1000, 18)
    monkeypatch.setattr(metrics, "DRAWS", 7 * 300)
    assert bootstrap_ratio(a, b, 1000, 17) == pytest.approx(first, rel=0.03)


def test_bootstrap_covers_the_truth_about_95_times_in_100() -> None:
    """400 fresh samples of 120 documents: coverage is binomial around 0.94; below 0.89 or above 0.985 is a fault."""
    rng = np.random.default_rng()
    covered = 0
    for n in range(400):
        sizes = rng.integers(50, 500, 120).astype(float)
        bits = sizes * rng.normal(1.3, 0.3, 120)
        low, high = bootstrap_ratio(bits, sizes, 400, n)
        covered += low <= 1.3 <= high
    assert 0.89 <= covered / 400 <= 0.985


def test_zero_and_one_have_wilsons_interval() -> None:
    scores = np.array([1.0, 0.0, 1.0])
    assert mean_score(scores, None, 200, 1) == (2 / 3, *wilson(2, 3))
    together = mean_score(np.repeat(scores, 4), [f"c{n // 4}" for n in range(12)], 200, 1)
    assert together == (2 / 3, None, None)  # three clusters are too few to resample


def test_equal_clusters_are_no_certainty() -> None:
    labels = [f"c{n // 4}" for n in range(40)]
    for value in (0.0, 0.5, 1.0):
        found = mean_score(np.full(40, value), labels, 500, 1)
        assert found == (value, *wilson(value * 10, 10))  # ten units, not forty


@pytest.mark.parametrize("clustered", [False, True])
def test_the_interval_of_a_mean_covers(clustered: bool) -> None:
    """400 samples of 60 units around 0.6: coverage is binomial around 0.95; below 0.91 or above 0.985 is a fault."""
    rng = np.random.default_rng()
    covered = 0
    for n in range(400):
        level = rng.beta(6, 4, 60)
        if clustered:  # four items of 0 or 1 that share their cluster's level
            scores = (rng.random((60, 4)) < level[:, None]).astype(float).ravel()
            labels = [f"c{k // 4}" for k in range(240)]
        else:
            scores, labels = level, None
        value, low, high = mean_score(scores, labels, 400, n)
        assert low is not None and high is not None and 0 <= low < value < high <= 1
        covered += low <= 0.6 <= high
    assert 0.91 <= covered / 400 <= 0.985


def test_spearman_equals_scipy_and_has_an_interval() -> None:
    rng = np.random.default_rng()
    golds = rng.integers(0, 6, 80).astype(float)  # with ties
    answers = np.round(golds + rng.normal(0, 2, 80), 1)
    value, low, high = spearman(answers, golds, None, 1000, 1)
    assert value == pytest.approx(spearmanr(answers, golds).statistic)
    assert low is not None and high is not None and -1 <= low < value < high <= 1
    # Fisher's z, an independent approximation of the same width (Bonett & Wright 2000 for ranks)
    half = 1.96 * math.sqrt((1 + value**2 / 2) / (80 - 3))
    expected = math.tanh(math.atanh(value) + half) - math.tanh(math.atanh(value) - half)
    assert high - low == pytest.approx(expected, rel=0.4)
    labels = [f"c{n // 8}" for n in range(80)]
    assert spearman(answers, golds, labels, 1000, 1)[1:] != (low, high)


def test_spearman_of_what_does_not_vary() -> None:
    golds = np.arange(10.0)
    assert spearman(np.zeros(10), golds, None, 200, 1) == (0.0, None, None)
    assert spearman(golds, np.ones(10), None, 200, 1) == (0.0, None, None)
    assert spearman(golds[:4], golds[:4], None, 200, 1) == (pytest.approx(1.0), None, None)
    assert spearman(golds, golds, [f"c{n // 5}" for n in range(10)], 200, 1)[1:] == (None, None)


def row(task: str, value: float, group: str = "domain", metric: str = "accuracy") -> Row:
    return Row(task=task, group=group, split="test", metric=metric, value=value, low=0.0, high=1.0, items=10, shots=0)


def test_gains_are_points_per_group() -> None:
    base = [
        row("a", 0.20),
        row("b", 0.50),
        row("h", 1.0, "domain", "bits_per_byte"),
        row("g", 2.0, "general", "bits_per_byte"),
        row("f", 4.0, "general", "bits_per_byte"),
    ]
    new = [
        row("f", 4.4, "general", "bits_per_byte"),
        row("g", 1.9, "general", "bits_per_byte"),
        row("b", 0.56),
        row("a", 0.24),
        row("h", 0.1, "domain", "bits_per_byte"),
    ]
    found = gains(new, base)
    assert list(found) == ["domain", "general"]
    assert found["domain"] == pytest.approx(5.0)  # accuracies alone count where there are any
    assert found["general"] == pytest.approx((5.0 - 10.0) / 2)
    assert gains(base, base) == {"domain": 0.0, "general": 0.0}


@pytest.mark.parametrize(
    "change", [{"items": 9}, {"shots": 3}, {"split": "validation"}, {"metric": "accuracy_norm"}, {"task": "z"}]
)
def test_gains_of_other_items_are_refused(change: dict[str, object]) -> None:
    base = [row("a", 0.2), row("b", 0.5)]
    with pytest.raises(RequestError, match="do not cover the same tasks and items: b"):
        gains([base[0], replace(base[1], **change)], base)  # type: ignore[arg-type]


def test_gains_count_the_first_metric_of_domain_and_general_alone() -> None:
    base, new = [row("a", 0.2), row("g", 0.5, "general")], [row("a", 0.3), row("g", 0.4, "general")]
    beside = replace(row("a", 0.9, metric="accuracy_norm"), primary=False)
    control = row("a~permuted", 0.9, "control")
    assert gains([*new, beside, control], [*base, replace(beside, value=0.1)]) == gains(new, base)
    assert gains([control], [control]) == {}
    with pytest.raises(RequestError, match="cover the same tasks and items: a differ"):
        gains([replace(new[0], shots_from_test=True), new[1]], base)


def test_gains_of_fewer_or_repeated_rows_are_refused() -> None:
    base = [row("a", 0.2), row("b", 0.5)]
    with pytest.raises(RequestError, match="cover the same"):
        gains(base[:1], base)
    with pytest.raises(RequestError, match="twice"):
        gains([base[0], base[0]], base)
