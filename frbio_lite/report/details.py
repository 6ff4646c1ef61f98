"""Figures of unknown shape, from manifests and the funnel, as lists of pairs and small tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from frbio_lite.report import format as fmt
from frbio_lite.report.language import _, integer, ngettext
from frbio_lite.report.terms import FIGURES

MOST_FIGURES = 60


@dataclass(frozen=True)
class Table:
    """`rows`: a name and a text per column."""

    title: str
    columns: list[str]
    rows: list[tuple[str, list[str]]]


@dataclass(frozen=True)
class Details:
    pairs: list[tuple[str, str]]
    tables: list[Table]


def details(values: Mapping[str, Any]) -> Details:
    """Mappings of mappings, such as counts by source and reason, as tables; all else as pairs."""
    crossed = {key: value for key, value in values.items() if _is_crossed(value)}
    flat = list(_flatten({key: value for key, value in values.items() if key not in crossed}))
    shown = flat[:MOST_FIGURES]
    pairs = [(" › ".join(map(fmt.label, path)), fmt.figure(path[-1], value)) for path, value in shown]
    if len(flat) > MOST_FIGURES:
        more = len(flat) - MOST_FIGURES
        pairs.append((_("not shown"), ngettext("{n} more", "{n} more", more).format(n=integer(more))))
    return Details(pairs, [_table(key, value) for key, value in crossed.items()])


def kernels(found: Any) -> dict[str, str]:
    """How many modules run which fused kernel, and what keeps its own code, and why: each in a line, where it is told."""
    named = {"fused kernels": "swapped", "without fused kernel": "plain"}
    lists = {title: found.get(key) if isinstance(found, Mapping) else None for title, key in named.items()}
    return {
        title: _("; ").join(_of_modules(name, fmt.figure("", value)) for name, value in told.items())
        for title, told in lists.items()
        if isinstance(told, Mapping) and told
    }


def _of_modules(name: str, value: str) -> str:
    return value if name == "all" else _("{name}: {value}").format(name=name, value=value)


def _is_crossed(value: Any) -> bool:
    return isinstance(value, Mapping) and len(value) > 0 and all(isinstance(inner, Mapping) for inner in value.values())


def _table(title: str, value: Mapping[str, Mapping[str, Any]]) -> Table:
    """Whichever there are more of, outer or inner names, stand as rows."""
    inner = list(dict.fromkeys(key for counts in value.values() for key in counts))
    outer = list(value)
    title = fmt.capitalized(fmt.label(title))
    if not inner:
        return Table(title, [], [])  # nothing was counted for anyone

    def text(column: str, key: str) -> str:
        return fmt.figure(key, value[column].get(key))

    names = [_(name) if name in FIGURES else name for name in outer]  # sources stand as they are called
    if len(outer) > len(inner):
        rows = [(name, [text(key, column) for column in inner]) for name, key in zip(names, outer, strict=True)]
        return Table(title, [fmt.label(key) for key in inner], rows)
    return Table(title, names, [(fmt.label(key), [text(name, key) for name in outer]) for key in inner])


def _flatten(value: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, child in value.items():
        if isinstance(child, Mapping):
            yield from _flatten(child, (*path, key))
        else:
            yield (*path, key), child
