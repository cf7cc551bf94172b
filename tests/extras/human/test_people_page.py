"""The page of `label=human` in a real browser: keys, reloads, a killed server, two people, accessibility."""

import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.browser import CHROMIUM, FITS, Tab, axe, browser
from tests.extras.human.asking import Asking, asking, kept_of

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or axe() is None, reason="needs Chromium, and axe-core"
)

# Every question has one better answer, and both answers contain markup that tries to act on the page.
HOSTILE = '<img src="http://127.0.0.1:9/{0}" onerror="window.broken = 1"><script>window.broken = 1</script>'
HOSTILE += "\n\n![](http://127.0.0.1:9/{0})\n\n[here](javascript:window.broken=1)\n\n| a | b |\n|:-:|---|\n| {0} | 2 |"
HOSTILE += "\u202e\x1b\n\n# A title\n\n```html\n<b>{0}</b>\n```\n\n1. one\n2. two"
CALM = "!busy && now && (now.question || now.last) ? 1 : 0"


def texts(count: int) -> list[list[str]]:
    return [
        [f"poor {i} " + HOSTILE.format(i), f"good {i} " + HOSTILE.format(i)] for i in range(count)
    ]


class Someone:
    """A person at a keyboard who prefers the good answers."""

    def __init__(self, tab: Tab, server: Asking, name: str):
        self.tab = tab
        self.name = name
        self.judged = list[str]()
        tab.tell("Network.enable")
        tab.open(f"http://127.0.0.1:{server.port}/#name={name}", 1440)
        self.settle()

    def settle(self) -> Any:
        """Wait until no request is pending, and return the page's last state."""
        ends = time.monotonic() + 120
        while not self.tab.evaluate(CALM):
            assert time.monotonic() < ends, self.tab.evaluate("document.body.innerText")
            time.sleep(0.02)
        return self.tab.evaluate("now")

    def judges(self) -> bool:
        """Press the key of a verdict, and return False if there is no question."""
        question = self.settle()["question"]
        if question is None:
            return False
        answers = self.tab.evaluate(
            "[...document.querySelectorAll('#answers .text')].map(e => e.innerText)"
        )
        self.judged.append(question["id"])
        self.tab.press("b" if answers[1].startswith("good") else "a")
        return True


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Tab]:
    with browser(tmp_path / "browser") as first_tab:
        yield first_tab


@pytest.mark.extended
def test_two_people_by_keyboard_over_reloads_and_a_kill(tab: Tab, tmp_path: Path) -> None:
    count = 8
    keys = {"overlap": 1.0, "annotators": 2, "reasons": ["correct", "clear"]}
    with asking(tmp_path, *texts(count), **keys) as server:
        ann = Someone(tab, server, "ann")
        bob = Someone(Tab(tab.pipe), server, "bob")
        for _ in range(count // 2):
            assert ann.judges() and bob.judges()
        before = ann.settle()["question"]["id"]
        ann.tab.load("Page.reload")
        assert ann.settle()["question"]["id"] == before
        bob.settle()
        # The server is killed before an answer arrives; the page sends it again until a server stores it.
        server.kill()
        ann.tab.press("t")
        assert not ann.tab.evaluate(CALM)
        restarted = Asking(tmp_path, port=server.port, **keys)
        try:
            ann.settle()
            last = kept_of(tmp_path, "ann")[-1]
            assert (last["question"], last["verdict"]) == (before, "tie")
            ann.tab.press("u")  # undo
            assert ann.settle()["question"]["id"] == before
            while ann.judges() | bob.judges():
                pass
            judged = restarted.judged()
        finally:
            restarted.kill()
        requested = tab.pipe.requested
        broken = [each.tab.evaluate("window.broken") for each in (ann, bob)]
    for someone in (ann, bob):
        rows = kept_of(tmp_path, someone.name)
        judged_ids = [row["question"] for row in rows if row["verdict"] in ("a", "b")]
        assert len(judged_ids) == len({*judged_ids}) == count
        assert sorted(judged_ids) == sorted(someone.judged)
    assert judged["figures"]["agreement"] == {"questions": count, "alpha": 1.0, "same": 1.0}
    assert judged["figures"]["answers"] == {"ann": count, "bob": count}
    assert broken == [None, None], "no part of a model's text was executed"
    own = ("data:", f"http://127.0.0.1:{server.port}/")
    assert all(url.startswith(own) for url in requested), "nor did it load a resource"


@pytest.mark.extended
def test_the_page_is_accessible_on_a_phone_and_a_desktop(tab: Tab, tmp_path: Path) -> None:
    with asking(tmp_path, *texts(2), reasons=["correct", "clear"]) as server:
        Someone(tab, server, "ann")
        for width, dark in product((390, 1440), (False, True)):
            tab.look(width, dark)
            assert tab.evaluate(FITS) and not [*tab.axe_violations()], (width, dark)
