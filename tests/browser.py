"""A headless Chromium, spoken to through a pipe in the Chrome DevTools Protocol: how a page behaves and looks."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pytest

NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS: Final = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe",
    "--font-render-hinting=none",
)  # fmt: skip

LOOK: Final = """
(async () => {
  const image = new Image();
  image.src = 'data:image/png;base64,%s';
  await image.decode();
  const canvas = new OffscreenCanvas(image.width, image.height), context = canvas.getContext('2d');
  context.drawImage(image, 0, 0);
  const data = context.getImageData(0, 0, image.width, image.height).data, counts = new Map();
  for (let at = 0; at < data.length; at += 4) {
    const key = (data[at] << 16) | (data[at + 1] << 8) | data[at + 2];
    counts.set(key, (counts.get(key) || 0) + 1);
  }
  const parts = key => [key >> 16, (key >> 8) & 255, key & 255];
  const first = (data[0] << 16) | (data[1] << 8) | data[2];
  return {
    corner: parts(first),
    paper: counts.get(first) / (data.length / 4),
    colours: [...counts]
      .filter(([key, count]) => count >= 40 && Math.max(...parts(key)) - Math.min(...parts(key)) >= 85)
      .map(([key]) => key).sort((one, two) => one - two),
  };
})()
"""


def chromium() -> str:
    """The browser's program; where there is none the test is skipped, and in CI it fails."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        why = f"there is no Chromium: none of {', '.join(NAMES)} is on the path"
        if os.environ.get("SPECC_CI"):
            pytest.fail(f"{why}, and `.ci/run` should have installed it")
        pytest.skip(why)
    return found


class Browser:
    """A browser with one page. `events` are those of the page, as the protocol names them."""

    def __init__(self) -> None:
        program = chromium()
        self._profile = tempfile.TemporaryDirectory(prefix="specc-chromium-", ignore_cleanup_errors=True)
        commands, self._to = os.pipe()
        answers, out = os.pipe()
        # The browser reads commands from its file descriptor 3 and writes to 4, whatever numbers the pipes have here.
        line = 'exec 3<&"$1" 4>&"$2"; shift 2; exec "$@"'
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", line, "-", str(commands), str(out), program, *OPTIONS,
             f"--user-data-dir={self._profile.name}"],
            pass_fds=(commands, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        os.close(commands)
        os.close(out)
        self._from = os.fdopen(answers, "rb")
        self._rest, self._count, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._count:
            self.events.append(answer)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def open(self, path: Path, *, width: int, height: int, dark: bool) -> None:
        """Open a file in a window of some size, on a light or a dark desktop."""
        self.events.clear()
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                 mobile=width < 600)  # fmt: skip
        self.ask("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])  # fmt: skip
        self.ask("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def run(self, script: str) -> Any:
        """Evaluate a JavaScript expression in the page."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def picture(self, *, whole: bool = False) -> bytes:
        """Return a PNG of the window, or of the whole page."""
        answer = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole,
                          **({"clip": self._whole()} if whole else {}))  # fmt: skip
        return base64.b64decode(answer["data"])

    def look(self, picture: bytes) -> dict[str, Any]:
        """Return a PNG's `corner` as [red, green, blue], the share of it that is so, and how often strong colours are.

        `colours` are those that at least 40 pixels have and whose channels differ by a third or more, sorted.
        """
        self.ask("Page.navigate", url="about:blank")
        return self.run(LOOK % base64.b64encode(picture).decode())

    def requests(self) -> list[str]:
        """Return what the page asked for, itself included."""
        return [event["params"]["request"]["url"] for event in self.events
                if event.get("method") == "Network.requestWillBeSent"]  # fmt: skip

    def complaints(self) -> list[str]:
        """Return what the browser had to say against the page."""
        said = [event["params"]["entry"]["text"] for event in self.events if event.get("method") == "Log.entryAdded"]
        return said + [str(event["params"]) for event in self.events
                       if event.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown")]  # fmt: skip

    def close(self) -> None:
        """End the browser and all its processes."""
        os.close(self._to)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._from.close()
        self._profile.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _whole(self) -> dict[str, Any]:
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        return {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            chunk = os.read(self._from.fileno(), 1 << 16)
            assert chunk, f"Chromium ended with {self._process.wait()}"
            self._rest += chunk
        message, self._rest = self._rest.split(b"\0", 1)
        return json.loads(message)
