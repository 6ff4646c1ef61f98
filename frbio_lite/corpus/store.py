"""Documents on disk: parquet with zstd, first in one file without a split, then in parts with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from frbio_lite.corpus.sources import Document

BATCH_DOCUMENTS = 1_000
BATCH_CHARACTERS = 8_000_000
PART_CHARACTERS = 256_000_000

_TEXT = ("text", "source", "document_type", "license", "id")
SCHEMA = pa.schema([*((name, pa.string()) for name in (*_TEXT, "split", "role")), ("recipe_source", pa.int32())])
UNSPLIT_SCHEMA = SCHEMA.remove(SCHEMA.get_field_index("split"))


class DocumentWriter:
    """A parquet file of documents that have no split yet; row groups are small enough to be read one at a time."""

    def __init__(self, path: Path) -> None:
        self.writer = pq.ParquetWriter(path, UNSPLIT_SCHEMA, compression="zstd")
        self._clear()

    def _clear(self) -> None:
        self.rows: dict[str, list[Any]] = {name: [] for name in UNSPLIT_SCHEMA.names}
        self.characters = 0

    def add(self, document: Document, role: str, recipe_source: int) -> None:
        for name in _TEXT:
            self.rows[name].append(getattr(document, name))
        self.rows["role"].append(role)
        self.rows["recipe_source"].append(recipe_source)
        self.characters += len(document.text)
        if len(self.rows["text"]) >= BATCH_DOCUMENTS or self.characters >= BATCH_CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        if self.rows["text"]:
            self.writer.write_table(pa.table(self.rows, schema=UNSPLIT_SCHEMA))
        self._clear()

    def __enter__(self) -> DocumentWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            self._flush()
        self.writer.close()


def write_splits(unsplit: Path, splits: Sequence[str], folder: Path, count: Callable[[str, int, str], None]) -> None:
    """Write the documents of `unsplit` with their splits (one each, in order) to `folder/part-00000.parquet` and on.

    `count(split, recipe_source, text)` is called for each document.
    """
    folder.mkdir()
    writer: Any = None
    part = written = start = 0
    with pq.ParquetFile(unsplit) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            here = list(splits[start : start + table.num_rows])
            start += table.num_rows
            texts, indices = table.column("text").to_pylist(), table.column("recipe_source").to_pylist()
            for split, index, text in zip(here, indices, texts, strict=True):
                count(split, index, text)
            if writer is None:
                writer = pq.ParquetWriter(folder / f"part-{part:05d}.parquet", SCHEMA, compression="zstd")
            writer.write_table(table.append_column("split", pa.array(here, pa.string())).select(SCHEMA.names))
            written += sum(map(len, texts))
            if written >= PART_CHARACTERS:
                writer.close()
                writer, part, written = None, part + 1, 0
    if writer is not None:
        writer.close()
