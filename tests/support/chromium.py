"""Headless Chromium, driven by the DevTools protocol over a pipe, without a driver program or library."""

import base64
import contextlib
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROGRAM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
PATIENCE_SECONDS = 60.0


class ScriptError(AssertionError):
    """A script in the page threw an exception."""


class Browser:
    """The browser's pipe: JSON messages, each ended by a zero byte."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._ids = itertools.count(1)
        self._rest = b""
        self.events: list[dict[str, Any]] = []

    def command(self, method: str, session: str | None = None, **given: Any) -> dict[str, Any]:
        number = next(self._ids)
        message = {"id": number, "method": method, "params": given} | ({"sessionId": session} if session else {})
        os.write(self._to, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            answer = self._next(deadline - time.monotonic())
            assert answer is not None, f"{method}: no answer"
            if answer.get("id") == number:
                if "navigated" in answer.get("error", {}).get("message", ""):
                    raise ScriptError(f"{method}: the page was being replaced")
                assert "error" not in answer, f"{method}: {answer.get('error')}"
                return dict(answer["result"])
            self.events.append(answer)

    def hear(self, seconds: float) -> None:
        """Read messages from the browser for up to this long."""
        if (event := self._next(seconds)) is not None:
            self.events.append(event)

    def _next(self, seconds: float) -> dict[str, Any] | None:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], max(0.0, seconds))
            if not ready:
                return None
            read = os.read(self._from, 2**20)
            assert read, "the browser has ended"
            self._rest += read
        line, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(line))


class Tab:
    """A page in its own browser context."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser
        # A new context shares no cookies or caches with another test.
        self._context = browser.command("Target.createBrowserContext")["browserContextId"]
        given = {"url": "about:blank", "browserContextId": self._context}
        self.target = browser.command("Target.createTarget", **given)["targetId"]
        self.session = browser.command("Target.attachToTarget", targetId=self.target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self("enable", domain)

    def __call__(self, method: str, domain: str, **given: Any) -> dict[str, Any]:
        return self.browser.command(f"{domain}.{method}", self.session, **given)

    def close(self) -> None:
        self.browser.command("Target.disposeBrowserContext", browserContextId=self._context)

    def phone(self, width: int = 390, height: int = 844, slower: float = 4.0) -> None:
        """Emulate a phone: its screen, touch, and a processor ``slower`` times as slow."""
        self.screen(width, height, 3.0, mobile=True)
        self("setTouchEmulationEnabled", "Emulation", enabled=True)
        self("setCPUThrottlingRate", "Emulation", rate=slower)

    def screen(self, width: int, height: int, scale: float = 1.0, mobile: bool = False) -> None:
        given = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": mobile}
        self("setDeviceMetricsOverride", "Emulation", **given)

    def theme(self, name: str) -> None:
        """``light`` or ``dark``."""
        features = [{"name": "prefers-color-scheme", "value": name}]
        self("setEmulatedMedia", "Emulation", features=features)

    def offline(self, on: bool) -> None:
        nothing = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        self("emulateNetworkConditions", "Network", offline=on, **nothing)

    def go(self, url: str) -> None:
        self("navigate", "Page", url=url)
        self.wait("document.readyState === 'complete'")

    def reload(self) -> None:
        self.run("window.stale = true")
        self("reload", "Page")
        self.wait("window.stale === undefined && document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """Value of a JavaScript expression; awaits promises."""
        found = self("evaluate", "Runtime", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise ScriptError(f"{script}: {found['exceptionDetails'].get('exception', {}).get('description')}")
        return found["result"].get("value")

    def wait(self, condition: str, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until a JavaScript expression is true."""
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(ScriptError):  # the page is being replaced
                if self.run(condition):
                    return
            if time.monotonic() > deadline:
                shown = self.run("document.body.innerText")
                raise AssertionError(f"never true: {condition}\n{shown}\n{self.complaints()}")
            self.browser.hear(0.1)

    def key(self, name: str, text: str = "") -> None:
        """Press and release a key."""
        codes = {"Tab": 9, "Enter": 13, " ": 32, "ArrowRight": 39, "ArrowDown": 40}
        for kind in ("keyDown", "keyUp"):
            given = {"type": kind, "key": name, "code": name, "windowsVirtualKeyCode": codes[name]}
            self("dispatchKeyEvent", "Input", **given, **({"text": text} if text and kind == "keyDown" else {}))

    def type(self, text: str) -> None:
        self("insertText", "Input", text=text)

    def complaints(self) -> list[str]:
        """Errors of the page so far: uncaught exceptions and console errors."""
        found = []
        for event in self.browser.events:
            given = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                found.append(given["exceptionDetails"].get("exception", {}).get("description", "exception"))
            elif event.get("method") == "Log.entryAdded" and given["entry"]["level"] == "error":
                found.append(f"{given['entry']['text']} {given['entry'].get('url', '')}")
        return found

    def picture(self, path: Path) -> Path:
        taken = self("captureScreenshot", "Page", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(taken["data"]))
        return path


@contextlib.contextmanager
def open_browser(profile: Path, *options: str) -> Iterator[Browser]:
    """Run a browser with a temporary profile until the block ends."""
    assert PROGRAM is not None
    (their_in, our_out), (our_in, their_out) = os.pipe(), os.pipe()
    # The browser expects its pipes at 3 and 4: move these descriptors out of the way.
    high_in, high_out = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (their_in, their_out))

    def place_pipes() -> None:
        os.dup2(high_in, 3)
        os.dup2(high_out, 4)

    command = [
        PROGRAM, "--headless=new", "--no-sandbox", "--remote-debugging-pipe", f"--user-data-dir={profile}",
        "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
        "--disable-extensions", "--mute-audio", *options, "about:blank",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, pass_fds=(3, 4), preexec_fn=place_pipes, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    for end in (their_in, their_out, high_in, high_out):
        os.close(end)
    try:
        yield Browser(our_out, our_in)
    finally:
        os.close(our_out)  # a browser ends when its pipe does
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
        os.close(our_in)
