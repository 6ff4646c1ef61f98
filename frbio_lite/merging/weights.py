"""Weights on disk: safetensors read block by block, and written in shards block by block.

A block of a tensor is read into a buffer that is used again, so memory does not grow with the tensor; mapping the files
would keep all pages that were touched resident.
"""

from __future__ import annotations

import json
import math
import os
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from frbio_lite.artifacts import content_hash, write_json
from frbio_lite.errors import RequestError

SHARD_BYTES = 5_000_000_000  # what the Hub and loaders are used to
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# Bytes of an element, by dtype in the words of safetensors; those of floats can be merged.
DTYPES = {"F32": 4, "F16": 2, "BF16": 2}
SIZES = {**DTYPES, "F64": 8, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}
NUMPY = {"F32": np.float32, "F16": np.float16, "F64": np.float64, "BOOL": np.bool_} | {
    f"{sign}{bits}": np.dtype(f"{kind}{bits // 8}")
    for sign, kind in (("I", "i"), ("U", "u"))
    for bits in (8, 16, 32, 64)
}
Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

_buffers = threading.local()


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: its file and the byte at which its data begin there."""

    file: str
    offset: int
    dtype: str  # in the words of safetensors: BF16, F32, I64, F8_E4M3, …
    shape: tuple[int, ...]
    bytes: int


class Weights:
    """The tensors of one safetensors file, or of an index with shards, read when asked for. Safe to use from threads."""

    def __init__(self, directory: Path, single: str = SINGLE) -> None:
        """Raises RequestError when there are no safetensors, or a file is missing, truncated or unlike its index."""
        self.directory = directory
        self._descriptors: dict[str, int] = {}
        if (directory / INDEX).is_file() and single == SINGLE:
            where = _read_index(directory / INDEX)
        elif (directory / single).is_file():
            where = None
        else:
            raise RequestError(f"{directory} has neither {single} nor {INDEX}: convert its weights to safetensors")
        held = {file: self._open(file) for file in sorted(set(where.values()) if where else [single])}
        for name, file in (where or {}).items():
            if name not in held[file]:
                raise RequestError(
                    f"{directory / file} lacks the tensor {name} that {INDEX} promises: download it again"
                )
        self._places = (
            {name: held[file][name] for name, file in where.items()} if where is not None else dict(held[single])
        )

    def _open(self, file: str) -> dict[str, Place]:
        path = self.directory / file
        try:
            with safe_open(path, framework="numpy"):  # checks header, offsets and the file's size
                pass
            descriptor = os.open(path, os.O_RDONLY)
        except (OSError, SafetensorError) as error:
            raise RequestError(f"{path} is missing or damaged ({error}): download it again") from error
        self._descriptors[file] = descriptor
        length = struct.unpack("<Q", os.pread(descriptor, 8, 0))[0]
        header: dict[str, Any] = json.loads(os.pread(descriptor, length, 8))
        header.pop("__metadata__", None)
        return {
            name: Place(
                file,
                8 + length + entry["data_offsets"][0],
                entry["dtype"],
                tuple(entry["shape"]),
                entry["data_offsets"][1] - entry["data_offsets"][0],
            )
            for name, entry in header.items()
        }

    def __del__(self) -> None:
        for descriptor in getattr(self, "_descriptors", {}).values():
            os.close(descriptor)

    def names(self) -> list[str]:
        return sorted(self._places)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def shape(self, name: str) -> tuple[int, ...]:
        return self._places[name].shape

    def elements(self, name: str) -> int:
        return math.prod(self.shape(name))

    def stored_dtype(self, name: str) -> str:
        """In the words of safetensors: BF16, F32, I64, F8_E4M3, …"""
        return self._places[name].dtype

    def stored_bytes(self, name: str) -> int:
        return self._places[name].bytes

    def read(self, name: str, start: int, count: int) -> Bytes:
        """Elements [start, start + count) of a tensor as stored, in this thread's buffer: use before reading on.

        Raises RequestError when the file has become shorter than its header says.
        """
        size = SIZES[self.stored_dtype(name)]
        return self._pread(self._places[name], start * size, _buffer(count * size))

    def fill(self, name: str, start: int, out: Floats) -> None:
        """Elements of a tensor of floats from `start` on, as fp32, into `out` [count], contiguous."""
        place = self._places[name]
        if place.dtype == "F32":
            self._pread(place, start * 4, out.view(np.uint8))
        else:
            widen(self.read(name, start, out.size), place.dtype, out)

    def _pread(self, place: Place, skip: int, raw: Bytes) -> Bytes:
        view, done = raw.data, 0
        while done < len(view):
            got = os.preadv(self._descriptors[place.file], [view[done:]], place.offset + skip + done)
            if got == 0:
                raise RequestError(f"{self.directory / place.file} ends too early: download or copy it again")
            done += got
        return raw

    def get(self, name: str) -> npt.NDArray[Any]:
        """The whole tensor in memory of its own, bfloat16 as float32: for adapters and small tensors."""
        place = self._places[name]
        raw = self._pread(place, 0, np.empty(place.bytes, dtype=np.uint8))
        if place.dtype == "BF16":
            return widen(raw, "BF16", np.empty(place.bytes // 2, dtype=np.float32)).reshape(place.shape)
        return raw.view(NUMPY[place.dtype]).reshape(place.shape)


def widen(raw: Bytes, dtype: str, out: Floats) -> Floats:
    """Stored floats as fp32, exactly, into `out` [count]."""
    if dtype == "BF16":  # the upper half of an fp32
        bits = out.view(np.uint32)
        np.copyto(bits, raw.view(np.uint16))
        np.left_shift(bits, 16, out=bits)
    else:
        np.copyto(out, raw.view(NUMPY[dtype]))
    return out


def narrow(values: Floats, dtype: str, out: npt.NDArray[np.uint32]) -> Bytes:
    """fp32 [count] rounded to the nearest, of two to the even one, as stored; overwrites `out` [count].

    The result lies in `out`, or for bfloat16 in a buffer that this thread's next call overwrites. Beyond float16 it becomes
    Inf. No value may be NaN.
    """
    if dtype == "F32":
        np.copyto(out.view(np.float32), values)
        return out.view(np.uint8)
    if dtype == "F16":
        half = out.view(np.float16)[: values.size]
        with np.errstate(over="ignore"):
            np.copyto(half, values, casting="same_kind")
        return half.view(np.uint8)
    bits = values.view(np.uint32)
    np.right_shift(bits, 16, out=out)
    np.bitwise_and(out, 1, out=out)  # a half goes up where the last bit that stays is 1
    np.add(out, 0x7FFF, out=out)
    np.add(out, bits, out=out)
    return upper_halves(out)


def upper_halves(bits: npt.NDArray[np.uint32]) -> Bytes:
    """The upper 16 bits of each number, in a buffer that this thread's next call overwrites, as it does `bits`."""
    halves = _buffer(2 * bits.size, "halves")
    np.right_shift(bits, 16, out=bits)
    np.copyto(halves.view(np.uint16), bits, casting="unsafe")
    return halves


