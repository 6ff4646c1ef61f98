"""The verbs that score and compare: eval, compare, tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from frbio_lite import api
from frbio_lite.cli import completion
from frbio_lite.cli.common import Shots, data_options, interval, print_table, print_text
from frbio_lite.errors import RequestError

CONTROLS = "permuted, prior, contamination"


@click.command("eval", short_help="Score a model on benchmarks.")
@click.option("--model", required=True, help="A directory, a Hub id, or demo.", shell_complete=completion.MODEL)
@click.option("--adapter", help="A live adapter on the model.", shell_complete=completion.DIRECTORY)
@click.option("--tasks", required=True, help="Comma-separated tasks or sets.", shell_complete=completion.TASKS)
@click.option("--split", type=click.Choice(["validation", "test"]), default="test", help="The items to score.")
@click.option(
    "--shots",
    type=Shots(),
    default=0,
    help="Examples before each question, never from the test split; paper: 3, 4 or 5 by task, as arXiv 2604.06903 has.",
)
@click.option("--parity", is_flag=True, help="Draw the examples as lm-evaluation-harness does.")
@click.option(
    "--shots-from-test", is_flag=True, help="Where no examples are published, show other test items; flagged."
)
@click.option("--chat-template", is_flag=True, help="Ask as a user does, in the tokenizer's chat template.")
@click.option(
    "--controls", default="", show_default=False, help=f"Comma-separated checks beside the scores: {CONTROLS}."
)
@click.option("--limit", type=int, help="Items per task.")
@click.option("--against", type=click.Path(path_type=Path), help="Results of another model to compare with at the end.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Where the results go.")
@data_options
def eval_command(against: Path | None, out: Path, **options: Any) -> None:
    """Score a model on benchmarks; a second call continues where it stopped.

    \b
    frbio eval --model demo --tasks core-fr --offline --out scores/base
    frbio eval --model runs/demo/train --tasks core-fr --offline \\
               --out scores/adapted --against scores/base
    """
    rows = api.evaluate(out=out, **options)
    print_table(
        ["task", "metric", "value", "95 % interval", "items"],
        [[r.task, r.metric, f"{r.value:.3f}", interval(r.low, r.high), f"{r.items:,}"] for r in rows],
        numbers=[4],
    )
    if against is not None:
        _print_comparison((against, out), 1.0, None)


@click.command("compare", short_help="Compare results of the same items, with tests and a verdict.")
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--margin", type=float, default=1.0, help="Points that may be lost and still count as kept.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Also write compare.json and compare.csv there; RUN/eval is where `frbio report` looks.",
)
def compare_command(results: tuple[Path, ...], margin: float, out: Path | None) -> None:
    """Compare results of the same items, question by question; the first is what the others are measured against.

    Differences in bits per byte carry a percent sign: percent of the bits that are saved. p is corrected for the
    number of tests; MDE is the minimum detectable effect, what a test would have found four times in five.

    \b
    frbio compare runs/demo/eval/base runs/demo/eval/adapted runs/demo/eval/merged
    """
    _print_comparison(results, margin, out)


def _print_comparison(results: tuple[Path, ...], margin: float, out: Path | None) -> None:
    from frbio_lite.evaluation.compare import group_table, task_table

    found = api.compare(results, margin=margin, out=out)
    for table in (task_table(found), group_table(found)):
        print_table(table[0], table[1:])
    print_text(found.verdict)


@click.group("tasks")
def tasks_group() -> None:
    """The benchmarks: list, show, check, fetch."""


@tasks_group.command("list", short_help="Name the tasks, with size, license and scoring.")
@click.argument("names", nargs=-1, shell_complete=completion.TASK)
def tasks_list(names: tuple[str, ...]) -> None:
    """Name the tasks, all or those of the given sets, with size, license and scoring.

    \b
    frbio tasks list core-fr
    """
    from frbio_lite.evaluation.fetch import describe

    print_table(
        ["task", "sets", "scoring", "items", "license"],
        [[t.name, " ".join(t.sets), t.metric, f"{t.items:,}" if t.items else "", t.license] for t in describe(names)],
        numbers=[3],
    )


@tasks_group.command("show", short_help="Print a task.")
@click.argument("name", shell_complete=completion.TASK)
def tasks_show(name: str) -> None:
    """Print a task: where its items come from, its prompt, its scoring.

    \b
    frbio tasks show mediqal-mcqu
    """
    from frbio_lite.evaluation.fetch import show

    click.echo(show(name), nl=False)


@tasks_group.command("check", short_help="Validate a task of yours.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Local copies of its data.")
def tasks_check(file: Path, data: Path | None) -> None:
    """Validate a task of yours and, where its data is at hand, load its first items and show a prompt.

    \b
    frbio tasks check my-task.yaml
    """
    from frbio_lite.evaluation.fetch import check

    findings = check(file, data)
    for finding in findings:
        click.echo(f"{finding.level}: {finding.text}")
    if any(finding.level == "error" for finding in findings):
        raise RequestError(f"{file} cannot be used as it is")


@tasks_group.command("fetch", short_help="Copy the data of tasks, for work without a network.")
@click.argument("names", nargs=-1, required=True, shell_complete=completion.TASK)
@click.option("--to", "directory", required=True, type=click.Path(path_type=Path), help="What --data will name later.")
def tasks_fetch(names: tuple[str, ...], directory: Path) -> None:
    """Copy the data of tasks, with its license, for work without a network; goes on where it stopped.

    \b
    frbio tasks fetch core-fr --to benchmarks-data
    """
    from frbio_lite.evaluation.fetch import fetch_tasks

    copied = fetch_tasks(names, directory)
    print_table(
        ["task", "split", "status", "items"],
        [[c.task, c.split, c.status, "" if c.items is None else f"{c.items:,}"] for c in copied],
        numbers=[3],
    )
