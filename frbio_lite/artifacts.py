"""What the stages hand to each other: a directory of data files and a manifest.json, whole or absent.

An artifact is written beside its place, in `NAME.partial`, and renamed when its manifest is complete, so whatever interrupts
the work, a directory with a manifest is whole. The manifest's `key` is the hash of all that the artifact was made from;
a stage whose artifact carries the key it would use again has nothing to do.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import xxhash
from pydantic import BaseModel, ValidationError

from frbio_lite.errors import RequestError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
KEY_FILE = "key.json"
CARD = "README.md"  # of a model: written again when results come, so no part of what the manifest vouches for
LOCK_FILE = ".lock"
LOCKLESS = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK}  # what flock says where there are no locks
LIBRARIES = ("frbio-lite", "torch", "transformers", "peft", "bitsandbytes", "datasets", "numpy", "tokenizers")

Kind = Literal["Documents", "PackedTokens", "TrainedWeights", "Ablation", "MergedModel", "EvalResult", "Report"]


class FileRecord(BaseModel):
    bytes: int
    xxh3: str


class Manifest(BaseModel):
    """What an artifact is, what it was made from and what was measured while making it."""

    kind: Kind
    schema_version: int = SCHEMA_VERSION
    key: str  # hash of settings and parents: the artifact's name in the sense of "same work"
    recipe_hash: str
    parents: dict[str, str]  # what it was made from → digest
    digest: str  # hash of the data files, what a child records as its parent
    seed: int
    settings: dict[str, Any]  # the parts of the recipe that this stage read
    versions: dict[str, str]
    figures: dict[str, Any]  # counts, seconds, bytes: measured, never an input
    files: dict[str, FileRecord]


def canonical_hash(value: Any) -> str:
    """sha256, in hex, of a JSON value written with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def content_hash() -> xxhash.xxh3_128:
    """To be fed with a file's bytes. It tells contents apart at memory's speed; it is no defence against forgery."""
    return xxhash.xxh3_128()


def file_hash(path: Path) -> str:
    """XXH3-128 of a file's content, in hex."""
    total, block = content_hash(), memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            total.update(block[:count])
    return total.hexdigest()


def tree_digest(directory: Path, *, skip: tuple[str, ...] = (), suffixes: tuple[str, ...] = ()) -> str:
    """Hash of the names and contents of the files below `directory`, but those in `skip`; with these suffixes, if any."""
    files = sorted(
        p for p in directory.rglob("*") if p.is_file() and p.name not in skip and (not suffixes or p.suffix in suffixes)
    )
    return canonical_hash({p.relative_to(directory).as_posix(): file_hash(p) for p in files})


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that `path` holds either its old content or all of the new one."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text so that `path` holds either its old content or all of the new one."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def library_versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def read_manifest(directory: Path, kind: Kind) -> Manifest:
    """The manifest of an artifact of this kind. Raises RequestError when `directory` is not one."""
    path = directory / MANIFEST
    if not path.is_file():
        raise RequestError(f"{directory} is not a finished {kind} artifact: it has no {MANIFEST}")
    try:
        manifest = Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} is not a manifest of this version: {str(error).splitlines()[0]}") from error
    if manifest.kind != kind:
        raise RequestError(f"{directory} holds a {manifest.kind} artifact where a {kind} is needed")
    return manifest


def is_current(directory: Path, kind: Kind, key: str) -> bool:
    """Whether `directory` holds the whole artifact of this key: same inputs, all files there in their full size."""
    try:
        manifest = read_manifest(directory, kind)
    except RequestError:
        return False
    return manifest.key == key and all(
        (directory / name).is_file() and (directory / name).stat().st_size == record.bytes
        for name, record in manifest.files.items()
    )


class ArtifactWriter:
    """The directory to fill (`path`) and the figures to record; see `writing`.

    `hashes` holds the hashes of files (by relative path) that were hashed while they were written. `key` and `parents`
    may be set late, where what an artifact is made from is hashed while it is made.
    """

    def __init__(self, path: Path, key: str, parents: Mapping[str, str]) -> None:
        self.path, self.key, self.parents = path, key, parents
        self.figures: dict[str, Any] = {}
        self.hashes: dict[str, str] = {}


