"""Spherical interpolation down to the smallest angle, of tensors or of task vectors: NuSLERP, from mergekit.

It differs from slerp in that nearly parallel tensors are interpolated on the arc too, and in that the task vectors of
two models can be interpolated on their own sphere around the base.
"""

from __future__ import annotations

import math

from frbio_lite.merging.gram import OPPOSITE, Gram


def coefficients(gram: Gram, t: float) -> tuple[float, float]:
    """Of the first and the second tensor: sin((1−t)ω)/sin ω and sin(tω)/sin ω, exactly (1, 0) and (0, 1) at the ends.

    1 − t and t where they are collinear. A zero tensor has no direction; it counts as at right angles (as in mergekit).
    """
    return arc(gram.angle(1), t)


def of_task_vectors(gram: Gram, t: float, scale: float = 1.0) -> tuple[float, float, float]:
    """Of the base and two adapted models, for base + scale · the interpolation of their two differences from the base."""
    first, second = (scale * c for c in arc(gram.angle_of_differences(1, 2), t))
    return 1.0 - first - second, first, second


def arc(angle: float, t: float) -> tuple[float, float]:
    """sin((1−t)ω)/sin ω and sin(tω)/sin ω, at the angle ω in radians; NaN counts as a right angle."""
    if math.isnan(angle):
        angle = math.pi / 2
    if t in (0.0, 1.0) or angle == 0.0 or math.pi - angle < OPPOSITE:  # opposite ones: no arc is the shortest
        return 1.0 - t, t
    return math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
