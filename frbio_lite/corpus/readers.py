"""File formats: .txt, .jsonl and .csv (each also as .gz) and .parquet, read as a stream of rows.

A row is (where, values): `where` is `file:line` or `file, row n`, for messages; `values` holds the text column and
whichever of source, document_type, license and id the file has. Whatever is wrong with a file is a RequestError that
names the place.
"""

from __future__ import annotations

import csv
import gzip
import json
import sys
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal

from frbio_lite.errors import RequestError, nearest

METADATA = ("source", "document_type", "license", "id")
EXTENSIONS = (".txt", ".jsonl", ".csv", ".txt.gz", ".jsonl.gz", ".csv.gz", ".parquet")
AUTO_BLANK_SHARE = 0.01
PARQUET_BATCH = 256

Separator = Literal["auto", "blank-line", "line", "file"]
Row = tuple[str, dict[str, Any]]


def extension(path: Path) -> str:
    """The one of EXTENSIONS that the name ends in, in any case, or an empty string."""
    return next((e for e in sorted(EXTENSIONS, key=len, reverse=True) if path.name.lower().endswith(e)), "")


def read_file(path: Path, text: str, separator: Separator) -> Iterator[Row]:
    """The rows of one file; `text` names the text column, `separator` says what ends a document in a .txt file.

    Raises RequestError when the file is empty, of an unknown kind, binary, not UTF-8, damaged, or without the text
    column.
    """
    kind = extension(path).removesuffix(".gz")
    if not kind:
        raise RequestError(f"{path} is of no kind that a corpus is read from: use one of {', '.join(EXTENSIONS)}")
    if not path.stat().st_size:
        raise RequestError(f"{path} is empty: remove it or choose another `path`")
    if kind == ".txt":
        return _read_txt(path, text, separator)
    return {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}[kind](path, text)


def require_column(columns: Collection[str], text: str, where: str) -> None:
    """Raise RequestError when `text` is not among the columns."""
    if text not in columns:
        shown = ", ".join(map(str, list(columns)[:12])) or "none"
        raise RequestError(
            f"{where} has no column '{text}'{nearest(text, columns)}; its columns: {shown}; name the one that holds "
            "the text in `text:` of the source"
        )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end) of a UTF-8 file, gzip or plain; a byte-order mark is left out."""
    try:
        with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                yield number, _decode(path, number, raw)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise RequestError(f"{path} is not a whole gzip file ({error}): copy or download it again") from error
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror or error}") from error


def _decode(path: Path, number: int, raw: bytes) -> str:
    if b"\0" in raw:
        raise RequestError(
            f"{path}:{number} holds NUL bytes: not text in UTF-8 (binary, or UTF-16?); convert it to UTF-8"
        )
    try:
        line = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{path}:{number} is not UTF-8 (byte 0x{raw[error.start]:02x} at place {error.start + 1} of the line): "
            "convert it, for example with iconv -f WINDOWS-1252 -t UTF-8"
        ) from error
    return line.removeprefix("\ufeff").rstrip("\r\n") if number == 1 else line.rstrip("\r\n")


def _read_txt(path: Path, text: str, separator: Separator) -> Iterator[Row]:
    """Documents of a text file, one line in memory at a time.

    auto: blank lines separate the documents if at least 1 % of the lines are blank lines between text; else each line
    is one.
    """
    if separator == "auto":
        separator = _usual_separator(path)
    block: list[str] = []
    start = 1
    for number, line in _lines(path):
        if separator != "file" and not line.strip():
            if block:
                yield f"{path}:{start}", {text: "\n".join(block)}
                block = []
        elif separator == "line":
            yield f"{path}:{number}", {text: line}
        else:
            start = start if block else number
            block.append(line)
    if any(line.strip() for line in block):
        yield f"{path}:{start}", {text: "\n".join(block)}


def _usual_separator(path: Path) -> Separator:
    lines = blank = pending = 0
    for number, line in _lines(path):
        if line.strip():
            lines, blank, pending = number, blank + pending, 0
        else:
            pending += number > 1
    return "blank-line" if blank >= AUTO_BLANK_SHARE * lines and blank else "line"


def _read_jsonl(path: Path, text: str) -> Iterator[Row]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise RequestError(f"{where} is not valid JSON ({error}): correct or remove the line") from error
        if not isinstance(row, dict):
            raise RequestError(
                f"{where} is a JSON {type(row).__name__}: each line must be an object with the key '{text}'"
            )
        require_column(row, text, where)
        yield where, row


def _read_csv(path: Path, text: str) -> Iterator[Row]:
    """Rows of a CSV file with a header; the separator is whichever of , ; and tab the header has most of."""
    csv.field_size_limit(sys.maxsize)
    _, head = next(_lines(path), (1, ""))
    reader = csv.reader((f"{line}\n" for _, line in _lines(path)), delimiter=max(",;\t", key=head.count), strict=True)
    header: list[str] = []
    try:
        for fields in reader:
            where = f"{path}:{reader.line_num}"
            if not header:
                header = fields
                require_column(header, text, where)
            elif fields:
                if len(fields) != len(header):
                    raise RequestError(
                        f"{where} has {len(fields)} fields where the header has {len(header)}: quote or correct it"
                    )
                yield where, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise RequestError(f"{path}:{reader.line_num} is not valid CSV ({error}): correct the quotes") from error


def _read_parquet(path: Path, text: str) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            require_column(names, text, str(path))
            columns = [text, *(c for c in METADATA if c in names and c != text)]
            number = 0
            for batch in file.iter_batches(batch_size=PARQUET_BATCH, columns=columns):
                for row in batch.to_pylist():
                    yield f"{path}, row {number}", row
                    number += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RequestError(f"{path} is not a whole parquet file ({reason}): copy or download it again") from error