def _buffer(size: int, name: str = "read") -> Bytes:
    """`size` bytes of memory that belongs to this thread and is overwritten by its next call with that name."""
    held: Bytes | None = getattr(_buffers, name, None)
    if held is None or held.size < size:
        held = np.empty(size, dtype=np.uint8)
        setattr(_buffers, name, held)
    return held[:size]


def _read_index(path: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        where = {str(name): str(file) for name, file in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(f"{path} is not an index of safetensors: {error!r}") from error
    for file in where.values():
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise RequestError(f"{path} points to '{file}', which is not a safetensors file beside it")
    return where


@dataclass(frozen=True)
class Entry:
    """A tensor to be written."""

    name: str
    dtype: str  # in the words of safetensors
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * SIZES[self.dtype]


class ShardWriter:
    """Files of at most `shard_bytes` (a larger tensor has one of its own), filled in any order and from any thread.

    `digest` must follow in order: it hashes what was written while the next blocks are still being made.
    """

    def __init__(self, directory: Path, entries: Sequence[Entry], shard_bytes: int = SHARD_BYTES) -> None:
        self.directory = directory
        self.total_bytes = sum(e.bytes for e in entries)
        self._descriptors: dict[str, int] = {}
        self._sums: dict[str, Any] = {}
        self._places: dict[str, tuple[str, int, int]] = {}  # file, first byte, bytes of an element
        shards = _shards(entries, shard_bytes)
        self._weight_map: dict[str, str] = {}
        for number, shard in enumerate(shards, start=1):
            file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            self._begin(directory / file, shard)
            self._weight_map.update({e.name: file for e in shard})

    def _begin(self, path: Path, shard: Sequence[Entry]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for e in shard:
            header[e.name] = {
                "dtype": e.dtype,
                "shape": list(e.shape),
                "data_offsets": [offset, offset + e.bytes],
            }
            offset += e.bytes
        raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        raw += b" " * (-len(raw) % 8)  # the format aligns the data to 8 bytes
        raw = struct.pack("<Q", len(raw)) + raw
        descriptor = self._descriptors[path.name] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        _pwrite(descriptor, memoryview(raw), 0)
        os.ftruncate(descriptor, len(raw) + offset)
        self._sums[path.name] = content_hash()
        self._sums[path.name].update(raw)
        for e in shard:
            self._places[e.name] = (path.name, len(raw) + header[e.name]["data_offsets"][0], SIZES[e.dtype])

    def write(self, name: str, start: int, raw: Bytes) -> None:
        """Put elements, as stored, at element `start`. Raises OSError when the disk is full."""
        file, offset, size = self._places[name]
        _pwrite(self._descriptors[file], raw.data, offset + start * size)

    def digest(self, name: str, start: int, count: int) -> None:
        """Take the next elements, which were written, into the file's hash."""
        file, offset, size = self._places[name]
        view, done = _buffer(count * size).data, 0
        while done < len(view):
            done += os.preadv(self._descriptors[file], [view[done:]], offset + start * size + done)
        self._sums[file].update(view)

    def finish(self) -> dict[str, str]:
        """Close the files and write the index when there are several; the hash of each file, by name."""
        self.close()
        if len(self._sums) > 1:
            write_json(
                self.directory / INDEX,
                {"metadata": {"total_size": self.total_bytes}, "weight_map": self._weight_map},
            )
        return {file: total.hexdigest() for file, total in self._sums.items()}

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])


def _shards(entries: Sequence[Entry], limit: int) -> list[list[Entry]]:
    shards: list[list[Entry]] = [[]]
    held = 0
    for entry in entries:
        if shards[-1] and held + entry.bytes > limit:
            shards.append([])
            held = 0
        shards[-1].append(entry)
        held += entry.bytes
    return shards


def _pwrite(descriptor: int, view: memoryview, offset: int) -> None:
    while view:
        done = os.pwrite(descriptor, view, offset)
        view, offset = view[done:], offset + done
