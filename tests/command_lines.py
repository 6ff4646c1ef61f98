"""Command lines that texts show to a reader, and whether the real command line takes them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import click
import pytest
from click.testing import CliRunner

from frbio_lite.cli import main


def command_lines(text: str) -> list[str]:
    """The lines of a text that begin with `frbio`, with or without a prompt, joined where they go on after a backslash."""
    joined = re.sub(r"\\\n\s*", " ", text)
    return [found[1].strip() for found in re.finditer(r"^\s*[!$]?\s*(frbio .+)$", joined, re.MULTILINE)]


def leaves(
    command: click.Command = main, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """(path, command) of every command that does something."""
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from leaves(child, (*path, name))
    else:
        yield path, command


def values_of(line: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a command would be called with. Fails where the command line refuses it."""
    called: list[dict[str, Any]] = []
    with monkeypatch.context() as patch:
        for _, command in leaves():
            patch.setattr(command, "callback", lambda **values: called.append(values))
        result = CliRunner().invoke(main, shlex.split(line)[1:])
    assert result.exit_code == 0 and len(called) == 1, f"{line}: {result.output}"
    return called[0]
