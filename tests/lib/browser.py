"""A headless Chromium, driven over two pipes by its DevTools protocol; the standard library alone.

Messages are JSON with a zero byte after each; the browser reads file descriptor 3, writes 4.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import selectors
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 60.0  # seconds for one answer: the machine may be busy
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


def browser_path() -> str | None:
    """The browser on PATH, if there is one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class PageError(AssertionError):
    """A script of the page failed, or the browser did not answer."""


class Browser:
    """One page of a browser; `problems` collects console errors and uncaught exceptions."""

    def __init__(self, process: subprocess.Popen, to_browser: int, from_browser: int) -> None:
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._process, self._to, self._from = process, to_browser, from_browser
        self._ready, self._buffer, self._number = selectors.DefaultSelector(), b"", 0
        self._ready.register(from_browser, selectors.EVENT_READ)
        self._session: str | None = None
        self._loaded = False
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command and its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") != self._number:
                self._note(answer)
            elif "error" in answer:
                raise PageError(f"{method}: {answer['error']}")
            else:
                return answer["result"]

    def open(
        self, page: Path | str, width: int = 1280, height: int = 900, dark: bool = False
    ) -> None:
        """Open a local file, or an address, at this size and wait until it is drawn."""
        self.problems, self.requests, self._loaded = [], [], False
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        url = page if isinstance(page, str) else page.absolute().as_uri()
        self.send("Page.navigate", url=url)
        while not self._loaded:
            self._note(self._read())
        self.settle()

    def settle(self) -> None:
        """Wait for two animation frames: what was asked for is drawn."""
        frame = "new Promise(requestAnimationFrame)"
        self.run(f"{frame}.then(() => {frame}).then(() => null)")

    def run(self, script: str) -> Any:
        """The value of an expression in the page; a promise is awaited."""
        answer = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise PageError(_exception(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """kind: mouseMoved, mousePressed or mouseReleased, at a point of the viewport."""
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def screenshot(self, path: Path) -> Path:
        """What is seen now, as a PNG."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))
        return path

    def _read(self) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            if not self._ready.select(max(0.0, until - time.monotonic())):
                raise PageError(f"no answer from the browser within {PATIENCE:g} s")
            chunk = os.read(self._from, 1 << 20)
            if not chunk:
                raise PageError("the browser has ended")
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        method, what = event.get("method"), event.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Runtime.exceptionThrown":
            self.problems.append(_exception(what["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and what["type"] in ("error", "warning"):
            self.problems.append(str([one.get("value") for one in what["args"]]))
        elif method == "Log.entryAdded" and what["entry"]["level"] in ("error", "warning"):
            self.problems.append(what["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(what["request"]["url"])


def _exception(details: dict[str, Any]) -> str:
    return details.get("exception", {}).get("description") or details["text"]


@contextmanager
def started_browser(path: str) -> Iterator[Browser]:
    """A browser with a profile folder of its own; ended and removed at exit."""
    reads, to_browser = os.pipe()
    from_browser, writes = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [path, *FLAGS, f"--user-data-dir={folder}", "about:blank"],
            preexec_fn=lambda: _as_three_and_four(reads, writes),
            pass_fds=(3, 4),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(reads)
        os.close(writes)
        try:
            yield Browser(process, to_browser, from_browser)
        finally:
            process.terminate()
            process.wait(timeout=PATIENCE)
            os.close(to_browser)
            os.close(from_browser)


def _as_three_and_four(reads: int, writes: int) -> None:
    """The pipes on the descriptors where Chromium looks; first out of each other's way."""
    free = [fcntl.fcntl(one, fcntl.F_DUPFD, 10) for one in (reads, writes)]
    for one, wanted in zip(free, (3, 4), strict=True):
        os.dup2(one, wanted)
