"""Write a merged model: tensor after tensor, shard after shard, so memory holds about one shard.

merge_models(base, adapter, "slerp", 0.5, "auto", out)      # fills the directory `out` with a loadable model
"""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from frbio_lite import model
from frbio_lite.artifacts import require_space, write_json, write_text
from frbio_lite.errors import RequestError
from frbio_lite.merge.methods import Comparison, compare
from frbio_lite.merge.pair import Pair, check_method, check_ratio, merge_tensors, open_pair
from frbio_lite.merge.weights import DTYPES, ShardWriter
from frbio_lite.progress import Progress

OutputDtype = Literal["auto", "bfloat16", "float16", "float32"]
COLUMNS = ("name", "relative_change", "angle_degrees", "slerp_is_linear", "effective_ratio")


@dataclass(frozen=True)
class Measured:
    """One merged tensor: base against adapted, and the norm of what the output differs from the base."""

    name: str
    comparison: Comparison
    moved: float  # ‖W_out − W_base‖

    @property
    def changed(self) -> bool:
        return self.comparison.difference_norm > 0.0

    @property
    def angle_degrees(self) -> float:
        """NaN when either tensor is zero."""
        return math.degrees(math.acos(self.comparison.cosine)) if not math.isnan(self.comparison.cosine) else math.nan

    def row(self) -> list[str]:
        c = self.comparison
        return [
            self.name,
            _number(_share(c.difference_norm, c.base_norm)),
            _number(self.angle_degrees),
            str(c.slerp_is_linear).lower(),
            _number(_share(self.moved, c.difference_norm)),
        ]


def output_dtype(name: OutputDtype) -> torch.dtype | None:
    """The torch dtype of a recipe's `merge.dtype`; None for auto, each tensor as the base stores it."""
    known: dict[str, torch.dtype | None] = {
        "auto": None,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
        "float32": torch.float32,
    }
    if name not in known:
        raise RequestError(f"a merged model is written as {', '.join(known)}, not as {name}")
    return known[name]


def merge_models(
    base: Path, adapted: Path, method: str, ratio: float, dtype: OutputDtype, directory: Path
) -> dict[str, Any]:
    """Merge `adapted`, a model directory or a LoRA adapter, into `base`; fill `directory` with a model and tensors.csv.

    `ratio` is the share of the adapted model: 0.0 gives the base bit for bit, 1.0 the adapted tensors, rounded once to
    `dtype`. Returns what was measured: `relative_change` (‖Δ‖/‖W‖ over all tensors), `angle_degrees_max` and
    `slerp_is_linear_share` (over the tensors that changed; None when none did), `effective_ratio`
    (‖W_out − W_base‖/‖Δ‖, None likewise), `tensors`, `parameters`, `bytes`, `dtype` and `seconds`. Raises RequestError
    when the two do not belong together, a tensor holds NaN or Inf, float16 cannot hold a value, or the disk is full.
    """
    started = time.monotonic()
    check_method(method)
    check_ratio(ratio)
    chosen = output_dtype(dtype)
    pair = open_pair(base, adapted)
    sizes = {name: _output_bytes(pair, name, chosen) for name in pair.names}
    require_space(directory, sum(sizes.values()), "the merged model")
    directory.mkdir(parents=True, exist_ok=True)
    writer, measured = ShardWriter(directory), []
    with Progress("merge", sum(sizes.values()), "B") as bar:
        for name in pair.names:
            base_tensor, adapted_tensor = pair.read(name)
            output = merge_tensors(name, base_tensor, adapted_tensor, method, ratio, chosen)
            if base_tensor.is_floating_point():
                measured.append(_measure(name, base_tensor, adapted_tensor, output))
            writer.add(name, output)
            bar.advance(sizes[name])
        writer.finish()
    stored = _main_dtype(pair, chosen)
    _write_config(base, directory, stored)
    model.copy_tokenizer(base, directory)
    _write_statistics(directory / "tensors.csv", measured)
    write_text(directory / "README.md", _card(base, adapted, method, ratio, stored))
    return {
        **_summary(measured),
        "tensors": len(pair.names),
        "parameters": sum(pair.base.elements(n) for n in pair.names),
        "bytes": writer.total_bytes,
        "dtype": stored,
        "seconds": round(time.monotonic() - started, 3),
    }


