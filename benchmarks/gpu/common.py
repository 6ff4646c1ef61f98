"""What all parts share: the machine that they ran on, and their tables."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

LIBRARIES = ("torch", "triton", "transformers", "peft", "bitsandbytes", "liger-kernel", "torchao", "unsloth")


def machine() -> dict[str, str]:
    """The columns that end every row: the device and the libraries' versions (empty: not installed)."""
    cuda = torch.cuda.is_available()
    found = {"gpu": torch.cuda.get_device_name(0) if cuda else f"none ({os.cpu_count()} CPU cores)"}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


def write(path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, [*columns, *(here := machine())], lineterminator="\n")
        table.writeheader()
        table.writerows({**row, **here} for row in rows)


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"[:200]
