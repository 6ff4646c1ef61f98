"""Under which license a base stands: what its own card says, else what is known of the published bases, else unknown."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

# As their cards on the Hub say.
PUBLISHED = {
    "Qwen/Qwen3-0.6B-Base": "apache-2.0",
    "Qwen/Qwen3-1.7B-Base": "apache-2.0",
    "Qwen/Qwen3-4B-Base": "apache-2.0",
    "Qwen/Qwen3-8B-Base": "apache-2.0",
    "HuggingFaceTB/SmolLM3-3B-Base": "apache-2.0",
    "google/gemma-3-1b-pt": "gemma",
    "google/gemma-3-4b-pt": "gemma",
    "meta-llama/Llama-3.2-1B": "llama3.2",
    "meta-llama/Llama-3.2-3B": "llama3.2",
}
OTHER, UNKNOWN = "other", "unknown"
IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,60}")
FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)


@dataclass(frozen=True)
class License:
    """In the Hub's terms: an identifier, and a name where that is `other`."""

    license: str = OTHER
    name: str | None = UNKNOWN
    link: str | None = None

    def __str__(self) -> str:
        return (self.name or OTHER) if self.license == OTHER else self.license


def front_matter(directory: Path) -> dict[str, Any]:
    """The metadata of a directory's README.md; empty where there is no card, or none that can be read."""
    try:
        found = FRONT_MATTER.match((directory / "README.md").read_text(encoding="utf-8"))
        data = yaml.safe_load(found[1]) if found else None
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def stated(directory: Path) -> License | None:
    """The license that a model's own card states; None where it states none."""
    data = front_matter(directory)
    license, name, link = (data.get(key) for key in ("license", "license_name", "license_link"))
    if not isinstance(license, str) or not IDENTIFIER.fullmatch(license):
        return None
    if license.lower() != OTHER:
        return License(license.lower(), None)
    named = isinstance(name, str) and IDENTIFIER.fullmatch(name)
    return License(OTHER, str(name) if named else UNKNOWN, link if isinstance(link, str) and named else None)


def license_of(name: str | None, directory: Path | None) -> License:
    """Of a base, by its Hub id and its directory, as far as they are known."""
    found = stated(directory) if directory is not None else None
    if found is None and name in PUBLISHED:
        found = License(PUBLISHED[name], None)
    return found or License()
