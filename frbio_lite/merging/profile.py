"""A ratio that varies over the model: by tensor name and by depth.

self_attn=0,0.5,0.3,0.7,1     tensors with self_attn in their name: these values, spread evenly over the layers
mlp=1,0.5,0.7,0.3,0
*=0.5                         all others
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from frbio_lite.errors import RequestError

LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
EVERYTHING = "*"


def layer_of(name: str) -> int | None:
    """The number of the layer a tensor belongs to; None for embedding, final norm and head."""
    found = LAYER.search(name)
    return int(found[1]) if found else None


def depth_of(name: str, layers: int) -> float:
    """From 0, the first layer, to 1, the last; 0 for tensors of no layer and 1 for a single layer, as in mergekit."""
    layer = layer_of(name)
    if layer is None:
        return 0.0
    return layer / (layers - 1) if layers > 1 else 1.0


def interpolate(values: Sequence[float], depth: float) -> float:
    """The value at `depth` in [0, 1] on the line through `values` at equal distances."""
    place = depth * (len(values) - 1)
    below = min(int(place), len(values) - 1)
    above = min(below + 1, len(values) - 1)
    share = place - below
    return (1.0 - share) * values[below] + share * values[above]


@dataclass(frozen=True)
class Profile:
    """(part of a tensor's name or `*`, values over depth) pairs; the first that matches a tensor counts, else 1."""

    entries: tuple[tuple[str, tuple[float, ...]], ...] = ()

    def at(self, name: str, layers: int) -> float:
        """What the ratio is multiplied by for a tensor of a model with this many layers."""
        for part, values in self.entries:
            if part == EVERYTHING or part in name:
                return interpolate(values, depth_of(name, layers))
        return 1.0


def parse_profile(texts: Sequence[str]) -> Profile:
    """Each `PART=VALUE,VALUE,…`. Raises RequestError for anything that is not values between 0 and 1."""
    return Profile(tuple(_parse_entry(text) for text in texts))


def _parse_entry(text: str) -> tuple[str, tuple[float, ...]]:
    part, sign, listed = (p.strip() for p in text.partition("="))
    try:
        values = tuple(float(v) for v in listed.split(","))
    except ValueError:
        values = ()
    if not sign or not part or not values:
        raise RequestError(f"profile '{text}': write PART=VALUES, such as self_attn=0,0.5,1 or '*=0.5'")
    if not all(0.0 <= v <= 1.0 for v in values):
        raise RequestError(f"profile '{text}': its values multiply the ratio and lie between 0 and 1")
    return part, values
