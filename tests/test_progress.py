"""Progress off a terminal: plain lines, not before their time, with rate, time left and figures."""

from __future__ import annotations

import pytest

from frbio_lite import progress


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
