"""A LoRA adapter at part of its scaling: Hu et al. 2021, arXiv 2106.09685, section 4.1 (W + s · B A, s times the ratio).

Merged, it is the linear method; live, a ratio is one number per layer and costs nothing, also on a 4-bit base.
"""

from __future__ import annotations


def coefficients(ratio: float) -> tuple[float, float]:
    """Of the base and of the base with its whole adapter."""
    return 1.0 - ratio, ratio
