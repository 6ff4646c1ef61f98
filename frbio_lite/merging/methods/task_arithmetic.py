"""Base plus weighted task vectors (adapted − base): Ilharco et al. 2023, "Editing models with task arithmetic",
arXiv 2212.04089."""

from __future__ import annotations

from collections.abc import Sequence

TINY = 1e-8  # a sum of weights below this is not divided by


def coefficients(weights: Sequence[float], scale: float = 1.0, normalize: bool = False) -> list[float]:
    """Of the base and the adapted models, for base + scale · Σ weightᵢ · (adaptedᵢ − base); `normalize` divides by Σ weight."""
    total = sum(weights)
    factor = scale / total if normalize and abs(total) >= TINY else scale
    parts = [factor * w for w in weights]
    return [1.0 - sum(parts), *parts]
