"""Between the base and the average of models tuned from it, at a ratio that follows from the angle between their task
vectors: Jang et al. 2024, "Model Stock: All we need is just a few fine-tuned models", arXiv 2403.19522, equation 4."""

from __future__ import annotations

import itertools

from frbio_lite.merging.gram import Gram

SINGULAR = 1e-6  # a denominator below this: the task vectors cancel out, and the base is kept


def stock_ratio(gram: Gram) -> float:
    """t = N cos θ / (1 + (N − 1) cos θ), with the mean cosine over all pairs of N >= 2 task vectors; 0 where singular.

    A zero task vector has cosine 0 with all others.
    """
    models = gram.count - 1
    pairs = list(itertools.combinations(range(1, gram.count), 2))
    cosine = sum(_cosine(gram, i, j) for i, j in pairs) / len(pairs)
    denominator = 1.0 + (models - 1) * cosine
    return models * cosine / denominator if abs(denominator) >= SINGULAR else 0.0


def coefficients(gram: Gram, scale: float = 1.0) -> list[float]:
    """Of the base and the N adapted models, for base + scale · t · (average − base)."""
    t = scale * stock_ratio(gram)
    return [1.0 - t, *[t / (gram.count - 1)] * (gram.count - 1)]


def _cosine(gram: Gram, i: int, j: int) -> float:
    norms = gram.difference(i) * gram.difference(j)
    return max(-1.0, min(1.0, float(gram.matrix[i, j]) / norms)) if norms > 0.0 else 0.0