def _output_bytes(pair: Pair, name: str, dtype: torch.dtype | None) -> int:
    if dtype is None or not pair.is_float(name):
        return pair.base.stored_bytes(name)
    return pair.base.elements(name) * dtype.itemsize


def _main_dtype(pair: Pair, dtype: torch.dtype | None) -> str:
    """The name of the dtype that holds most parameters, as config.json writes it."""
    if dtype is not None:
        return str(dtype).removeprefix("torch.")
    counts: Counter[str] = Counter()
    for name in pair.names:
        if pair.is_float(name):
            counts[pair.base.stored_dtype(name)] += pair.base.elements(name)
    return str(DTYPES[max(counts, key=lambda d: (counts[d], d))]).removeprefix("torch.")


def _measure(name: str, base: Tensor, adapted: Tensor | None, output: Tensor) -> Measured:
    comparison = compare(base, base if adapted is None else adapted)
    return Measured(name, comparison, compare(base, output).difference_norm)


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0.0 else math.nan


def _number(value: float) -> str:
    """Nothing where the figure does not exist, such as the angle of a zero vector."""
    return "" if math.isnan(value) else f"{value:.6g}"


def _summary(measured: list[Measured]) -> dict[str, Any]:
    changed = [m for m in measured if m.changed]
    difference = math.hypot(*(m.comparison.difference_norm for m in measured))
    angles = [m.angle_degrees for m in changed if not math.isnan(m.angle_degrees)]
    return {
        "relative_change": _finite(_share(difference, math.hypot(*(m.comparison.base_norm for m in measured)))),
        "angle_degrees_max": max(angles, default=None),
        "slerp_is_linear_share": sum(m.comparison.slerp_is_linear for m in changed) / len(changed) if changed else None,
        "effective_ratio": _finite(_share(math.hypot(*(m.moved for m in measured)), difference)),
    }


def _finite(value: float) -> float | None:
    return None if math.isnan(value) else value


def _write_statistics(path: Path, measured: list[Measured]) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    table.writerows(m.row() for m in measured)
    write_text(path, text.getvalue())


def _write_config(base: Path, directory: Path, dtype: str) -> None:
    """The base's config.json with the dtype that was written."""
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    for part in [config, *(v for v in config.values() if isinstance(v, dict))]:
        if part is config or part.keys() & {"dtype", "torch_dtype"}:
            part.pop("torch_dtype", None)
            part["dtype"] = dtype
    write_json(directory / "config.json", config)


def _described(directory: Path) -> str:
    """A Hub snapshot as `repository at commit`, else the directory's own name, without the rest of a private path."""
    where = directory.absolute()
    if where.parent.name == "snapshots" and where.parent.parent.name.startswith("models--"):
        repository = where.parent.parent.name.removeprefix("models--").replace("--", "/")
        return f"{repository} at {where.name}"
    return where.name


def _card(base: Path, adapted: Path, method: str, ratio: float, dtype: str) -> str:
    names = [_described(d).replace("`", "'").replace("\n", " ") for d in (base, adapted)]
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [merge, frbio_lite]
---

# Merged model

Merged by frbio_lite. **Not for clinical decisions**: a research model, not a medical device.

| | |
|---|---|
| base | `{names[0]}` |
| adapted | `{names[1]}` |
| method | {method} |
| ratio | {ratio:g} (the share of the adapted model; 0 is the base, 1 the adapted model) |
| dtype | {dtype} |

`tensors.csv` says for each tensor how much adaptation changed it and which part of that change is in this model.
"""
