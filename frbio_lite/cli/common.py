"""What several verbs share: options, values from text, tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


class Shots(click.ParamType[Any]):
    """A number of examples, or `paper`."""

    name = "N|paper"

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
    return click.argument("recipe")(command)


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


def print_table(head: list[str], rows: list[list[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, show_header=any(head), show_edge=False, pad_edge=False, collapse_padding=True)
    for i, title in enumerate(head):
        table.add_column(title, overflow="fold", no_wrap=i == 0)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console()
    console.print(table)
    console.print()
