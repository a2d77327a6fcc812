"""A headless Chromium that a test drives: messages of the DevTools protocol as JSON, through a pair of pipes."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Chromium reads commands from file 3 and answers in file 4
_AS_THREE_AND_FOUR = """
import os, sys
ends = [os.dup(int(end)) for end in sys.argv[1:3]]
os.dup2(os.dup(ends[0]), 3), os.dup2(os.dup(ends[1]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser() -> str | None:
    """The path of one that is installed."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Tab:
    """A page in the browser, `addresses` it asked for, and `complaints` that its console or its policy had."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back, self._number, self._session = to, back, 0, ""
        self._unread = b""
        self.addresses: list[str] = []
        self.complaints: list[str] = []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command, and its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            said = self._next()
            if said.get("id") == self._number:
                assert "error" not in said, (method, said["error"])
                return said["result"]
            self._note(said)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            piece = os.read(self._back, 2**20)
            assert piece, "the browser has gone"
            self._unread += piece
        first, self._unread = self._unread.split(b"\0", 1)
        return json.loads(first)

    def _note(self, said: dict[str, Any]) -> None:
        match said.get("method"), said.get("params", {}):
            case "Network.requestWillBeSent", {"request": {"url": url}}:
                self.addresses.append(url)
            case "Log.entryAdded", {"entry": entry}:
                self.complaints.append(entry["text"])
            case "Runtime.exceptionThrown", {"exceptionDetails": details}:
                self.complaints.append(str(details))

    def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript."""
        said = self("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")

    def until(self, condition: str, seconds: float = 20) -> None:
        """Waits for an expression of JavaScript to become true."""
        end = time.monotonic() + seconds
        while not self.evaluate(condition):
            assert time.monotonic() < end, (condition, self.evaluate("document.body.innerText"), self.complaints)
            time.sleep(0.05)

    def open(self, url: str, *, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        """A page in a window of that size, for somebody who prefers light or dark ones."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", features=[scheme])
        self("Page.navigate", url=url)
        self.until(f"location.href.startsWith({json.dumps(url)}) && document.readyState === 'complete'")

    def drag(self, files: list[Path], selector: str, *, drop: bool = True) -> None:
        """Files from outside over an element, as by a mouse."""
        box = self.evaluate(
            f"(({{x, y, width, height}}) => [x + width / 2, y + height / "
            f"2])({_element(selector)}.getBoundingClientRect())"
        )
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", *(["drop"] if drop else [])):
            self("Input.dispatchDragEvent", type=kind, x=box[0], y=box[1], data=data)

    def choose(self, files: list[Path], selector: str) -> None:
        """Files in a file input."""
        found = self("Runtime.evaluate", expression=_element(selector))["result"]["objectId"]
        self("DOM.setFileInputFiles", files=[str(file) for file in files], objectId=found)

    def screenshot(self, file: Path) -> None:
        """The whole page."""
        size = self("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        said = self("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        file.write_bytes(base64.b64decode(said["data"]))


@contextmanager
def browsing(profile: Path) -> Iterator[Tab]:
    """A tab of a browser of its own, which keeps its files in `profile`."""
    browser = find_browser()
    assert browser
    their_in, our_out = os.pipe()
    our_in, their_out = os.pipe()
    options = [
        "--headless=new",
        "--remote-debugging-pipe",
        f"--user-data-dir={profile}",
        "--no-first-run",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        *(["--no-sandbox"] if os.geteuid() == 0 else []),  # it refuses to start as root otherwise
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", _AS_THREE_AND_FOUR, str(their_in), str(their_out), browser, *options],
        pass_fds=(their_in, their_out),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(their_in)
    os.close(their_out)
    try:
        yield Tab(our_out, our_in)
    finally:
        process.terminate()
        process.wait(timeout=20)
        os.close(our_out)
        os.close(our_in)


def _element(selector: str) -> str:
    return f"document.querySelector({json.dumps(selector)})"
