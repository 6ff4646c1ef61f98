"""Which documents are held out: a share of each source for validation and test, whatever the other sources hold."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")
FEWEST = 3  # documents below which a source is not divided


def rank(seed: int, text: str) -> bytes:
    """8 bytes by which documents are ordered for the draw.

    They depend on the text and not on its identifier or place, so a document keeps its rank when files move or grow,
    and copies of one text fall together.
    """
    return hashlib.blake2b(text.encode("utf-8"), digest_size=8, key=str(seed).encode()).digest()


def assign(ranks: Sequence[bytes], strata: Sequence[str], validation: float, test: float) -> list[str]:
    """The split of each document of one source, given its rank and its stratum.

    floor(fraction × documents) are held out, at least one each, shared among the strata in proportion (largest
    remainder); within a stratum the lowest ranks go to validation and the next to test. Fewer than three documents are
    all for training.
    """
    splits = [TRAIN] * len(ranks)
    if len(ranks) < FEWEST:
        return splits
    members: dict[str, list[int]] = {}
    for index in sorted(range(len(ranks)), key=lambda i: (ranks[i], i)):
        members.setdefault(strata[index], []).append(index)
    names = sorted(members)
    left = [len(members[name]) for name in names]
    taken = [0] * len(names)
    for split, fraction in ((VALIDATION, validation), (TEST, test)):
        # the sum cannot reach all documents: each floor(f n) with f < 1/2 is below n / 2
        wanted = max(1, math.floor(fraction * len(ranks) + 1e-9))
        for i, quota in enumerate(largest_remainder(wanted, left)):
            for index in members[names[i]][taken[i] : taken[i] + quota]:
                splits[index] = split
            taken[i] += quota
            left[i] -= quota
    return splits


def largest_remainder(total: int, sizes: Sequence[int]) -> list[int]:
    """`total` units shared in proportion to `sizes`, whole units, none above its size (total ≤ sum of sizes)."""
    whole = sum(sizes)
    quotas = [total * size // whole for size in sizes]
    order = sorted(range(len(sizes)), key=lambda i: (-(total * sizes[i] % whole), i))
    for i in order[: total - sum(quotas)]:
        quotas[i] += 1
    return quotas
