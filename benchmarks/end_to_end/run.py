"""Seconds and memory of the demo by stage, the same of a run on a text of yours, and CPU training speed by threads.

    python benchmarks/end_to_end/run.py                                   the demo with the training of its base; threads
    python benchmarks/end_to_end/run.py --domain FILE --replay FILE       also `local-text` on these files

Writes results/*.csv beside this file. Everything runs in fresh directories; the user's cache is not touched.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import click

RESULTS = Path(__file__).parent / "results"
STAGES = ("corpus", "packed", "train", "ablation", "merge", "eval/base", "eval/adapted", "eval/merged", "report")
REPEATS = 5
SPEED = """
import sys, tempfile
from pathlib import Path
from frbio_lite import cli, packing, training  # cli first: it sets what torch reads when it loads
from frbio_lite.recipe import load_recipe
recipe = load_recipe("demo", ["train.tokens=40_960"])
run = Path(sys.argv[1])
with tempfile.TemporaryDirectory() as out:
    figures = training.train(run / "train", packing.PackedTokens(run / "packed"), recipe.train, recipe.packing, 1, Path(out))
print(figures["tokens_per_second"])
"""


def write(name: str, head: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / name).open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(head)
        table.writerows(rows)
    click.echo(f"{name} written")


def frbio(cache: Path, *arguments: str) -> tuple[float, int]:
    """(seconds, peak resident bytes) of one command as a whole process."""
    before = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-m", "frbio_lite.cli", *arguments], env={**os.environ, "FRBIO_CACHE": str(cache)}
    )
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise click.ClickException(f"frbio {' '.join(arguments)} failed")
    return time.monotonic() - before, usage.ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def stage_rows(prefix: str, directory: Path, stages: Iterable[str]) -> list[list[object]]:
    rows: list[list[object]] = []
    for stage in stages:
        figures = json.loads((directory / stage / "manifest.json").read_text(encoding="utf-8"))["figures"]
        tokens = figures.get("tokens_per_second")
        rows.append([prefix + stage, f"{figures['stage_seconds']:.2f}", f"{tokens:.0f}" if tokens else ""])
    return rows


def measure(name: str, cache: Path, out: Path, *arguments: str) -> None:
    """One run from nothing: NAME_stages.csv, NAME_curve.csv (validation) and NAME_test.csv."""
    seconds, peak = frbio(cache, "run", *arguments, "--out", str(out))
    rows = stage_rows("base model: ", cache / "demo", ("corpus", "packed", "train")) + stage_rows("", out, STAGES)
    rows.append(["whole command", f"{seconds:.1f}", ""])
    write(f"{name}_stages.csv", ["stage", "seconds", "training_tokens_per_second"], rows)
    write(f"{name}_memory.csv", ["what", "bytes"], [["peak resident memory of the whole command", peak]])
    with (out / "ablation" / "ablation.csv").open(encoding="utf-8", newline="") as file:
        curve = list(csv.reader(file))
    write(f"{name}_curve.csv", curve[0], curve[1:])
    test = [
        [model, *(row[k] for k in ("task", "group", "metric", "value", "low", "high", "items"))]
        for model in ("base", "adapted", "merged")
        for row in json.loads((out / "eval" / model / "results.json").read_text(encoding="utf-8"))["rows"]
    ]
    write(f"{name}_test.csv", ["model", "task", "group", "metric", "value", "low", "high", "items"], test)


@contextmanager
def busy(processes: int) -> Iterable[None]:
    """Other work on the machine: processes that compute all the time."""
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


def speed(run: Path, threads: int, spin: str | None) -> float:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    environment.pop("GOMP_SPINCOUNT", None)
    if spin:
        environment["GOMP_SPINCOUNT"] = spin
    done = subprocess.run(
        [sys.executable, "-c", SPEED, str(run)], env=environment, capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def measure_threads(run: Path) -> None:
    """Interleaved, so that what else the machine does falls on all alike; medians."""
    settings = [
        (t, s, b)
        for b in (0, os.cpu_count() or 1)
        for t in (1, 2)
        for s in (("1000", "300000") if t > 1 else ("1000",))
    ]
    seen: dict[tuple[int, str, int], list[float]] = {s: [] for s in settings}
    for _ in range(REPEATS):
        for threads, spin, hogs in settings:
            with busy(hogs):
                seen[threads, spin, hogs].append(speed(run, threads, spin))
    rows = [[t, s, b, f"{statistics.median(v):.0f}", f"{min(v):.0f}", f"{max(v):.0f}"] for (t, s, b), v in seen.items()]
    write(
        "threads.csv",
        ["threads", "gomp_spincount", "busy_processes", "tokens_per_second_median", "lowest", "highest"],
        rows,
    )


@click.command()
@click.option("--domain", type=click.Path(exists=True, path_type=Path), help="A French text file for `local-text`.")
@click.option("--replay", type=click.Path(exists=True, path_type=Path), help="A general text file for `local-text`.")
def main(domain: Path | None, replay: Path | None) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        measure("demo", place / "cache", place / "demo", "demo")
        if domain:
            files = [f"corpus.sources.{i}.path={f}" for i, f in enumerate((domain, replay)) if f]
            measure(
                "local_text", place / "cache2", place / "text", "local-text", *(x for f in files for x in ("--set", f))
            )
        measure_threads(place / "demo")
    libraries = [[n, version(n)] for n in ("frbio-lite", "torch", "transformers")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    write("machine.csv", ["what", "value"], [["cores", os.cpu_count()], ["memory_bytes", memory], ["cpu", cpu()],
                                             ["python", platform.python_version()], *libraries])  # fmt: skip


def cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


if __name__ == "__main__":
    main()
