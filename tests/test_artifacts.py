"""Artifacts: whole or absent, recognised by their key, never at the cost of somebody's files."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from frbio_lite.artifacts import canonical_hash, is_current, locked, read_manifest, require_space, write_text, writing
from frbio_lite.errors import RequestError


def make(directory: Path, key: str = "k", text: str = "data", **how: object) -> None:
    with writing(directory, "Documents", key, settings={}, parents={}, seed=1, **how) as artifact:  # type: ignore[arg-type]
        (artifact.path / "sub").mkdir(exist_ok=True)
        (artifact.path / "sub" / "data.txt").write_text(text, encoding="utf-8")
        artifact.figures = {"documents": 3}


def test_a_finished_artifact_is_recognised_by_its_key(tmp_path: Path) -> None:
    make(tmp_path / "a")
    assert is_current(tmp_path / "a", "Documents", "k")
    assert not is_current(tmp_path / "a", "Documents", "other")
    assert not is_current(tmp_path / "a", "PackedTokens", "k")
    manifest = read_manifest(tmp_path / "a", "Documents")
    assert manifest.figures == {"documents": 3}
    assert manifest.files["sub/data.txt"].bytes == 4
    assert not (tmp_path / "a.partial").exists()


def test_missing_or_truncated_data_is_not_current(tmp_path: Path) -> None:
    make(tmp_path / "a")
    (tmp_path / "a" / "sub" / "data.txt").write_text("dat", encoding="utf-8")
    assert not is_current(tmp_path / "a", "Documents", "k")
    (tmp_path / "a" / "sub" / "data.txt").unlink()
    assert not is_current(tmp_path / "a", "Documents", "k")


def test_the_digest_follows_data_and_not_measured_files(tmp_path: Path) -> None:
    for name, text, log in (("a", "x", "1"), ("b", "x", "2"), ("c", "y", "1")):
        with writing(
            tmp_path / name, "Documents", "k", settings={}, parents={}, seed=1, measured=("log.jsonl",)
        ) as artifact:
            (artifact.path / "data").write_text(text, encoding="utf-8")
            (artifact.path / "log.jsonl").write_text(log, encoding="utf-8")
    a, b, c = (read_manifest(tmp_path / n, "Documents").digest for n in "abc")
    assert a == b != c


def test_a_failure_leaves_the_old_artifact_and_no_half_new_one(tmp_path: Path) -> None:
    make(tmp_path / "a", text="old")
    with (
        pytest.raises(ZeroDivisionError),
        writing(tmp_path / "a", "Documents", "k2", settings={}, parents={}, seed=1) as artifact,
    ):
        (artifact.path / "half").write_text("half", encoding="utf-8")
        raise ZeroDivisionError
    assert (tmp_path / "a" / "sub" / "data.txt").read_text(encoding="utf-8") == "old"
    assert is_current(tmp_path / "a", "Documents", "k")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


def test_resumable_work_waits_for_the_same_key_only(tmp_path: Path) -> None:
    def attempt(key: str) -> bool:
        """Whether the partial work of an earlier attempt was there."""
        with (
            pytest.raises(InterruptedError),
            writing(tmp_path / "a", "TrainedWeights", key, settings={}, parents={}, seed=1, resumable=True) as artifact,
        ):
            found = (artifact.path / "step").exists()
            (artifact.path / "step").touch()
            raise InterruptedError
        return found

    assert [attempt("k"), attempt("k"), attempt("other"), attempt("other")] == [False, True, False, True]
    assert not (tmp_path / "a").exists()


def test_other_peoples_directories_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(RequestError, match="not a Documents artifact"):
        make(tmp_path / "a")
    assert (tmp_path / "a" / "thesis.txt").read_text(encoding="utf-8") == "mine"
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(RequestError, match="not a Documents artifact"):
        make(tmp_path / "file")


def test_broken_manifests_are_named(tmp_path: Path) -> None:
    make(tmp_path / "a")
    (tmp_path / "a" / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(RequestError, match=r"manifest\.json"):
        read_manifest(tmp_path / "a", "Documents")
    with pytest.raises(RequestError, match="not a finished"):
        read_manifest(tmp_path / "none", "Documents")


def test_one_process_at_a_time(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\nfrom frbio_lite.artifacts import locked\nfrom frbio_lite.errors import RequestError\n"
        f"try:\n  with locked(Path({str(tmp_path)!r})): print('free')\nexcept RequestError: print('busy')"
    )

    def other() -> str:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()

    with locked(tmp_path):
        assert other() == "busy"
    assert other() == "free"


@pytest.mark.parametrize("reason", [errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_worked_on(reason: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(fcntl, "flock", refuse)
    make(tmp_path / "a")
    assert is_current(tmp_path / "a", "Documents", "k")


def test_a_lock_that_cannot_be_had_for_another_reason_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object) -> None:
        raise OSError(errno.EWOULDBLOCK, "held")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(RequestError, match="another frbio process"):
        make(tmp_path / "a")


def test_one_process_at_a_time_in_an_artifact(tmp_path: Path) -> None:
    with writing(tmp_path / "a", "MergedModel", "k", settings={}, parents={}, seed=1) as first:
        (first.path / "half").write_text("half", encoding="utf-8")
        code = (
            "import sys; from pathlib import Path\nfrom frbio_lite.artifacts import writing\n"
            f"with writing(Path({str(tmp_path / 'a')!r}), 'MergedModel', 'other', settings={{}}, parents={{}}, seed=1): pass"
        )
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert other.returncode != 0 and "another frbio process" in other.stderr
        assert (first.path / "half").read_text(encoding="utf-8") == "half"
    assert is_current(tmp_path / "a", "MergedModel", "k")


def test_resumable_work_that_never_began_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(RequestError),
        writing(tmp_path / "a", "EvalResult", "k", settings={}, parents={}, seed=1, resumable=True),
    ):
        raise RequestError("the task has no items")
    assert list(tmp_path.iterdir()) == []


def test_space_is_checked_before_the_directory_exists(tmp_path: Path) -> None:
    require_space(tmp_path / "not" / "yet", 1, "a byte")
    with pytest.raises(RequestError, match="no space left for the moon"):
        require_space(tmp_path / "not" / "yet", 10**18, "the moon")


def test_text_is_replaced_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "t.json", json.dumps({"é": "µg"}, ensure_ascii=False))
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "t.json", "lone \ud800 surrogate")
    assert json.loads((tmp_path / "t.json").read_text(encoding="utf-8")) == {"é": "µg"}
    assert [p.name for p in tmp_path.iterdir()] == ["t.json"]


def test_canonical_hash_ignores_key_order_only() -> None:
    assert canonical_hash({"a": 1, "b": [1, 2]}) == canonical_hash({"b": [1, 2], "a": 1})
    assert canonical_hash({"a": [1, 2]}) != canonical_hash({"a": [2, 1]})
