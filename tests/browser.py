"""A headless Chromium for tests, driven over the Chrome DevTools Protocol.

    with Browser() as browser:
        browser.goto("http://127.0.0.1:8000/")
        browser.wait_for("document.querySelector('#done')")
        browser.screenshot(tmp_path / "page.png")

https://chromedevtools.github.io/devtools-protocol/ describes the methods.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = None if CHROMIUM else "needs Chromium: apt install chromium"
"""Why there is no browser here; None where there is one."""
KEYS = {"Enter": 13, "Escape": 27, " ": 32, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


class Browser:
    """One page. `errors` gathers what the page's scripts threw and what it logged as an error."""

    def __init__(self, width: int = 1280, height: int = 800) -> None:
        self.size, self.errors = (width, height), []
        self._count = 0

    def __enter__(self) -> Browser:
        from websockets.sync.client import connect

        assert CHROMIUM, MISSING
        self._profile = tempfile.mkdtemp(prefix="browser-")
        command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        command += [
            "--disable-dev-shm-usage",
            "--remote-debugging-port=0",
            f"--user-data-dir={self._profile}",
        ]
        command += [f"--window-size={self.size[0]},{self.size[1]}", "about:blank"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        file = Path(self._profile, "DevToolsActivePort")
        _until(lambda: file.exists() and file.read_text().count("\n") >= 1, 60, "Chromium to start")
        self._port = int(file.read_text().split()[0])
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/json") as reply:
            page = next(target for target in json.load(reply) if target["type"] == "page")
        self._connection = connect(page["webSocketDebuggerUrl"], max_size=None)
        self._socket = self._connection.__enter__()
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.__exit__(None, None, None)
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._profile, ignore_errors=True)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One method of the protocol and its result. Raises AssertionError where the browser refuses."""
        self._count += 1
        self._socket.send(json.dumps({"id": self._count, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("id") == self._count:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            self._note(message)

    def goto(self, url: str) -> None:
        """Open a page and wait until it has loaded."""
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState == 'complete' && location.href != 'about:blank'")

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression; promises are awaited."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, f"{script}: {result['exceptionDetails']}"
        return result["result"].get("value")

    def wait_for(self, script: str, seconds: float = 60) -> None:
        """Wait until a JavaScript expression is true."""
        _until(lambda: self.evaluate(f"Boolean({script})"), seconds, script)

    def click(self, selector: str) -> None:
        """Press the left mouse button in the middle of the first element that fits a CSS selector.

        As a person does: bring it into view, go there, and press once it rests under the pointer.
        """
        aim = None
        script = (
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); if (!e) return null;"
            "e.scrollIntoView({block: 'nearest'}); const b = e.getBoundingClientRect();"
            "const x = b.x + b.width / 2, y = b.y + b.height / 2;"
            "return {x, y, hit: e.contains(document.elementFromPoint(x, y))}; })()"
        )

        def rests() -> bool:
            nonlocal aim
            before, aim = aim, self.evaluate(script)
            if aim:
                self.call("Input.dispatchMouseEvent", type="mouseMoved", x=aim["x"], y=aim["y"])
            return aim is not None and aim["hit"] and aim == before

        _until(rests, 60, f"{selector} to be in view and at rest")
        assert aim is not None
        for kind in ("mousePressed", "mouseReleased"):
            self.call(
                "Input.dispatchMouseEvent", type=kind, x=aim["x"], y=aim["y"], button="left", clickCount=1
            )

    def type(self, text: str) -> None:
        """Type into the element that has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, held_seconds: float = 0.0) -> None:
        """Press a key, such as "w", "Enter" or "ArrowLeft", and let go of it."""
        code = KEYS.get(key, ord(key[0].upper()))
        event = {
            "key": key,
            "code": key if len(key) > 1 else f"Key{key.upper()}",
            "windowsVirtualKeyCode": code,
        }
        self.call("Input.dispatchKeyEvent", type="keyDown", text=key if len(key) == 1 else "", **event)
        time.sleep(held_seconds)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def screenshot(self, path: Path) -> None:
        """Write what the window shows as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def _note(self, event: dict[str, Any]) -> None:
        details = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(details["exceptionDetails"])
        elif event.get("method") == "Log.entryAdded" and details["entry"]["level"] == "error":
            self.errors.append(details["entry"]["text"])


def _until(true: Any, seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds:g} s for {what}"
        time.sleep(0.05)
