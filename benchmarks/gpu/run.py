"""Kernels, training and what fits, measured on the GPU at hand.

    python benchmarks/gpu/run.py                    # all parts; needs a GPU and no network
    python benchmarks/gpu/run.py --only kernels --only fits --cap-gib 12
    python benchmarks/gpu/run.py --tiny --out DIR   # tiny shapes on a CPU: tries the logic, measures nothing of use

Writes a table for each part, rows as they come, with the losses of each step of a training and a drawing (plot.py), into results/
beside this file or into --out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported

import click
import torch

PARTS = ("kernels", "training", "fits", "fp16")


def measure(
    part: str, tiny: bool, cap_gib: float, text: Path | None
) -> tuple[tuple[str, ...], Iterator[dict[str, Any]]]:
    """The columns of a part and its rows, measured as they are asked for."""
    import ops  # bitsandbytes prints a line when it is imported: not before it is known that there is something to do
    import training

    if part == "kernels":
        return ops.COLUMNS, ops.run(tiny)
    return training.COLUMNS, training.run(part, tiny, cap_gib, text)


@click.command()
@click.option("--only", type=click.Choice(PARTS), multiple=True, help="Run these parts; again for more. Default: all.")
@click.option("--tiny", is_flag=True, help="Tiny shapes on a CPU.")
@click.option("--cap-gib", default=24.0, show_default=True, help="Memory of the card that training pretends to be.")
@click.option(
    "--text", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="What is trained on: a .txt file."
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path(__file__).parent / "results")
def main(only: tuple[str, ...], tiny: bool, cap_gib: float, text: Path | None, out: Path) -> None:
    if not tiny and not torch.cuda.is_available():
        raise click.ClickException("there is no CUDA GPU here: nothing is measured (--tiny tries the logic on a CPU)")
    from common import write
    from plot import draw
    from training import LOSS_COLUMNS

    out.mkdir(parents=True, exist_ok=True)
    for part in only or PARTS:
        rows: list[dict[str, Any]] = []
        losses: list[dict[str, Any]] = []
        columns, measured = measure(part, tiny, cap_gib, text)
        for row in measured:
            curve = row.pop("losses", [])
            losses += [{**_shared(row), "step": step, "loss": loss} for step, loss in enumerate(curve, 1)]
            rows.append(row)
            click.echo(", ".join(f"{name} {value}" for name, value in row.items() if value not in ("", None)))
            write(out / f"{part}.csv", columns, rows)
            if losses:
                write(out / f"{part}_losses.csv", LOSS_COLUMNS, losses)
        draw(part, rows, losses, out)


def _shared(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("part", "model", "method", "implementation")}


if __name__ == "__main__":
    main()
