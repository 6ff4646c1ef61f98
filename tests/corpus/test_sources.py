"""Reading: each format gives the same documents, and whatever is wrong with a file is one line that names the place."""

from __future__ import annotations

import csv
import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frbio_lite.corpus import source_digests
from frbio_lite.corpus.sources import Document, read_source
from frbio_lite.errors import RequestError
from frbio_lite.recipe import Corpus, Source

TEXTS = ["Patient « A » ;\nCRP <5 mg/L, où\u00a0?", 'dit "non"\n\n10 µg/kg', "x" * 200_000, "β-bloquant\t½ cp"]


def read(path: Path | str, **keys: Any) -> list[Document]:
    return list(read_source(Source(path=str(path), license="cc0-1.0", **keys), seed=1))


def texts_of(path: Path | str, **keys: Any) -> list[str]:
    return [document.text for document in read(path, **keys)]


def write_jsonl(path: Path, rows: list[Any]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def write_csv(path: Path, rows: list[dict[str, str]], delimiter: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def test_every_table_format_gives_the_same_documents(tmp_path: Path) -> None:
    rows = [
        {"corps": t, "source": f"s{i}", "document_type": "note", "license": "CC0-1.0", "id": f"d{i}", "autre": "-"}
        for i, t in enumerate(TEXTS)
    ]
    write_jsonl(tmp_path / "a.jsonl", rows)
    write_jsonl(tmp_path / "a.jsonl.gz", rows)
    write_csv(tmp_path / "a.csv", rows)
    write_csv(tmp_path / "b.csv", rows, ";")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    wanted = [Document(r["corps"], r["source"], "note", "CC0-1.0", r["id"]) for r in rows]
    for name in ("a.jsonl", "a.jsonl.gz", "a.csv", "b.csv", "a.parquet"):
        assert read(tmp_path / name, text="corps") == wanted, name


def test_missing_metadata_comes_from_the_source(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "n.jsonl", [{"text": "un"}, {"text": "deux", "license": "MIT", "id": None, "source": ""}])
    first, second = read(tmp_path / "n.jsonl")
    assert first == Document("un", str(tmp_path / "n.jsonl"), "", "cc0-1.0", "n.jsonl#000000")
    assert (second.license, second.id, second.source) == ("MIT", "n.jsonl#000001", str(tmp_path / "n.jsonl"))


def test_txt_separators(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes("\ufeffun\r\ndeux\r\n\r\n \t\r\ntrois\r\n\r\n".encode())
    assert texts_of(path, document="blank-line") == ["un\ndeux", "trois"]
    assert texts_of(path, document="line") == ["un", "deux", "trois"]
    assert texts_of(path, document="file") == ["un\ndeux\n\n \t\ntrois\n"]
    assert texts_of(path) == ["un\ndeux", "trois"]


@pytest.mark.parametrize(("lines", "blank", "blocks"), [(200, 2, True), (200, 1, False), (50, 0, False)])
def test_auto_takes_blank_lines_from_one_percent_on(tmp_path: Path, lines: int, blank: int, blocks: bool) -> None:
    rows = [f"ligne {i}" for i in range(lines)]
    for place in random.sample(range(1, lines - 1, 2), blank):
        rows[place] = ""
    path = tmp_path / "t.txt"
    path.write_text("\n".join(rows) + "\n\n\n")  # blank lines at the end separate nothing
    assert len(texts_of(path)) == (blank + 1 if blocks else lines - blank)


def test_directories_and_globs(tmp_path: Path) -> None:
    for name in ("b/x.txt", "a/x.txt", ".cache/x.txt", "a/y.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"text": "json"}\n' if name.endswith("jsonl") else f"texte {name}\n")
    (tmp_path / "README.md").write_text("non")
    assert [(d.id, d.text) for d in read(tmp_path)] == [
        ("a/x.txt#000000", "texte a/x.txt"),
        ("a/y.jsonl#000000", "json"),
        ("b/x.txt#000000", "texte b/x.txt"),
    ]
    assert [d.id for d in read(tmp_path / "*" / "x.txt")] == ["a/x.txt#000000", "b/x.txt#000000"]
    assert [d.id for d in read(tmp_path / "a" / "*.txt")] == ["x.txt#000000"]
    with pytest.raises(RequestError, match=r"README\.md is of no kind"):
        read(tmp_path / "*.md")


def _truncated_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(b'{"text": "un"}\n' * 1000)[:-9])


def _truncated_parquet(path: Path) -> None:
    pq.write_table(pa.table({"text": ["a" * 50] * 100}), path)
    path.write_bytes(path.read_bytes()[:-20])


def _damaged_parquet(path: Path) -> None:
    pq.write_table(pa.table({"text": [str(random.random()) for _ in range(5000)]}), path, compression="zstd")
    data = bytearray(path.read_bytes())
    data[200:3000] = random.randbytes(2800)
    path.write_bytes(bytes(data))


BAD: list[tuple[str, Callable[[Path], object], str]] = [
    ("e.txt", lambda p: p.write_text(""), r"e\.txt is empty"),
    ("e.txt", lambda p: p.write_text(" \n\n"), "holds no document"),
    ("e.txt", lambda p: p.write_bytes(b"ok\nPK\x03\x04\0\0"), r"e\.txt:2 holds NUL"),
    ("e.txt", lambda p: p.write_bytes("un\noù".encode("cp1252")), r"e\.txt:2 is not UTF-8 \(byte 0xf9 at place 2"),
    ("e.docx", lambda p: p.write_text("un"), "of no kind"),
    ("e.jsonl", lambda p: p.write_text('{"text": "a"}\n{"text": \n'), r"e\.jsonl:2 is not valid JSON"),
    ("e.jsonl", lambda p: p.write_text("[1]\n"), r"e\.jsonl:1 is a JSON list"),
    ("e.jsonl", lambda p: p.write_text('{"txet": "a"}\n'), r"no column 'text'; did you mean 'txet'\?"),
    ("e.jsonl", lambda p: p.write_text('{"text": 3}\n'), r"e\.jsonl:1: 'text' is of type int"),
    ("e.csv", lambda p: p.write_text("texts,b\nu,v\n"), r"no column 'text'; did you mean 'texts'\?"),
    ("e.csv", lambda p: p.write_text("text,b\nu,v,w\n"), r"e\.csv:2 has 3 fields where the header has 2"),
    ("e.csv", lambda p: p.write_text('text,b\n"u,v\nx,y\n'), "not valid CSV"),
    ("e.csv", lambda p: p.write_text("text,b\n"), "holds no document"),
    ("e.jsonl.gz", _truncated_gzip, "not a whole gzip file"),
    ("e.jsonl.gz", lambda p: p.write_text('{"text": "a"}'), "not a whole gzip file"),
    ("e.parquet", lambda p: p.write_bytes(b"nothing of the kind"), "not a whole parquet file"),
    ("e.parquet", _truncated_parquet, "not a whole parquet file"),
    ("e.parquet", _damaged_parquet, "not a whole parquet file"),
    ("e.parquet", lambda p: pq.write_table(pa.table({"Text": ["a"]}), p), r"no column 'text'; did you mean 'Text'\?"),
    ("e.parquet", lambda p: pq.write_table(pa.table({"text": [1]}), p), "'text' is of type int"),
]


@pytest.mark.parametrize(("name", "make", "message"), BAD)
def test_bad_files(tmp_path: Path, name: str, make: Callable[[Path], object], message: str) -> None:
    make(tmp_path / name)
    with pytest.raises(RequestError, match=message) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("notse.txt", r"no file or directory is at .*did you mean 'notes.txt'"),
        ("*.csv", "no file matches"),
        ("vide", "holds no file of a kind"),
        ("demo:medicla", "did you mean 'medical'"),
        ("demo:medical:0", "whole number above 0"),
        ("demo:medical:x", "whole number above 0"),
    ],
)
def test_bad_paths_are_refused_before_anything_is_read(
    tmp_path: Path, path: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vide").mkdir()
    (tmp_path / "notes.txt").write_text("un\n")
    settings = Corpus(sources=[Source(path=path)], licenses={"allow": []})
    for work in (lambda: source_digests(settings), lambda: read(path)):
        with pytest.raises(RequestError, match=message):
            work()


def test_digests_follow_the_contents(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("un\n")

    def digests(*sources: Source) -> list[str]:
        return list(source_digests(Corpus(sources=list(sources), licenses={"allow": []})).values())

    files, hub = Source(path=str(tmp_path)), Source(dataset="org/name", revision="1")
    before = digests(files, hub, Source(path="demo:medical:3"))
    assert digests(files, hub, Source(path="demo:medical:3")) == before and len(set(before)) == 3
    assert digests(Source(dataset="org/name", revision="2")) != [before[1]]
    assert digests(Source(path="demo:medical:4")) != [before[2]]
    (tmp_path / "a.txt").write_text("deux\n")
    assert digests(files) != [before[0]]
    with pytest.raises(RequestError, match="2 times"):
        digests(files, files)


def test_demo_documents_are_those_of_the_world() -> None:
    from frbio_lite.demo.world import documents

    wanted = [row["text"] for row in documents("general", 1, 2)]
    assert texts_of("demo:general:2") == wanted and len(wanted) > 10


def test_hub_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(*names: Any, **keys: Any) -> Any:
        asked.append((names, keys))
        return iter([{"input": "un", "source": "CAS"}, {"input": None, "source": None}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = Source(dataset="org/name", config="fine", revision="abc", text="input", license="mit")
    found = list(read_source(source, 1))
    assert found == [
        Document("un", "CAS", "", "mit", "org/name:fine#000000"),
        Document("", "org/name:fine", "", "mit", "org/name:fine#000001"),
    ]
    assert asked == [(("org/name", "fine"), {"revision": "abc", "split": "train", "streaming": True})]
    with pytest.raises(RequestError, match="no column 'inptu'; did you mean 'input'"):
        list(read_source(source.model_copy(update={"text": "inptu"}), 1))


def test_an_unreachable_hub_names_the_way_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*names: Any, **keys: Any) -> Any:
        raise ConnectionError("Couldn't reach the Hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(RequestError, match=r"hf download org/name --repo-type dataset --local-dir DIR.*path: DIR"):
        list(read_source(Source(dataset="org/name"), 1))
