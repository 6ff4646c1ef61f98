"""Commands in forks of one process that has loaded the libraries, so that each costs its work and not seconds of imports.

    with Frbio({"HF_ENDPOINT": hub.url}) as frbio:
        done = frbio("run", "demo", cwd=workspace)      # done.status, done.stdout, done.stderr, done.seconds
        done = frbio.python("benchmarks/merging/run.py", "--help", cwd=repository)

Each command is a process of its own and nothing that it changes reaches the next. The environment is that of the first process,
since libraries read some of it when they load.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOADED = ("datasets", "frbio_lite.pipeline", "frbio_lite.cli", "frbio_lite.memory", "frbio_lite.evaluation.compare")


@dataclass(frozen=True)
class Done:
    status: int  # of a command that a signal ended: minus the signal
    stdout: str
    stderr: str
    seconds: float


class Frbio:
    """Calls are commands; `with` ends the process that they are forked from."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        given = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=given
        )

    def __enter__(self) -> Frbio:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.kill()  # between two commands it holds nothing, and its libraries take seconds to say goodbye
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def __call__(self, *arguments: str | Path, cwd: Path, kill_after: float | None = None) -> Done:
        """Run `frbio ARGUMENTS` in `cwd`; with `kill_after` the command is killed after so many seconds."""
        return self._ask(["frbio", *arguments], cwd, kill_after)

    def python(self, *arguments: str | Path, cwd: Path) -> Done:
        """Run `python ARGUMENTS`: a script and its arguments, or `-m` and a module."""
        return self._ask(["python", *arguments], cwd, None)

    def _ask(self, command: list[str | Path], cwd: Path, kill_after: float | None) -> Done:
        assert self._process.stdin is not None and self._process.stdout is not None
        request = {"command": [str(part) for part in command], "cwd": str(cwd), "kill_after": kill_after}
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return Done(**json.loads(self._process.stdout.readline()))


def _serve() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints while it loads is no reply
    for name in LOADED:
        importlib.import_module(name)
    for line in sys.stdin:
        print(json.dumps(_run(**json.loads(line))), file=replies, flush=True)


def _run(command: list[str], cwd: str, kill_after: float | None) -> dict[str, Any]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            _become(command, cwd, out.fileno(), err.fileno())
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        found = {"status": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - began}
        for name, file in (("stdout", out), ("stderr", err)):
            file.seek(0)
            found[name] = file.read().decode("utf-8", "replace")
        return found


def _become(command: list[str], cwd: str, out: int, err: int) -> None:
    """In the fork: what the console script, or the interpreter, does, with its own directory and files."""
    status = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.chdir(cwd)
        _start(*command)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _start(program: str, *arguments: str) -> None:
    if program == "frbio":
        sys.argv = [program, *arguments]
        importlib.import_module("frbio_lite.cli").main(prog_name=program)
    elif arguments[0] == "-m":
        sys.path[0] = os.getcwd()
        sys.argv = list(arguments[1:])
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(arguments[0]).resolve().parent)
        sys.argv = list(arguments)
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    _serve()
