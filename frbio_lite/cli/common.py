"""What several verbs share: options, values from text, tables."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from frbio_lite.cli import completion
from frbio_lite.progress import fit

F = TypeVar("F", bound=Callable[..., Any])


class Shots(click.ParamType[Any]):
    """A number of examples, or `paper`."""

    name = "N|paper"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return self.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "paper" else click.INT.convert(value, param, ctx)


def recipe_options(command: F) -> F:
    command = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Change one value of the recipe, e.g. train.tokens=1_000_000 (repeatable).",
    )(command)
    return click.argument("recipe", shell_complete=completion.RECIPE)(command)


def data_options(command: F) -> F:
    command = click.option(
        "--data",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        help="Local copies of the benchmarks: DIR/TASK/test.jsonl, validation.jsonl, shots.jsonl.",
    )(command)
    command = click.option(
        "--corpus",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        help="A run's corpus directory, for the tasks on held-out text.",
    )(command)
    return click.option("--offline", is_flag=True, help="Use local data only.")(command)


def interval(low: float | None, high: float | None) -> str:
    return "too few" if low is None or high is None else f"{low:.3f} – {high:.3f}"


def print_text(text: str) -> None:
    """Print a sentence, on a terminal broken between words."""
    click.echo(fit(text, sys.stdout))


def print_table(head: list[str], rows: list[list[str]], numbers: Sequence[int] = ()) -> None:
    """Print a table within the terminal's width, cells broken between words; the columns `numbers` are aligned right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    columns = list(zip(head, *rows, strict=True))
    widths, padding = _widths(columns, console.width)
    table = Table(box=box.SIMPLE, show_header=any(head), show_edge=False, pad_edge=False, padding=(0, padding, 0, 0))
    for i, (title, width) in enumerate(zip(head, widths, strict=True)):
        table.add_column(title, width=width, overflow="fold", justify="right" if i in numbers else "left")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    console.print()


def _widths(columns: Sequence[Sequence[str]], room: int) -> tuple[list[int], int]:
    """Widths of the columns and of the padding beside the blank between them, so that a table takes no more than `room`.

    The widest columns give way first, down to their longest words; then the padding; then words are folded.
    """
    widths = [max(len(line) for cell in column for line in cell.split("\n")) for column in columns]
    least = [max((len(word) for cell in column for word in cell.split()), default=1) for column in columns]
    gaps = len(columns) - 1
    padding = int(sum(least) + 2 * gaps <= room)
    while sum(widths) + (1 + padding) * gaps > room:
        wide = [i for i, width in enumerate(widths) if width > least[i]] or range(len(widths))
        widest = max(wide, key=widths.__getitem__)
        if widths[widest] == 1:
            break
        widths[widest] -= 1
    return widths, padding
