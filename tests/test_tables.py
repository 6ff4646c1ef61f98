"""Tables and verdicts on a terminal: whole words, inside its width, numbers under each other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from frbio_lite import memory
from frbio_lite.cli import main
from frbio_lite.cli.common import print_table
from frbio_lite.cli.plan import UNCHECKED
from frbio_lite.device import LIBRARIES, Check, examine, verdict

ROWS = [
    ["mmlu-med-fr-professional-medicine", "core-fr medical-fr", "bits_per_byte", "11,759", "cc-by-sa-4.0"],
    ["a", "", "accuracy", "9", "other (free use with attribution)"],
]
HEAD = ["task", "sets", "scoring", "items", "license"]


def shown(capsys: pytest.CaptureFixture[str], rows: list[list[str]], head: list[str], **how: list[int]) -> list[str]:
    print_table(head, rows, **how)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("columns", [79, 80, 100, 200])
def test_words_stay_whole_and_lines_inside(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = shown(capsys, ROWS, HEAD, numbers=[3])
    assert max(map(len, lines)) <= columns
    words = " ".join(lines).split()
    assert all(word in words for row in ROWS for cell in row for word in cell.split())
    ends = [line.index(number) + len(number) for line in lines for number in ("11,759", " 9 ") if number in line]
    assert len(ends) == 2 and ends[0] == ends[1] - 1


def test_what_is_too_long_for_the_terminal_is_folded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    path = "/somewhere" * 12
    lines = shown(capsys, [["disk", path]], ["what", "detail"])
    assert max(map(len, lines)) <= 40
    assert "".join(line[5:].strip() for line in lines[2:]) == path
    lines = shown(capsys, [["x" * 30] * 9], list("abcdefghi"))
    assert max(map(len, lines)) <= 40


def test_a_cell_may_hold_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = shown(capsys, [["demo", "0.647\n0.573 – 0.715"]], ["task", "adapted"])
    assert [line.strip() for line in lines[2:4]] == ["demo  0.647", "0.573 – 0.715"]


@pytest.mark.parametrize(
    ("without", "said"),
    [
        ((), "on the GPU"),
        (("gpu", "kernels"), "on the CPU"),
        (("peft", "gpu", "datasets"), "pip install peft datasets"),
    ],
)
def test_the_doctor_ends_with_what_to_do(without: tuple[str, ...], said: str) -> None:
    checks = [Check(name, name not in without, "") for name in ("gpu", "kernels", "unsloth", *LIBRARIES)]
    assert said in verdict(checks)


def test_the_doctor_says_the_same_in_both_forms() -> None:
    told = json.loads(CliRunner().invoke(main, ["doctor", "--json"]).stdout)
    page = CliRunner().invoke(main, ["doctor"]).stdout
    assert set(told) >= {"gpu", "disk", "hub", *LIBRARIES}
    for name, check in told.items():
        line = next(line for line in page.splitlines() if line.startswith(name))
        assert line.split()[1] == ("yes" if check["ok"] else "no")
    assert page.rstrip().endswith(verdict(examine(Path("runs"))))


@pytest.mark.parametrize("card", [["--gpu", "T4"], ["--vram", "0.5"], []], ids=["fits", "does not", "all cards"])
def test_plans_fit_80_columns(card: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(memory, "card_at_hand", lambda: None)
    small = ["--set", "packing.sequence_length=64", "--set", "train.tokens_per_step=128"]
    result = CliRunner().invoke(main, ["plan", "demo", *card, *small])
    assert result.exit_code == 0, result.output
    tables, sentence = result.stdout.rstrip().rsplit("\n", 1)
    assert max(map(len, tables.splitlines())) <= 80 and sentence.startswith(UNCHECKED)
    if card == ["--gpu", "T4"]:
        assert "micro-batch  2 windows" in result.stdout and "fits the 14.70 GiB of T4 16GB" in result.stdout
