"""Write a merged model: block after block from the inputs to its shards, so memory does not grow with the model.

merge_models(by_method(open_inputs(base, [adapter]), "slerp", Parameters(), Profile()), out, ratio=0.5)
"""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from frbio_lite import hub
from frbio_lite.artifacts import require_space, write_json, write_text
from frbio_lite.errors import RequestError
from frbio_lite.merging.blocks import Block, workers
from frbio_lite.merging.gram import Gram, Matrix
from frbio_lite.merging.inputs import Inputs
from frbio_lite.merging.merger import NEAREST, Merger, Rounding, check_ratio
from frbio_lite.merging.methods import slerp
from frbio_lite.merging.weights import DTYPES, SHARD_BYTES, Entry, ShardWriter
from frbio_lite.progress import Progress

OutputDtype = Literal["auto", "bfloat16", "float16", "float32"]
CONFIG_NAMES: dict[str, OutputDtype] = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}  # as in config.json
COLUMNS = ("name", "model", "relative_change", "angle_degrees", "slerp_is_linear", "effective_ratio")
Map = Callable[[Callable[[Any], Any], Any], Iterator[Any]]


@dataclass(frozen=True)
class Measured:
    """One merged tensor: the inner products of base and adapted tensors, and how far the output lies from the base."""

    name: str
    gram: Gram
    moved: float  # ‖written − base‖

    def rows(self, models: Sequence[str]) -> list[list[str]]:
        """One row per adapted model; the effective ratio is that of their mean."""
        found = []
        for i, model in enumerate(models, start=1):
            angle = self.gram.angle(i)
            found.append(
                [
                    self.name,
                    model,
                    _number(_share(self.gram.difference(i), self.gram.norm(0))),
                    _number(math.degrees(angle)),
                    str(slerp.is_linear(angle)).lower(),
                    _number(_share(self.moved, self.gram.mean_difference())),
                ]
            )
        return found


def output_dtype(name: OutputDtype) -> str | None:
    """A recipe's `merge.dtype` in the words of safetensors; None for auto, each tensor as the base stores it."""
    known: dict[str, str | None] = {"auto": None, **{name: dtype for dtype, name in CONFIG_NAMES.items()}}
    if name not in known:
        raise RequestError(f"a merged model is written as {', '.join(known)}, not as {name}")
    return known[name]