def _replaceable(directory: Path, kind: Kind) -> bool:
    """An empty directory, or an artifact of the same kind: never somebody's files, and never another stage's."""
    if not directory.is_dir():
        return False
    if not any(directory.iterdir()):
        return True
    try:
        return read_manifest(directory, kind).kind == kind
    except RequestError:
        return False


@contextmanager
def writing(
    directory: Path,
    kind: Kind,
    key: str,
    *,
    settings: Mapping[str, Any],
    parents: Mapping[str, str],
    seed: int,
    recipe_hash: str = "",
    resumable: bool = False,
    measured: tuple[str, ...] = (),
) -> Iterator[ArtifactWriter]:
    """Make an artifact: fill `writer.path`, set `writer.figures`; on leaving, it takes its place under `directory`.

    When the work fails nothing stays, unless `resumable`: then the partial directory waits for a next call with the same key.
    Files named in `measured` (logs with times in them) do not count in the digest that children record.
    An older artifact of the same kind is replaced at the last moment; anything else there is refused (RequestError).
    """
    if directory.exists() and not _replaceable(directory, kind):
        raise RequestError(f"{directory} exists and is not a {kind} artifact: choose another place or empty it")
    partial = directory.with_name(directory.name + ".partial")
    with locked(partial):
        if not (resumable and _partial_key(partial) == key):
            _empty(partial)
        try:
            write_json(partial / KEY_FILE, {"key": key})
            writer = ArtifactWriter(partial, key, parents)
            yield writer
            files = {
                name: FileRecord(bytes=p.stat().st_size, xxh3=writer.hashes.get(name) or file_hash(p))
                for name, p in ((p.relative_to(partial).as_posix(), p) for p in sorted(partial.rglob("*")))
                if p.is_file() and p.name not in {KEY_FILE, LOCK_FILE, CARD}
            }
            digest = canonical_hash({n: f.xxh3 for n, f in files.items() if n.rsplit("/", 1)[-1] not in measured})
            manifest = Manifest(
                kind=kind,
                key=writer.key,
                recipe_hash=recipe_hash,
                parents=dict(writer.parents),
                digest=digest,
                seed=seed,
                settings=dict(settings),
                versions=library_versions(),
                figures=writer.figures,
                files=files,
            )
            write_json(partial / MANIFEST, manifest.model_dump(mode="json"))
            (partial / KEY_FILE).unlink()
            (partial / LOCK_FILE).unlink()
        except BaseException:
            begun = {p.name for p in partial.iterdir()} - {KEY_FILE, LOCK_FILE}
            if not resumable or not begun:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        if directory.exists():
            shutil.rmtree(directory)
        partial.rename(directory)


def _empty(partial: Path) -> None:
    for path in partial.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK_FILE:
            path.unlink()


def _partial_key(partial: Path) -> str | None:
    try:
        return str(json.loads((partial / KEY_FILE).read_text(encoding="utf-8"))["key"])
    except (OSError, ValueError, KeyError):
        return None


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold `directory` (made if missing) for one process. Raises RequestError when another one holds it.

    Where the file system has no locks, as some mounted network folders have none, the work goes on without one.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise RequestError(f"{directory} cannot be made a directory: a file is in its place") from error
    with (directory / LOCK_FILE).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in LOCKLESS:
                raise RequestError(
                    f"another frbio process is working in {directory}: wait for it or choose another --out"
                ) from error
        yield


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def require_space(directory: Path, needed: int, what: str) -> None:
    """Raise RequestError when the disk of `directory` has less than `needed` bytes free."""
    existing = next(p for p in (directory, *directory.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise RequestError(
            f"no space left for {what}: {directory} needs {_size(needed)} and has {_size(free)} free; "
            "free some space or choose another --out"
        )
