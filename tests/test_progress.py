"""Progress off a terminal: plain lines, not before their time, with rate, time left and figures."""

from __future__ import annotations

import io
import sys
import warnings

import pytest

from frbio_lite import progress


class Terminal(io.StringIO):
    """What a person sees: a stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stderr", seen := Terminal())
    return seen


def test_short_work_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.Progress("score", 3, "items") as bar:
        for _ in range(3):
            bar.advance()
    assert capsys.readouterr().err == ""


def test_long_work_prints_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress.Progress("train", 600_000, "tokens", initial=100_000) as bar:
        for _ in range(50):
            now += 1.0
            bar.advance(5_000, loss=1.23456)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "train: 150,000/600,000 tokens, 5,000 tokens/s, 90 s left, loss 1.235"
    assert len(lines) == 5


def test_unknown_totals_show_no_time_left(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress.Progress("corpus", None, "documents") as bar:
        now = 20.0
        bar.advance(30)
    assert capsys.readouterr().err == "corpus: 30 documents, 1.5 documents/s\n"


SENTENCE = (
    "Compared with base, adapted gained on domain (+41.2 points, +31.1 to +51.1, 1 task) and is degraded on general."
)


def test_sentences_break_between_words_on_a_terminal_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = terminal(monkeypatch)
    lines = progress.fit(f"{SENTENCE}\n\n{SENTENCE}", seen).split("\n")
    assert max(map(len, lines)) <= 80 and lines[2] == ""
    assert " ".join(lines[:2]) == SENTENCE == " ".join(lines[3:])
    path = "/a" * 60
    assert progress.fit(f"report: {path}", seen).split("\n") == ["report:", path]  # a path can still be copied
    assert progress.fit(SENTENCE, io.StringIO()) == SENTENCE


def test_an_estimate_that_falls_short_is_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = terminal(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with progress.Progress("corpus", 1.01, "MB") as bar:
            bar.bar.delay, bar.bar.start_t = 0, bar.bar.start_t - 10
            for _ in range(3):
                bar.advance(0.4)
                bar.bar.refresh()
    assert "1.20/1.20" in seen.getvalue() and "MB/s" in seen.getvalue()
    assert "s/ MB" not in seen.getvalue()


@pytest.mark.parametrize(("total", "shown"), [(224, "80/224"), (600_000, "80.0/600k")])
def test_items_are_counted_whole(total: int, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = terminal(monkeypatch)
    with progress.Progress("evaluate", total, "item") as bar:
        bar.bar.delay, bar.bar.start_t = 0, bar.bar.start_t - 10
        bar.advance(80)
        bar.bar.refresh()
    assert shown in seen.getvalue()
    assert all(len(line) <= 80 for line in seen.getvalue().split("\r"))