def merge_models(
    merger: Merger,
    directory: Path,
    *,
    ratio: float = 1.0,
    rounding: Rounding = NEAREST,
    shard_bytes: int = SHARD_BYTES,
    description: Mapping[str, str] | None = None,
    hashes: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Fill `directory` with the merged model and tensors.csv, config.json last; `description` goes on its card.
    `hashes` receives the hashes of the weights' files, by name.

    `ratio` is the share of the adapted side: 0.0 gives the base bit for bit. Returns what was measured:
    `relative_change` (‖Δ‖/‖W‖ over all tensors, Δ the mean difference of the adapted models from the base),
    `angle_degrees_max` and `slerp_is_linear_share` (over the tensors that changed; None when none did), `effective_ratio`
    (‖written − base‖/‖Δ‖, rounding included; None when nothing changed), `tensors`, `parameters`, `bytes`, `dtype` and
    `seconds`. Raises RequestError when a tensor holds NaN or Inf, or float16 cannot hold a value, OSError when the disk
    is full.
    """
    started = time.monotonic()
    check_ratio(ratio)
    inputs = merger.inputs
    if rounding.stochastic and rounding.dtype not in (None, "BF16"):
        raise RequestError("stochastic rounding is for bfloat16: float16 and float32 keep small changes without it")
    entries = [_entry(inputs, name, rounding) for name in inputs.names]
    require_space(directory, sum(e.bytes for e in entries), "the merged model")
    directory.mkdir(parents=True, exist_ok=True)
    merger.survey()
    writer = ShardWriter(directory, entries, shard_bytes)
    try:
        measured = _write(merger, writer, ratio, rounding)
        sums = writer.finish()
    finally:
        writer.close()
    if hashes is not None:
        hashes.update(sums)
    stored = _main_dtype(entries)
    base = inputs.base.directory
    hub.copy_tokenizer(base, directory)
    _write_statistics(directory / "tensors.csv", measured, [described(d) for d in inputs.directories[1:]])
    figures = {**_summary(measured), "dtype": stored}
    _write_card(directory, inputs, ratio, figures, description or {})
    _write_config(base, directory, stored, untie=inputs.unties)
    return {
        **figures,
        "tensors": len(entries),
        "parameters": sum(math.prod(e.shape) for e in entries),
        "bytes": writer.total_bytes,
        "seconds": round(time.monotonic() - started, 3),
    }


def _entry(inputs: Inputs, name: str, rounding: Rounding) -> Entry:
    if inputs.is_float(name):
        return Entry(name, rounding.dtype or inputs.dtype(name), inputs.shape(name))
    return Entry(name, inputs.base.stored_dtype(name), inputs.shape(name))


def _write(merger: Merger, writer: ShardWriter, ratio: float, rounding: Rounding) -> list[Measured]:
    """All blocks, merged, rounded and written; the tensors of floats measured."""
    inputs = merger.inputs
    blocks = [b for name in inputs.names for b in inputs.blocks(name)]

    def do(block: Block) -> tuple[Matrix | None, float]:
        if not inputs.is_float(block.name):
            writer.write(block.name, block.start, inputs.base.read(block.name, block.start, block.count))
            return None, 0.0
        tensors = inputs.read(block)
        matrix = None if block.name in merger.grams else merger.products(block, tensors)
        rounded = merger.rounded(block, merger.merged(block, tensors, ratio), rounding)
        writer.write(block.name, block.start, rounded)
        return matrix, merger.moved(block, tensors[0], rounded, rounding)

    matrices: dict[str, Matrix] = {}
    squares: dict[str, float] = {}
    with Progress("merge", sum(b.count for b in blocks), "weights") as bar, workers() as run:
        for block, (matrix, square) in zip(blocks, run(do, blocks), strict=True):
            if matrix is not None:
                matrices[block.name] = matrices.get(block.name, 0.0) + matrix
            squares[block.name] = squares.get(block.name, 0.0) + square
            writer.digest(block.name, block.start, block.count)
            bar.advance(block.count)
    grams = merger.grams | {name: Gram(matrix) for name, matrix in matrices.items()}
    return [Measured(name, grams[name], math.sqrt(squares[name])) for name in inputs.names if name in grams]


def _main_dtype(entries: Sequence[Entry]) -> str:
    """The name of the dtype that holds most parameters, as config.json writes it."""
    counts: Counter[str] = Counter()
    for e in entries:
        if e.dtype in DTYPES:
            counts[CONFIG_NAMES[e.dtype]] += math.prod(e.shape)
    return max(counts, key=lambda d: (counts[d], d))


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0.0 else math.nan


def _number(value: float) -> str:
    """Nothing where the figure does not exist, such as the angle of a zero vector."""
    return "" if math.isnan(value) else f"{value:.6g}"


def _summary(measured: Sequence[Measured]) -> dict[str, Any]:
    angles = [m.gram.angle(i) for m in measured for i in range(1, m.gram.count) if m.gram.difference(i) > 0.0]
    known = [math.degrees(a) for a in angles if not math.isnan(a)]
    difference = math.hypot(*(m.gram.mean_difference() for m in measured))
    return {
        "relative_change": _finite(_share(difference, math.hypot(*(m.gram.norm(0) for m in measured)))),
        "angle_degrees_max": max(known, default=None),
        "slerp_is_linear_share": sum(map(slerp.is_linear, angles)) / len(angles) if angles else None,
        "effective_ratio": _finite(_share(math.hypot(*(m.moved for m in measured)), difference)),
    }


def _finite(value: float) -> float | None:
    return None if math.isnan(value) else value


def _write_statistics(path: Path, measured: Sequence[Measured], models: Sequence[str]) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for m in measured:
        table.writerows(m.rows(models))
    write_text(path, text.getvalue())


def _write_config(base: Path, directory: Path, dtype: str, untie: bool) -> None:
    """The base's config.json with the dtype that was written, and head and embedding apart where the merge parted them."""
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    for part in [config, *(v for v in config.values() if isinstance(v, dict))]:
        if part is config or part.keys() & {"dtype", "torch_dtype"}:
            part.pop("torch_dtype", None)
            part["dtype"] = dtype
        if untie and (part is config or part is config.get("text_config") or "tie_word_embeddings" in part):
            part["tie_word_embeddings"] = False
    write_json(directory / "config.json", config)


def described(directory: Path) -> str:
    """A Hub snapshot as `repository at commit`, else the directory's own name, without the rest of a private path."""
    where = directory.absolute()
    if where.parent.name == "snapshots" and where.parent.parent.name.startswith("models--"):
        repository = where.parent.parent.name.removeprefix("models--").replace("--", "/")
        return f"{repository} at {where.name}"
    return where.name


def _write_card(
    directory: Path, inputs: Inputs, ratio: float, figures: Mapping[str, Any], description: Mapping[str, str]
) -> None:
    from frbio_lite.export.card import write_card  # loads the Hub's library and jinja2
    from frbio_lite.export.facts import Merged, hub_id
    from frbio_lite.export.licenses import license_of

    names = tuple(described(d) for d in inputs.directories)
    notes = {key: value for key, value in description.items() if key != "configuration"}
    configuration = description.get("configuration", "")
    license = license_of(hub_id(names[0]), inputs.base.directory)
    write_card(directory, Merged(names, license, figures, None if configuration else ratio, notes, configuration))
