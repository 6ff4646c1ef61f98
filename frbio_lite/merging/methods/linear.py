"""Weighted average of weights: Wortsman et al. 2022, "Model soups", arXiv 2203.05482."""

from __future__ import annotations

from collections.abc import Sequence


def coefficients(weights: Sequence[float], normalize: bool = True) -> list[float]:
    """The weights themselves, or divided by their sum. Raises ZeroDivisionError when that sum is zero."""
    total = sum(weights) if normalize else 1.0
    return [w / total for w in weights]
