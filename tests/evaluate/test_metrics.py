"""Intervals against scipy and by coverage; gains by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest

from frbio_lite.errors import RequestError
from frbio_lite.evaluate import metrics
from frbio_lite.evaluate.metrics import Row, bits_per_byte, bootstrap_ratio, gains, wilson


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


def test_gains_of_fewer_or_repeated_rows_are_refused() -> None:
    base = [row("a", 0.2), row("b", 0.5)]
    with pytest.raises(RequestError, match="cover the same"):
        gains(base[:1], base)
    with pytest.raises(RequestError, match="twice"):
        gains([base[0], base[0]], base)
