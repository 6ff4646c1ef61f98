"""Spherical linear interpolation: Shoemake 1985, "Animating rotation with quaternion curves", here of weight tensors."""

from __future__ import annotations

import math

from frbio_lite.merging.gram import Gram

PARALLEL = 0.9995  # |cosine| above which slerp is linear (mergekit's threshold)


def is_linear(angle: float) -> bool:
    """Whether vectors at this angle (radians; NaN for a zero vector, which has no direction) are merged linearly."""
    return not abs(math.cos(angle)) <= PARALLEL


def coefficients(gram: Gram, t: float) -> tuple[float, float]:
    """sin((1−t)ω)/sin ω and sin(tω)/sin ω with ω the angle between the two tensors, for the tensors as they are.

    1 − t and t where they are nearly parallel or antiparallel; exactly (1, 0) and (0, 1) at the ends.
    """
    angle = gram.angle(1)
    if t in (0.0, 1.0) or is_linear(angle):
        return 1.0 - t, t
    return math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
