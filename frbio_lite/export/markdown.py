"""Untrusted text in Markdown: whatever a name or a file holds, it stays text where it stands.

Templates escape every value unless it is `Markdown`, which only this module and the template itself make.
"""

from __future__ import annotations

import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~$&@])")
SCHEME = re.compile(r"(?i)(\b(?:https?|ftp)|\bwww)([:.])")  # what GitHub and the Hub turn into links by themselves
ABSENT = "–"


class Markdown(str):
    """Text that is Markdown already."""


def line(text: str) -> str:
    """On one line, without control characters and halves of surrogate pairs."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def escape(value: Any) -> Markdown:
    """Text, on one line, as Markdown that shows just it."""
    return Markdown(SCHEME.sub(r"\1\\\2", SPECIAL.sub(r"\\\1", line(str(value)))))


def code(value: Any) -> Markdown:
    """A name in code style, also within a table: what would end either is replaced by what looks like it."""
    return Markdown(f"`{line(str(value)).replace('`', chr(39)).replace('|', '/') or ABSENT}`")


def block(text: str) -> Markdown:
    """Lines of code, indented: so a text cannot end its own block, whatever it holds."""
    lines = ("".join(c if c.isprintable() or c == "\t" else " " for c in row) for row in text.split("\n"))
    return Markdown("\n".join(f"    {row}".rstrip() for row in lines))


def render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("frbio_lite.export"),
        finalize=lambda value: value if isinstance(value, Markdown) else escape(value),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(code=code, block=block)
    return environment.get_template(template).render(**values)
