"""Duplicates: equal texts, or texts that share most of their word n-grams; the first in the order of the sources stays.

`minhash` follows Broder, "On the resemblance and containment of documents" (1997): sketches of 128 hashes, candidates
by locality-sensitive hashing in bands, and a candidate counts only when its estimated Jaccard similarity reaches the
threshold. Texts are never kept: 16 bytes per document, and for `minhash` 512 bytes of sketch besides.
"""

from __future__ import annotations

import hashlib
import re

import numpy as np
from numpy.typing import NDArray

from frbio_lite.recipe import Deduplicate

HASHES = 128
SKETCH_SEED = 42
RECALL = 0.99  # of the pairs exactly at the threshold, at least this share must become candidates
WORD = re.compile(r"\w+")


def text_digest(text: str) -> bytes:
    """16 bytes that are equal for texts that differ in white space alone."""
    return hashlib.blake2b(" ".join(text.split()).encode("utf-8"), digest_size=16).digest()


def bands_for(threshold: float) -> int:
    """Bands of the sketch: the fewest (hence the fewest false candidates) that reach RECALL at the threshold.

    A pair of similarity s shares one of b bands of r hashes with probability 1 - (1 - s^r)^b.
    """
    for bands in (1, 2, 4, 8, 16, 32, 64):
        if 1 - (1 - threshold ** (HASHES // bands)) ** bands >= RECALL:
            return bands
    return HASHES


class Deduplicator:
    """`reason(text)`: why a text is dropped as a duplicate of an earlier one, or "" and the text is remembered."""

    def __init__(self, settings: Deduplicate) -> None:
        self.settings = settings
        self.seen: set[bytes] = set()
        self.sketches: list[NDArray[np.uint32]] = []
        if settings.method == "minhash":
            from rensa import RMinHashLSH

            self.index = RMinHashLSH(settings.threshold, HASHES, bands_for(settings.threshold))

    def reason(self, text: str) -> str:
        if self.settings.method == "none":
            return ""
        digest = text_digest(text)
        if digest in self.seen:
            return "duplicate"
        if self.settings.method == "minhash" and self._is_near(text):
            return "near-duplicate"
        self.seen.add(digest)
        return ""

    def _is_near(self, text: str) -> bool:
        """Whether an earlier text is similar enough; if not, the sketch is kept. Shorter than one n-gram: no sketch."""
        from rensa import RMinHash

        words = WORD.findall(text.casefold())
        n = self.settings.ngram
        if len(words) < n:
            return False
        sketch = RMinHash(HASHES, SKETCH_SEED)
        sketch.update([" ".join(words[i : i + n]) for i in range(len(words) - n + 1)])
        digest = np.array(sketch.digest(), dtype=np.uint32)
        for candidate in self.index.query(sketch):
            if float(np.mean(self.sketches[candidate] == digest)) >= self.settings.threshold:
                return True
        self.index.insert(len(self.sketches), sketch)
        self.sketches.append(digest)
        return False
