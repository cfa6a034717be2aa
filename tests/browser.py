"""A small WebDriver client: Debian's headless Chromium, driven through chromedriver.

The browser reaches addresses of this machine only: names resolve to nothing, except `TEST_NAME`.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import http.client
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from launcher.guard.children import adopt_orphans
from tests.e2e.group import APART

PACKAGES = ("chromium", "chromium-driver", "fonts-dejavu-core")
TEST_NAME = "page.test"  #: 127.0.0.1 under a name that is no loopback name
PATIENCE = 120.0
START = 180.0  #: Chromium on a busy machine
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
ARGUMENTS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-extensions", "--disable-domain-reliability", "--no-proxy-server", "--lang=en-GB"),
    f"--host-resolver-rules=MAP {TEST_NAME} 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.*",
)


class BrowserError(Exception):
    """chromedriver said no."""


@functools.cache
def why_not() -> str | None:
    """Why there is no browser here, for a test's skip reason; None if there is one."""
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"no {' and no '.join(missing)}: apt-get install {' '.join(PACKAGES)}" if missing else None


class Browser:
    """One headless browser with one tab."""

    def __init__(self, driver: int) -> None:
        self._driver = driver
        options = {"binary": shutil.which("chromium"), "args": list(ARGUMENTS)}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        made = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}}, START)
        self._session = f"/session/{made['sessionId']}"

    def close(self) -> None:
        self._call("DELETE", self._session)

    def _call(self, method: str, path: str, body: object = None, timeout: float = PATIENCE) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._driver, timeout=timeout)
        try:
            sent = None if body is None else json.dumps(body)
            connection.request(method, path, sent, {"Content-Type": "application/json"})
            value = json.loads(connection.getresponse().read())["value"]
        finally:
            connection.close()
        if isinstance(value, dict) and "error" in value:
            raise BrowserError(f"{method} {path}: {value['error']}: {value.get('message')}")
        return value

    def cdp(self, command: str, **params: Any) -> Any:
        """A command of the DevTools protocol."""
        return self._call("POST", f"{self._session}/goog/cdp/execute", {"cmd": command, "params": params})

    # ---------------------------------------------------------------------------------------------------------- use

    def open(self, url: str) -> None:
        """Leave the page that is shown, with its complaints, and load another."""
        self._call("POST", f"{self._session}/url", {"url": "about:blank"})
        self.complaints()
        self._call("POST", f"{self._session}/url", {"url": url})

    def look(self, width: int, scheme: str = "light", height: int = 900) -> None:
        """The size of the window, narrower than any real one if need be, and ``light`` or ``dark``."""
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def run(self, script: str, *arguments: object) -> Any:
        """The value of ``return ...``. DevTools are not bound by the page's policy."""
        return self._call("POST", f"{self._session}/execute/sync", {"script": script, "args": list(arguments)})

    def text(self, selector: str = "body") -> str:
        """What a person reads there; empty if it is hidden or absent."""
        shown = "[...document.querySelectorAll(arguments[0])].filter((e) => e.checkVisibility())"
        return str(self.run(f"return {shown}.map((e) => e.innerText).join('\\n')", selector))

    def until(self, what: str, true: Callable[[], Any]) -> Any:
        end = time.monotonic() + PATIENCE
        while not (value := true()):
            if time.monotonic() > end:
                raise AssertionError(f"after {PATIENCE:g} s still not: {what}\n{self.text()}\n{self.complaints()}")
            time.sleep(0.1)
        return value

    def until_reads(self, words: str, selector: str = "body") -> None:
        self.until(f"{words!r} in {selector}", lambda: words in self.text(selector))

    def _find(self, selector: str) -> str:
        found = self._call("POST", f"{self._session}/element", {"using": "css selector", "value": selector})
        return f"{self._session}/element/{found[ELEMENT]}"

    def type(self, selector: str, text: str) -> None:
        self._call("POST", f"{self._find(selector)}/value", {"text": text})

    def click(self, selector: str) -> None:
        self._call("POST", f"{self._find(selector)}/click", {})

    def complaints(self) -> list[str]:
        """What the console has shown since the last call: errors of scripts, refusals by the policy."""
        entries = self._call("POST", f"{self._session}/se/log", {"type": "browser"})
        return [str(entry["message"]) for entry in entries]

    def picture(self, path: Path) -> None:
        """A PNG of the whole page."""
        width, height = self.run("const d = document.documentElement; return [d.clientWidth, d.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        shot = self.cdp("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextlib.contextmanager
def browsing(folder: Path) -> Iterator[Browser]:
    """A browser; ``folder`` is its home."""
    environ = {**os.environ, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "XDG_CACHE_HOME": str(folder)}
    driver = subprocess.Popen(
        ["chromedriver", "--port=0"],
        env={name: value for name, value in environ.items() if not name.lower().endswith("_proxy")},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        text=True,
        preexec_fn=adopt_orphans,  # noqa: PLW1509  # so all of the browser stays in one tree
    )
    APART.add(driver.pid)
    assert driver.stdout is not None
    try:
        said = ""
        while not (found := re.search(r"successfully on port (\d+)", said)):
            line = driver.stdout.readline()
            assert line, f"chromedriver ended: {said}"
            said += line
        threading.Thread(target=driver.stdout.read, daemon=True).start()  # a full pipe would stop it
        browser = Browser(int(found[1]))
        try:
            yield browser
        finally:
            browser.close()
    finally:
        driver.terminate()
        try:
            driver.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            driver.kill()
            driver.wait()
        APART.discard(driver.pid)
