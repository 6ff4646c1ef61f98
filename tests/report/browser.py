"""A page in headless Chromium, driven by its DevTools protocol over a pipe: no port, no network.

with opened(tmp_path / "r.html", width=390) as page:
    page.click("button")
    assert page.value("document.title") == "…" and page.errors == []
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-sync",
    "--disable-component-update",
    "--remote-debugging-pipe",
)
KEYS = {"ArrowLeft": 37, "ArrowRight": 39, "Tab": 9, " ": 32}  # to their key codes
TIMEOUT = 60  # seconds until Chromium is ended, whatever it waits for


class Page:
    """One page. `errors`: what the console reported as one, uncaught exceptions and refused loads."""

    def __init__(self, send: int, receive: int) -> None:
        self._send, self._receive = os.fdopen(send, "wb", 0), os.fdopen(receive, "rb", 0)
        self._rest, self._last, self._session = b"", 0, ""
        self._events: list[dict[str, Any]] = []
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setScrollbarsHidden", hidden=True)  # a screenshot of more than the window has none

    def close(self) -> None:
        self._send.close()
        self._receive.close()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """What a method of the protocol answers. Raises RuntimeError with what went wrong."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._send.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._last:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return dict(answer["result"])

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            read = self._receive.read(1 << 16)
            if not read:
                raise RuntimeError("Chromium ended")
            self._rest += read
        text, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        self._events.append(message)
        shown = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            details = shown["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        if message.get("method") == "Runtime.consoleAPICalled" and shown["type"] in {"error", "assert"}:
            self.errors.append(str([argument.get("value") for argument in shown["args"]]))
        if message.get("method") == "Log.entryAdded" and shown["entry"]["level"] == "error":
            self.errors.append(shown["entry"]["text"])
        return message

    def look(self, width: int, height: int = 900, *, dark: bool = False, paper: bool = False) -> None:
        """The size of the window in CSS pixels, its colours, and whether it is to be printed."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media="print" if paper else "", features=[scheme])

    def go(self, path: Path) -> None:
        """Open a file and wait until it is loaded."""
        self._events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self._events):
            self._next()

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives, as JSON. Raises RuntimeError where it throws."""
        told = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in told:
            raise RuntimeError(f"{expression}: {told['exceptionDetails']['exception'].get('description')}")
        return told["result"].get("value")

    def click(self, selector: str) -> None:
        """Press and release the mouse in the middle of the element, once it is in view."""
        name = json.dumps(selector)
        self.value(f"document.querySelector({name}).scrollIntoView({{block: 'center'}})")
        box = self.value(f"document.querySelector({name}).getBoundingClientRect().toJSON()")
        assert box["width"] and box["height"], f"{selector} cannot be seen, so nobody can click it"
        at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, **at)

    def press(self, key: str) -> None:
        """A key of KEYS, where the focus is."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS[key])

    def screenshot(self, path: Path, selector: str = "html") -> None:
        """The element as a PNG, whole, however long it is."""
        box = self.value(
            f"(() => {{ const b = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
            " return {x: b.x + scrollX, y: b.y + scrollY, width: b.width, height: b.height}; })()"
        )
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip={**box, "scale": 1})
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def opened(path: Path, width: int = 1280, *, dark: bool = False) -> Iterator[Page]:
    """The file in a browser of its own, which is ended afterwards."""
    assert CHROMIUM is not None
    (child_in, send), (receive, child_out) = os.pipe(), os.pipe()
    # Chromium reads from 3 and writes to 4; copies above them keep dup2 from closing one that it still needs
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (child_in, child_out)]

    def connect() -> None:
        os.dup2(ends[0], 3)
        os.dup2(ends[1], 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = ["timeout", "-k", "5", str(TIMEOUT), CHROMIUM, *FLAGS, f"--user-data-dir={profile}"]
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(flags, preexec_fn=connect, pass_fds=(3, 4), **quiet)
        for end in (child_in, child_out, *ends):
            os.close(end)
        try:
            page = Page(send, receive)
            try:
                page.look(width, dark=dark)
                page.go(path)
                yield page
            finally:
                page.close()
        finally:
            process.terminate()
            process.wait()
