"""Progress of long work: a tqdm bar on a terminal, a plain line every ten seconds elsewhere, both on stderr."""

from __future__ import annotations

import shutil
import sys
import textwrap
import time
from types import TracebackType
from typing import Any, TextIO

LINE_SECONDS = 10.0


# As tqdm has it, with a rate that is never turned over into seconds per unit.
BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"


def fit(text: str, stream: TextIO) -> str:
    """The text with its lines broken between words where `stream` is a terminal, which breaks inside them; else as it is."""
    if not stream.isatty():
        return text
    width = shutil.get_terminal_size().columns
    lines = text.split("\n")
    return "\n".join(textwrap.fill(s, width, break_long_words=False, break_on_hyphens=False) if s else s for s in lines)


def say(message: str) -> None:
    """Print a line for the person watching, without tearing a bar; stdout stays free for results."""
    from tqdm import tqdm

    tqdm.write(fit(message, sys.stderr), file=sys.stderr)


class Progress:
    """`with Progress("train", total=steps, unit="step") as bar: bar.advance(1, loss=2.3)`.

    Nothing shows before a second has passed, so short work stays silent. Units may be fractions, such as megabytes.
    """

    def __init__(self, label: str, total: float | None, unit: str, initial: float = 0) -> None:
        self.label, self.total, self.unit, self.initial, self.done = label, total, unit, initial, initial
        self.started = self.last_line = time.monotonic()
        self.bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(
                total=total,
                desc=label,
                unit=f" {unit}",
                initial=initial,
                delay=1.0,
                unit_scale=not isinstance(total, int) or total >= 10_000,  # 12.3k tokens, but 80 items
                bar_format=BAR if total else None,
                dynamic_ncols=True,
                leave=False,
                file=sys.stderr,
            )

    def __enter__(self) -> Progress:
        return self

    def advance(self, n: float = 1, **shown: float | str) -> None:
        """Count `n` more units; `shown` are figures put beside the rate, such as the loss."""
        self.done += n
        figures = {k: f"{v:.4g}" if isinstance(v, float) else str(v) for k, v in shown.items()}
        if self.bar is not None:
            if figures:
                self.bar.set_postfix(figures, refresh=False)
            if self.total:
                self.bar.total = max(self.total, self.done)  # an estimate can fall short, and tqdm would warn
            self.bar.update(n)
            return
        now = time.monotonic()
        if now - self.last_line >= LINE_SECONDS:
            self.last_line = now
            say(self._line(now, figures))

    def _line(self, now: float, figures: dict[str, str]) -> str:
        rate = (self.done - self.initial) / max(now - self.started, 1e-9)
        of = f"/{self.total:,.0f}" if self.total else ""
        left = f", {(self.total - self.done) / rate:.0f} s left" if self.total and rate > 0 else ""
        extra = "".join(f", {k} {v}" for k, v in figures.items())
        speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
        return f"{self.label}: {self.done:,.0f}{of} {self.unit}, {speed} {self.unit}/s{left}{extra}"

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.close()
