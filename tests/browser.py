"""A real browser, told what to do over a pipe in the DevTools protocol (chromedevtools.github.io/devtools-protocol): a
window of any width, light or dark. A window of Chromium's own is never narrower than 500 pixels."""

import base64
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
OPTIONS += ("--disable-sync", "--disable-component-update")
HEIGHT, TIMEOUT = 900, 300  # pixels; seconds, as a busy machine may take to start it
FITS = "document.documentElement.scrollWidth <= innerWidth"
# Ids that several elements have, SVGs without a name that are no decoration, heads of tables without a scope.
NAMELESS = """[...document.querySelectorAll('[id]')].map(e => e.id).filter((id, i, all) => all.indexOf(id) < i).concat(
    [...document.querySelectorAll('svg:not([role=img], [aria-hidden]), th:not([scope])')].map(
        e => e.outerHTML.slice(0, 80)),
    [...document.querySelectorAll('svg[role=img]')].filter(
        e => e.firstElementChild?.tagName != 'title' && !e.ariaLabel).map(e => 'no title'))"""
# Cells of the main table that are not wholly inside the window.
CUT = """[...document.querySelectorAll('.results tbody th, .results tbody td')].filter(cell => {
    const range = document.createRange(); range.selectNodeContents(cell);
    return [...range.getClientRects()].some(r => r.left < 0 || r.right > innerWidth)}).map(cell => cell.textContent)"""
# Of every node that breaks a rule: the rule, what is wrong, and where.
AXE = """document.querySelectorAll('details').forEach(d => d.open = true);
    axe.run().then(({violations}) => violations.flatMap(rule =>
        rule.nodes.map(node => `${rule.id}: ${node.target} ${node.failureSummary}`)))"""


@cache
def axe() -> str | None:
    """The source of axe-core, from the package that `make test` installs; None where it is not."""
    found = find_spec("axe_playwright_python")  # not imported: that would want Playwright
    script = Path(found.origin).with_name("axe.min.js") if found and found.origin else None
    return script.read_text(encoding="utf-8") if script and script.exists() else None


class Pipe:
    """Messages to the browser and from it, for all of its tabs."""

    def __init__(self, commands: int, answers: int):
        self.commands, self.answers = os.fdopen(commands, "wb"), os.fdopen(answers, "rb")
        self.sent, self.unread = 0, b""
        self.requested: list[str] = []  # the address of everything that a watched tab asked for

    def message(self) -> dict[str, Any]:
        while b"\0" not in self.unread:
            assert select.select([self.answers], [], [], TIMEOUT)[0], "the browser says nothing"
            read = self.answers.read1()
            assert read, "the browser has ended"
            self.unread += read
        line, _, self.unread = self.unread.partition(b"\0")
        message = json.loads(line)
        if message.get("method") == "Network.requestWillBeSent":
            self.requested.append(message["params"]["request"]["url"])
        return message

    def tell(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        """Send a command and wait for what it gives."""
        self.sent += 1
        command = {"id": self.sent, "method": method, "params": params} | ({"sessionId": session} if session else {})
        self.commands.write(json.dumps(command).encode() + b"\0")
        self.commands.flush()
        while (answer := self.message()).get("id") != self.sent:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def close(self) -> None:
        self.commands.close()
        self.answers.close()


class Tab:
    """A page in the browser."""

    def __init__(self, pipe: Pipe):
        self.pipe = pipe
        target = pipe.tell("Target.createTarget", url="about:blank")["targetId"]
        self.session = pipe.tell("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.tell("Page.enable")

    def tell(self, method: str, **params: Any) -> dict[str, Any]:
        return self.pipe.tell(method, self.session, **params)

    def look(self, width: int, dark: bool = False) -> None:
        """A window this wide, as someone sees it who prefers light or dark."""
        self.tell("Emulation.setDeviceMetricsOverride", width=width, height=HEIGHT, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.tell("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, page: Path | str, width: int, dark: bool = False) -> None:
        """Show a page, a file or an address, in a window this wide."""
        self.look(width, dark)
        self.load("Page.navigate", url=page.as_uri() if isinstance(page, Path) else page)

    def load(self, method: str, **params: Any) -> None:
        """Send a command that loads a page, and wait until it is there."""
        self.tell(method, **params)
        while self.pipe.message().get("method") != "Page.loadEventFired":
            pass

    def press(self, key: str) -> None:
        """A key goes down and up."""
        code = {"windowsVirtualKeyCode": ord(key.upper()), "key": key}
        self.tell("Input.dispatchKeyEvent", type="keyDown", text=key, **code)
        self.tell("Input.dispatchKeyEvent", type="keyUp", **code)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, or of its promise."""
        found = self.tell("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def violations(self) -> list[str]:
        """What axe finds wrong with the page that is shown."""
        source = axe()
        assert source is not None
        self.evaluate(f"{source}; 0")
        return list(self.evaluate(AXE))

    def picture(self, path: Path) -> None:
        """The whole page as a PNG."""
        taken = self.tell("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(taken["data"]))


def wrong_with(page: Path, folder: Path) -> list[str]:
    """What axe and we find wrong with a page on a phone and on a desk, in light and dark. Skips the test where there
    is no browser or no axe."""
    if CHROMIUM is None or axe() is None:
        pytest.skip("needs Chromium, and axe-core as `make test` installs it")
    found = []
    with browser(folder) as tab:
        for width in (390, 1440):
            for dark in (False, True):
                tab.open(page, width, dark)
                wrong = [*([] if tab.evaluate(FITS) else ["sticks out"]), *tab.evaluate(CUT), *tab.evaluate(NAMELESS)]
                found += [f"{width} {'dark' if dark else 'light'}: {each}" for each in wrong + tab.violations()]
    return found


@contextmanager
def browser(folder: Path) -> Iterator[Tab]:
    """A browser that keeps what it writes in `folder`."""
    (theirs, commands), (answers, them) = os.pipe(), os.pipe()  # it reads from 3 and writes to 4
    command = ["sh", "-c", f'exec "$@" 3</dev/fd/{theirs} 4>/dev/fd/{them}', "sh", str(CHROMIUM), *OPTIONS]
    command += ["--remote-debugging-pipe", f"--user-data-dir={folder}"]
    process = subprocess.Popen(command, pass_fds=(theirs, them), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(theirs)
    os.close(them)
    pipe = Pipe(commands, answers)
    try:
        yield Tab(pipe)
    finally:
        pipe.tell("Browser.close")
        process.wait(TIMEOUT)
        pipe.close()
