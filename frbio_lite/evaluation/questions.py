"""The questions that ship with the package: `questions/{medical,general}/*.yaml`, one file for each specialty.

They were written for this project; the card beside them, questions/README.md, says what they are and are not.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from itertools import zip_longest
from typing import Any, Literal

import yaml

from frbio_lite.artifacts import canonical_hash

Part = Literal["medical", "general"]


def load_questions(part: Part) -> list[dict[str, Any]]:
    """The questions of a part, those of its specialties in turn, so that the first few are of as many specialties.

    Keys: id, specialty, question, justification (text), difficulty (1 to 3), split (validation, test), options (five
    texts), answers (ascending positions in them, from 0).
    """
    return [dict(row) for row in _loaded(part)]


@lru_cache(maxsize=2)
def _loaded(part: Part) -> tuple[dict[str, Any], ...]:
    folder = resources.files("frbio_lite.evaluation").joinpath("questions", part)
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    by_specialty = [yaml.safe_load(f.read_text(encoding="utf-8")) for f in files]
    return tuple(row for turn in zip_longest(*by_specialty) for row in turn if row is not None)


def digest(part: Part) -> str:
    """Hash of all questions of a part."""
    return canonical_hash(load_questions(part))
