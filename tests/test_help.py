"""What the help shows can be typed: each command has an example, and the command line takes it."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from command_lines import command_lines, leaves, values_of

from frbio_lite.cli import main
from frbio_lite.evaluation import load_tasks
from frbio_lite.recipe import shipped_recipes

COMMANDS = [pytest.param(path, command, id=" ".join(path)) for path, command in leaves()]


@pytest.fixture
def at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory with the files that the examples take as being there."""
    (tmp_path / "mergekit.yaml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.parametrize(("path", "command"), COMMANDS)
@pytest.mark.usefixtures("at_work")
def test_each_command_shows_examples_that_work(
    path: tuple[str, ...], command: click.Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = CliRunner().invoke(main, [*path, "--help"]).output
    examples = command_lines(text)
    assert examples, "no example"
    for line in examples:
        assert line.split()[1 : 1 + len(path)] == list(path), line
        values = values_of(line, monkeypatch)
        recipe = values.get("recipe")
        assert recipe is None or recipe in shipped_recipes() or recipe == "mine.yaml", line
        load_tasks([name for name in (values.get("tasks") or "").split(",") if name])


@pytest.mark.parametrize(("path", "command"), COMMANDS)
@pytest.mark.usefixtures("at_work")
def test_help_fits_80_columns(path: tuple[str, ...], command: click.Command) -> None:
    lines = CliRunner().invoke(main, [*path, "--help"]).output.splitlines()
    assert max(map(len, lines)) <= 80, [line for line in lines if len(line) > 80]
    assert not any("INTEGER RANGE" in line for line in lines)


@pytest.mark.parametrize("group", [[], ["tasks"], ["recipes"]], ids=str)
@pytest.mark.usefixtures("at_work")
def test_lists_of_commands_say_whole_sentences(group: list[str]) -> None:
    listed = CliRunner().invoke(main, [*group, "--help"]).output.split("Commands:")[1].splitlines()
    assert len(listed) > 3 and not [line for line in listed if line.endswith("...")]
