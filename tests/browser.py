"""A real browser, controlled over a pipe in the DevTools protocol (chromedevtools.github.io/devtools-protocol), with a
window of any width, light or dark. Chromium's own windows are never narrower than 500 pixels."""

import base64
import hashlib
import json
import os
import re
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
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
)
OPTIONS += ("--disable-sync", "--disable-component-update")
HEIGHT, TIMEOUT = 900, 300  # pixels; seconds, because a busy machine starts it slowly
FITS = "document.documentElement.scrollWidth <= innerWidth"
# Lists duplicate ids, SVGs without a name that are not decoration, and table heads without a scope.
NAMELESS = """[...document.querySelectorAll('[id]')].map(e => e.id).filter((id, i, all) => all.indexOf(id) < i).concat(
    [...document.querySelectorAll('svg:not([role=img], [aria-hidden]), th:not([scope])')].map(
        e => e.outerHTML.slice(0, 80)),
    [...document.querySelectorAll('svg[role=img]')].filter(
        e => e.firstElementChild?.tagName != 'title' && !e.ariaLabel).map(e => 'no title'))"""
# Lists cells of the main table that are not completely inside the window.
CUT = """[...document.querySelectorAll('.results tbody th, .results tbody td')].filter(cell => {
    const range = document.createRange(); range.selectNodeContents(cell);
    return [...range.getClientRects()].some(r => r.left < 0 || r.right > innerWidth)}).map(cell => cell.textContent)"""
# Lists for every node that breaks a rule: the rule, the node, and the failure.
AXE = """document.querySelectorAll('details').forEach(d => d.open = true);
    axe.run().then(({violations}) => violations.flatMap(rule =>
        rule.nodes.map(node => `${rule.id}: ${node.target} ${node.failureSummary}`)))"""


@cache
def axe() -> str | None:
    """The source of axe-core from the package that `make test` installs; None without the package."""
    package = find_spec("axe_playwright_python")  # an import would need Playwright
    script = Path(package.origin).with_name("axe.min.js") if package and package.origin else None
    return script.read_text(encoding="utf-8") if script and script.exists() else None


def foreign_scripts(html: str) -> list[str]:
    """Return the scripts of a page that its Content-Security-Policy lets no browser run. Data is no script."""
    [policy] = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    tags = re.findall(r"<script\b(?! type=\"application/json\" id=\"content\">)", html)
    assert len(tags) == len(scripts), "each script is a text in the page"
    return [script for script in scripts if digest_in_policy(script) not in policy]


def digest_in_policy(script: str) -> str:
    """Return the source of a script in a policy."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"&#39;sha256-{digest}&#39;"


class Pipe:
    """Messages to and from the browser, for all of its tabs."""

    def __init__(self, commands: int, answers: int):
        self.commands, self.answers = os.fdopen(commands, "wb"), os.fdopen(answers, "rb")
        self.sent, self.unread = 0, b""
        self.requested: list[str] = []  # the address of every request of a watched tab

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
        """Send a command and return its result."""
        self.sent += 1
        command = {"id": self.sent, "method": method, "params": params} | (
            {"sessionId": session} if session else {}
        )
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
        self.session = pipe.tell("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        self.tell("Page.enable")

    def tell(self, method: str, **params: Any) -> dict[str, Any]:
        return self.pipe.tell(method, self.session, **params)

    def look(self, width: int, dark: bool = False) -> None:
        """Set the window's width and the preference for light or dark."""
        self.tell(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=HEIGHT,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.tell("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, page: Path | str, width: int, dark: bool = False) -> None:
        """Show a page, a file or an address, in a window this wide."""
        self.look(width, dark)
        self.load("Page.navigate", url=page.as_uri() if isinstance(page, Path) else page)

    def load(self, method: str, **params: Any) -> None:
        """Send a command that loads a page, and wait until the page is loaded."""
        self.tell(method, **params)
        while self.pipe.message().get("method") != "Page.loadEventFired":
            pass

    def press(self, key: str) -> None:
        """Press and release a key."""
        code = {"windowsVirtualKeyCode": ord(key.upper()), "key": key}
        self.tell("Input.dispatchKeyEvent", type="keyDown", text=key, **code)
        self.tell("Input.dispatchKeyEvent", type="keyUp", **code)

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, or of its promise."""
        answer = self.tell(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def axe_violations(self) -> list[str]:
        """Return axe's violations on the page that is shown."""
        source = axe()
        assert source is not None
        self.evaluate(f"{source}; 0")
        return list(self.evaluate(AXE))


def page_faults(page: Path, folder: Path) -> list[str]:
    """List axe's and our own faults of a page on a phone in light and on a desktop in dark.

    The layout depends on the width alone, and colours on the scheme: each is seen once, since axe takes seconds.
    Skips the test without a browser or without axe.
    """
    if CHROMIUM is None or axe() is None:
        pytest.skip("needs Chromium, and axe-core as `make test` installs it")
    faults = []
    with browser(folder) as tab:
        for width, dark in ((390, False), (1440, True)):
            tab.open(page, width, dark)
            layout_faults = (
                tab.evaluate(CUT)
                + tab.evaluate(NAMELESS)
                + ([] if tab.evaluate(FITS) else ["sticks out"])
            )
            look = f"{width} {'dark' if dark else 'light'}"
            faults += [f"{look}: {fault}" for fault in layout_faults + tab.axe_violations()]
    return faults


@contextmanager
def browser(folder: Path) -> Iterator[Tab]:
    """Start a browser that stores its files in `folder`, and yield a tab."""
    (reads_from, commands), (answers, writes_to) = (os.pipe(), os.pipe())  # the browser has 3 and 4
    command = [
        "sh",
        "-c",
        f'exec "$@" 3</dev/fd/{reads_from} 4>/dev/fd/{writes_to}',
        "sh",
        str(CHROMIUM),
        *OPTIONS,
    ]
    command += ["--remote-debugging-pipe", f"--user-data-dir={folder}"]
    process = subprocess.Popen(
        command,
        pass_fds=(reads_from, writes_to),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(reads_from)
    os.close(writes_to)
    pipe = Pipe(commands, answers)
    try:
        yield Tab(pipe)
    finally:
        pipe.tell("Browser.close")
        process.wait(TIMEOUT)
        pipe.close()
