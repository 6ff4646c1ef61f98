"""Weights on disk, tensor by tensor: read from safetensors by name, write in shards as they fill."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from frbio_lite.artifacts import write_json
from frbio_lite.errors import RequestError

SHARD_BYTES = 5_000_000_000  # what the Hub and loaders are used to
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Weights:
    """The tensors of one safetensors file, or of an index with shards: mapped, and read when asked for."""

    def __init__(self, directory: Path, single: str = SINGLE) -> None:
        """Raises RequestError when there are no safetensors, or a file is missing, truncated or unlike its index."""
        self.directory = directory
        self._files: dict[str, Any] = {}
        if (directory / INDEX).is_file() and single == SINGLE:
            self._where = _read_index(directory / INDEX)
        elif (directory / single).is_file():
            self._where = dict.fromkeys(self._open(single).keys(), single)
        else:
            raise RequestError(f"{directory} has neither {single} nor {INDEX}: convert its weights to safetensors")
        held = {file: set(self._open(file).keys()) for file in sorted(set(self._where.values()))}
        for name, file in self._where.items():
            if name not in held[file]:
                raise RequestError(
                    f"{directory / file} lacks the tensor {name} that {INDEX} promises: download it again"
                )

    def _open(self, file: str) -> Any:
        if file not in self._files:
            try:
                self._files[file] = safe_open(self.directory / file, framework="pt")
            except (OSError, SafetensorError) as error:
                raise RequestError(
                    f"{self.directory / file} is missing or damaged ({error}): download it again"
                ) from error
        return self._files[file]

    def names(self) -> list[str]:
        return sorted(self._where)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def _slice(self, name: str) -> Any:
        return self._open(self._where[name]).get_slice(name)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._slice(name).get_shape())

    def elements(self, name: str) -> int:
        return math.prod(self.shape(name))

    def stored_dtype(self, name: str) -> str:
        """In the words of safetensors: BF16, F32, I64, F8_E4M3, …"""
        return str(self._slice(name).get_dtype())

    def stored_bytes(self, name: str) -> int:
        digits = "".join(c for c in self.stored_dtype(name) if c.isdigit())
        return self.elements(name) * int(digits or 8) // 8  # BOOL takes a byte

    def get(self, name: str) -> Tensor:
        """The tensor as stored, on the CPU."""
        return cast(Tensor, self._open(self._where[name]).get_tensor(name))


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


class ShardWriter:
    """Collects tensors and writes a shard when the next one would pass SHARD_BYTES; `finish` names the files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.pending: dict[str, Tensor] = {}
        self.pending_bytes = self.total_bytes = 0
        self.shards: list[list[str]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        if self.pending and self.pending_bytes + tensor.nbytes > SHARD_BYTES:
            self._flush()
        self.pending[name] = tensor.contiguous()
        self.pending_bytes += tensor.nbytes
        self.total_bytes += tensor.nbytes

    def _numbered(self, number: int) -> Path:
        return self.directory / f"model-{number:05d}.safetensors"

    def _flush(self) -> None:
        self.shards.append(list(self.pending))
        save_file(self.pending, self._numbered(len(self.shards)), metadata={"format": "pt"})
        self.pending, self.pending_bytes = {}, 0

    def finish(self) -> None:
        """Write what is left; one shard becomes model.safetensors, several get their `-of-` names and an index."""
        if self.pending:
            self._flush()
        if len(self.shards) == 1:
            self._numbered(1).rename(self.directory / SINGLE)
            return
        weight_map = {}
        for number, names in enumerate(self.shards, start=1):
            file = f"model-{number:05d}-of-{len(self.shards):05d}.safetensors"
            self._numbered(number).rename(self.directory / file)
            weight_map.update({name: file for name in names})
        write_json(self.directory / INDEX, {"metadata": {"total_size": self.total_bytes}, "weight_map": weight_map})
