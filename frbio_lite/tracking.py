"""A copy of the training log for a tracking tool, beside train/log.jsonl: TensorBoard or trackio, if installed.

    frbio run demo --track tensorboard      →  runs/demo/tensorboard, for `tensorboard --logdir runs`

Tracking changes no result, is part of no recipe and no stage's key, and its first error ends it, not the training. Whenever a
training starts or goes on, the log so far is written anew in place of what the tool had of this training: no step is missing and
none is there twice, whatever interrupted it.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from frbio_lite.errors import RequestError
from frbio_lite.progress import say

Tool = Literal["tensorboard", "trackio"]
TOOLS: tuple[Tool, ...] = get_args(Tool)
PROJECT = "frbio-lite"  # trackio's
Line = Mapping[str, Any]  # of log.jsonl: a step and its figures


class Writer(Protocol):
    """What a tool is asked to do; `write` comes once for each step."""

    def write(self, step: int, figures: Mapping[str, float]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def check_tool(tool: str) -> None:
    """Raise RequestError when the tool is unknown or not installed."""
    if tool not in TOOLS:
        raise RequestError(f"--track {tool}: {' and '.join(TOOLS)} are known; train/log.jsonl is written in any case")
    if importlib.util.find_spec(tool) is None:
        raise RequestError(f"--track {tool}: {tool} is not installed: pip install {tool}, or leave --track out")


class Tracker:
    """Hands the log to the writer that `open_writer` makes once training begins; without one it does nothing."""

    def __init__(self, open_writer: Callable[[], Writer] | None = None) -> None:
        self._open = open_writer
        self._writer: Writer | None = None

    @contextmanager
    def following(self, lines: Sequence[Line]) -> Iterator[None]:
        """While training: begins with the `lines` of an earlier process, closes the writer at the end."""
        self._safely(self._begin, lines)
        try:
            yield
        finally:
            if self._writer is not None:
                self._safely(self._writer.close)

    def log(self, line: Line) -> None:
        """Write one line of the log: `step`, and figures or None."""
        self._safely(self._write, line)

    def flush(self) -> None:
        if self._writer is not None:
            self._safely(self._writer.flush)

    def _begin(self, lines: Sequence[Line]) -> None:
        if self._open is not None:
            self._writer = self._open()
        for line in lines:
            self._write(line)

    def _write(self, line: Line) -> None:
        if self._writer is not None:
            figures = {name: float(value) for name, value in line.items() if name != "step" and value is not None}
            self._writer.write(int(line["step"]), figures)

    def _safely(self, act: Callable[..., object], *given: Any) -> None:
        try:
            act(*given)
        except Exception as error:  # a full disk, a server gone, a tool's own fault
            self._writer = None
            why = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
            say(f"train: warning: tracking ends here ({why}); training goes on, and log.jsonl has every step")


def tracker(tool: Tool | None, run: Path, key: str) -> Tracker:
    """The tracker of the training in the run directory `run`; `key`, the same for each process of one training, names it."""
    if tool is None:
        return Tracker()
    name = f"{run.absolute().name}-{key[:8]}"
    return Tracker(lambda: TensorBoard(run / "tensorboard" / name) if tool == "tensorboard" else Trackio(name))


class TensorBoard:
    """Scalars `train/…` in event files of one directory. Readers drop what an earlier file says of the same steps."""

    def __init__(self, directory: Path) -> None:
        library = importlib.import_module("torch.utils.tensorboard")
        self._writer = library.SummaryWriter(str(directory), purge_step=1)
        say(f"train: tensorboard --logdir {directory.parent}")

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(f"train/{name}", value, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Trackio:
    """A run of the project `frbio-lite`, on this machine unless trackio's own variables say where else. It prints nothing."""

    def __init__(self, name: str) -> None:
        trackio = importlib.import_module("trackio")
        with redirect_stdout(io.StringIO()):
            for run in _runs(trackio):
                if run.name == name:
                    run.delete()
            self._run = trackio.init(PROJECT, name, embed=False, auto_log_gpu=False, auto_log_cpu=False)
        self._finish = trackio.finish
        say(f"train: trackio show --project {PROJECT}")

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def flush(self) -> None:
        """It sends by itself, twice a second."""

    def close(self) -> None:
        with redirect_stdout(io.StringIO()):
            self._finish()


def _runs(trackio: Any) -> list[Any]:
    try:
        return list(trackio.Api().runs(PROJECT))
    except ValueError:  # the project's first run
        return []
