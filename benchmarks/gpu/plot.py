"""Drawings of the tables: shares of the copy bandwidth, speed and memory of trainings, loss curves.

python benchmarks/gpu/plot.py results    # draws again from the tables of a folder
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

GIB = 2**30
Rows = Sequence[Mapping[str, Any]]


def draw(part: str, rows: Rows, losses: Rows, out: Path) -> None:
    """PART.svg, and PART_losses.svg where there are loss curves; nothing where nothing was measured."""
    if part == "kernels":
        measured = [row for row in rows if row["share_of_copy"] not in ("", None)]
        panels = {"share of copy bandwidth": lambda row: float(row["share_of_copy"])}
        label = "{op} {direction}"
    else:
        measured = [row for row in rows if row["status"] == "ok"]
        panels = {"tokens per second": lambda row: float(row["tokens_per_second"])}
        if any(row.get("peak_reserved") for row in measured):
            panels["peak reserved, GiB"] = lambda row: float(row["peak_reserved"] or 0) / GIB
        label = "{method} {model}"
    if measured:
        _bars(measured, panels, label, out / f"{part}.svg")
    if losses:
        _curves(losses, out / f"{part}_losses.svg")


def _bars(rows: Rows, panels: Mapping[str, Any], label: str, path: Path) -> None:
    groups = list(dict.fromkeys(label.format(**row) for row in rows))
    names = list(dict.fromkeys(str(row["implementation"]) for row in rows))
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(6 * len(panels), 1 + 0.25 * len(groups) * len(names)), squeeze=False
    )
    for axis, (title, value) in zip(axes[0], panels.items(), strict=True):
        for i, name in enumerate(names):
            mine = [row for row in rows if row["implementation"] == name]
            places = [groups.index(label.format(**row)) + 0.8 * i / len(names) for row in mine]
            axis.barh(places, [value(row) for row in mine], height=0.8 / len(names), label=name)
        axis.set_yticks([g + 0.4 - 0.4 / len(names) for g in range(len(groups))], groups)
        axis.invert_yaxis()
        axis.set_xlabel(title)
    axes[0][0].legend()
    _save(figure, path)


def _curves(rows: Rows, path: Path) -> None:
    trainings = list(dict.fromkeys((str(row["method"]), str(row["model"])) for row in rows))
    figure, axes = pyplot.subplots(1, len(trainings), figsize=(4 * len(trainings), 3.2), squeeze=False)
    for axis, training in zip(axes[0], trainings, strict=True):
        mine = [row for row in rows if (row["method"], row["model"]) == training]
        for name in dict.fromkeys(str(row["implementation"]) for row in mine):
            curve = [(int(row["step"]), float(row["loss"])) for row in mine if row["implementation"] == name]
            axis.plot(*zip(*curve, strict=True), label=name)
        axis.set_title(" ".join(training))
        axis.set_xlabel("step")
    axes[0][0].set_ylabel("loss, nats per token")
    axes[0][0].legend()
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def _read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open(encoding="utf-8", newline=""))) if path.is_file() else []


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for table in folder.glob("*.csv"):
        if not table.stem.endswith("_losses"):
            draw(table.stem, _read(table), _read(folder / f"{table.stem}_losses.csv"), folder)
