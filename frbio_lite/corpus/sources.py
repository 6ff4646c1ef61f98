"""Where documents come from: local files, Hub datasets (streamed) and the embedded world.

    for document in Reading(source, seed=17): ...

Identifiers are the source's own `id` column or `name#000123`, the position in the file or dataset before anything is
dropped.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frbio_lite import demo, hub
from frbio_lite.artifacts import canonical_hash, content_hash, file_hash, tree_digest
from frbio_lite.corpus.catalogue import published_as
from frbio_lite.corpus.readers import (
    EXTENSIONS,
    LIMIT,
    METADATA,
    File,
    Row,
    Skipped,
    extension,
    missing_column,
    read_file,
)
from frbio_lite.errors import RequestError, nearest
from frbio_lite.recipe import Source

if TYPE_CHECKING:
    from frbio_lite.demo.world import Part

DEMO = "demo:"
DEMO_PARTS: tuple[Part, ...] = ("medical", "general")
DEMO_COPIES = 20
SURROGATES = re.compile("[\ud800-\udfff]")
FIRST_ROWS = 100
SKIPPED_KEPT = 1000

State = tuple[int, int]  # bytes, time of the last change in nanoseconds


@dataclass
class Document:
    """One document on its way through the stage; all fields are text, `license` is empty where none is known."""

    text: str
    source: str
    document_type: str
    license: str
    id: str


def check_names(sources: Sequence[Source]) -> None:
    """Raise RequestError when two sources have one name: counts by source would mix them."""
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise RequestError(
                f"corpus.sources lists '{name}' {names.count(name)} times: keep one, or put its files in two places"
            )


def source_digests(sources: Sequence[Source]) -> dict[str, str]:
    """A hash of what each source holds, by source name: what the corpus stage depends on besides the recipe.

    Files: their names and contents. The embedded world: its path, facts and generators. A Hub dataset: id, config and
    revision. Raises RequestError when a path leads to no file that a corpus can be read from, or a demo part does not
    exist.
    """
    check_names(sources)
    return {source.name: _digest(source) for source in sources}


def _digest(source: Source) -> str:
    if source.dataset is not None:
        return canonical_hash({"dataset": source.dataset, "config": source.config, "revision": source.revision})
    path = str(source.path)
    if path.startswith(DEMO):
        _demo_part(path)
        world = tree_digest(Path(demo.__file__).parent, suffixes=(".py", ".yaml"))
        return canonical_hash({"demo": path, "world": world})
    return canonical_hash({name: file_hash(file) for name, file in source_files(path)})


def source_files(path: str) -> list[tuple[str, Path]]:
    """(name in identifiers, file) of a path, a directory (all files of a known kind below it) or a glob, in order of
    name.

    Files of other kinds and hidden ones are passed over in a directory, and refused where the path or glob names them.
    """
    place = Path(path).expanduser()
    if place.is_file():
        found, root = [place], place.parent
    elif place.is_dir():
        root = place
        found = [p for p in place.rglob("*") if p.is_file() and extension(p) and not _hidden(p.relative_to(place))]
        if not found:
            raise RequestError(
                f"the directory {path} holds no file of a kind that a corpus is read from ({', '.join(EXTENSIONS)})"
            )
    elif glob.has_magic(path):
        found = [p for p in map(Path, glob.glob(str(place), recursive=True)) if p.is_file()]
        root = Path(*(part for i, part in enumerate(place.parts) if not glob.has_magic("/".join(place.parts[: i + 1]))))
        if not found:
            raise RequestError(f"no file matches the `path` {path} (read from {Path.cwd()})")
    else:
        near = nearest(place.name, (p.name for p in place.parent.iterdir())) if place.parent.is_dir() else ""
        raise RequestError(f"no file or directory is at {path} (read from {Path.cwd()}){near}")
    unknown = next((p for p in found if not extension(p)), None)
    if unknown is not None:
        raise RequestError(f"{unknown} is of no kind that a corpus is read from: use one of {', '.join(EXTENSIONS)}")
    return sorted((p.relative_to(root).as_posix(), p) for p in found)


def _state(path: Path) -> State:
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _demo_part(path: str) -> tuple[Part, int]:
    """(part, copies) of `demo:PART[:COPIES]`."""
    name, _, copies = path.removeprefix(DEMO).partition(":")
    part = next((p for p in DEMO_PARTS if p == name), None)
    if part is None:
        known = " and ".join(DEMO_PARTS)
        raise RequestError(f"`path: {path}`: the embedded world has the parts {known}{nearest(name, DEMO_PARTS)}")
    if copies and not (copies.isascii() and copies.isdigit() and int(copies)):
        raise RequestError(f"`path: {path}`: the copies are a whole number above 0, as in {DEMO}{part}:{DEMO_COPIES}")
    return part, int(copies) if copies else DEMO_COPIES


class Reading:
    """The documents of one source, in a fixed order; what cannot be read is left out and counted, or ends it if `strict`.

    `total_bytes` and `read_bytes` count the files as they lie on disk (None and 0 for a Hub dataset and the embedded
    world). `skipped` holds the first thousand of `skipped_count` places. When the iteration is over, `digest` is the
    XXH3-128 of all texts and metadata as they were read, in hex, and `revision` the commit of a Hub dataset.

    Raises RequestError when a path leads to nothing, no document at all can be read, or a file changes meanwhile.
    """

    def __init__(self, source: Source, seed: int, *, strict: bool = False) -> None:
        self.source, self.seed, self.strict = source, seed, strict
        self.text = [source.text] if isinstance(source.text, str) else list(source.text)
        self.published = published_as(source)
        self.files: list[tuple[str, Path, State]] = []
        self.total_bytes: int | None = None
        if source.dataset is None and not str(source.path).startswith(DEMO):
            self.files = [(name, path, _state(path)) for name, path in source_files(str(source.path))]
            self.total_bytes = sum(size for _, _, (size, _) in self.files)
        elif source.dataset is None:
            _demo_part(str(source.path))
            self.text = ["text"]
        self._begin()

    def _begin(self) -> None:
        self.skipped: list[Skipped] = []
        self.skipped_count = 0
        self.digest = ""
        self.revision: str | None = None
        self._hash = content_hash()
        self._done = 0
        self._file: File | None = None
        self._state: State = (0, 0)

    @property
    def read_bytes(self) -> int:
        return self._done + (self._file.position if self._file else 0)

    def __iter__(self) -> Iterator[Document]:
        self._begin()
        count = 0
        for document in islice(self._documents(), self.source.limit):
            count += 1
            yield document
        self._unchanged()
        if not count:
            raise RequestError(self._nothing())
        self.digest = self._hash.hexdigest()

    def _documents(self) -> Iterator[Document]:
        if self.source.dataset is not None:
            yield from self._readable(self.source.name, self.source.dataset, self._hub_rows(self.source.dataset))
        elif not self.files:
            part, copies = _demo_part(str(self.source.path))
            from frbio_lite.demo.world import documents

            rows = ((f"{self.source.path} {i}", dict(row)) for i, row in enumerate(documents(part, self.seed, copies)))
            yield from self._readable(f"{DEMO}{part}", str(self.source.path), rows)
        for name, path, state in self.files:
            self._file, self._state = File(path), state
            yield from self._readable(name, str(path), read_file(self._file, self.text, self.source.document))
            self._unchanged()
            self._file, self._done = None, self._done + state[0]

    def _unchanged(self) -> None:
        """Raise RequestError when the file that is being read is no more what it was at the start."""
        if self._file and _state(self._file.path) != self._state:
            raise RequestError(f"{self._file.path} changed while it was read: start again when nothing writes to it")

    def _readable(self, name: str, place: str, rows: Iterator[Row | Skipped]) -> Iterator[Document]:
        """The documents of one file, dataset or part; a file whose first hundred rows cannot be read is left out whole."""
        good = False
        before = self.skipped_count
        for number, row in enumerate(rows):
            found = row if isinstance(row, Skipped) else self._document(*row, f"{name}#{number:06d}")
            if isinstance(found, Document):
                good = True
                yield found
            else:
                self._skip(found)
                if not good and number + 1 >= FIRST_ROWS:
                    self._skip(Skipped(place, f"is left out: none of its first {FIRST_ROWS} rows can be read"))
                    return
        if not good and self.skipped_count == before:
            self._skip(Skipped(place, "holds no document: choose another one"))

    def _fault(self, where: str, row: Mapping[str, Any]) -> Skipped | None:
        characters = 0
        for name in self.text:
            value = row.get(name)
            if isinstance(value, str):
                characters += len(value)
            elif value is not None:
                kind = type(value).__name__
                return Skipped(where, f"has '{name}' of type {kind}, not text: name another column in `text:`")
            elif name not in row:
                return Skipped(where, missing_column(row, self.text))
        return Skipped(where, f"has more than {LIMIT:,} characters: divide it") if characters > LIMIT else None

    def _skip(self, skipped: Skipped) -> None:
        if self.strict:
            raise RequestError(f"{skipped.where} {skipped.reason}")
        self.skipped_count += 1
        if len(self.skipped) < SKIPPED_KEPT:
            self.skipped.append(skipped)

    def _nothing(self) -> str:
        if not self.skipped:
            return f"the source {self.source.name} holds no document: choose another one"
        first = f"{self.skipped[0].where} {self.skipped[0].reason}"
        if self.skipped_count == 1:
            return first
        return f"nothing of the source {self.source.name} can be read, for {self.skipped_count:,} reasons; the first: {first}"

    def _document(self, where: str, row: Mapping[str, Any], id: str) -> Document | Skipped:
        if fault := self._fault(where, row):
            return fault
        parts = [row[name] for name in self.text]
        text = parts[0] or "" if len(parts) == 1 else "\n\n".join(p for p in parts if p and not p.isspace())
        own = [_string(row.get(key)) if key not in self.text else "" for key in METADATA]
        for part in ("\0".join((*own, f"{len(text)}\0")), text):  # UTF-16 takes a third of the time of UTF-8
            self._hash.update(part.encode("utf-16-le", "surrogatepass"))
        collection, document_type, license, own_id = own
        if not license and self.published:
            license = self.published.license_of(collection)
        return Document(
            text=text,
            source=collection or self.source.name,
            document_type=document_type,
            license=license or self.source.license or (self.published.license if self.published else ""),
            id=own_id or id,
        )

    def _hub_rows(self, dataset: str) -> Iterator[Row]:
        """Rows of a Hub dataset, streamed from one commit even when its branch moves on meanwhile."""
        source = self.source
        if Path(dataset).is_dir():
            raise RequestError(f"`dataset: {dataset}` is also a directory here, which would be read: move or rename it")
        number = -1
        offline = hub.why_offline()
        try:
            self.revision = _commit(dataset, source.revision)
            stream = _load(dataset, source.config, self.revision)
            for number, row in enumerate(stream):
                if not number and (fault := missing_column(row, self.text)):
                    raise RequestError(f"the dataset {source.name} {fault}")
                yield f"{dataset}, row {number}", row
        except RequestError:
            raise
        except Exception as error:  # the library raises a different type for each way of not reaching a dataset
            raise RequestError(_hub_fault(source, self.revision, number, offline, error)) from error


def _string(value: Any) -> str:
    """A metadata value as one line of storable text."""
    return "" if value is None else " ".join(SURROGATES.sub("", str(value)).split())


def _commit(dataset: str, revision: str | None) -> str:
    """The commit that a revision stands for now; a commit stands for itself."""
    if revision and hub.COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi

    return str(HfApi().dataset_info(dataset, revision=revision).sha)


def _load(dataset: str, config: str | None, commit: str) -> Iterable[dict[str, Any]]:
    from datasets import load_dataset

    rows: Iterable[dict[str, Any]] = load_dataset(dataset, config, revision=commit, split="train", streaming=True)
    return rows


def _hub_fault(source: Source, commit: str | None, rows: int, offline: str | None, error: Exception) -> str:
    """What to say about an error of the library: what exists, what the Hub has against it, or the way without a network."""
    dataset, reason = str(source.dataset), hub.first_line(error)
    if rows < 0 and isinstance(error, ValueError) and (known := _configs(dataset, commit)):
        if source.config not in known if source.config else len(known) > 1 and "default" not in known:
            asked = f"no configuration '{source.config}'" if source.config else "several configurations"
            near = nearest(source.config or "", known)
            return f"the dataset {dataset} has {asked}{near}; `config:` is one of {', '.join(known)}"
        return f"the dataset {source.name} cannot be read: {reason}"
    if not offline and (refused := hub.why_refused("dataset", dataset, source.revision)):
        return refused
    folder = dataset.rpartition("/")[2]
    where, why = (f" after row {rows}", reason) if rows >= 0 else ("", offline or reason)
    return (
        f"the Hub dataset {dataset} cannot be read{where} ({why}); without a network, get "
        f"it elsewhere with `hf download {dataset} --repo-type dataset --local-dir {folder}` and use `path: {folder}`"
    )


def _configs(dataset: str, commit: str | None) -> list[str]:
    from datasets import get_dataset_config_names

    try:
        return list(get_dataset_config_names(dataset, revision=commit))
    except Exception:  # then the first error says more
        return []
