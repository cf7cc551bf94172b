"""The page of `label=human` in a real browser: keys, reloads, a killed server, two people, accessibility."""

import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.browser import CHROMIUM, FITS, Tab, axe, browser
from tests.labelers.asking import Asking, asking, kept_of

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or axe() is None, reason="needs Chromium, and axe-core"
)

# Every question has one better answer, and both answers contain markup that tries to act on the page.
HOSTILE = '<img src="http://127.0.0.1:9/{0}" onerror="window.broken = 1"><script>window.broken = 1</script>'
HOSTILE += "\n\n![](http://127.0.0.1:9/{0})\n\n[here](javascript:window.broken=1)\n\n| a | b |\n|:-:|---|\n| {0} | 2 |"
HOSTILE += "\u202e\x1b\n\n# A title\n\n```html\n<b>{0}</b>\n```\n\n1. one\n2. two"
# Measures the milliseconds from a key press to the next question on the page.
WATCH = """window.took = []; let down = 0;
    document.addEventListener('keydown', () => { down = performance.now(); }, true);
    new MutationObserver(() => { if (down) { took.push(performance.now() - down); down = 0; } })
        .observe(document.getElementById('answers'), {childList: true}); 0"""
CALM = "!busy && now && (now.question || now.last) ? 1 : 0"


def texts(count: int) -> list[list[str]]:
    return [
        [f"poor {i} " + HOSTILE.format(i), f"good {i} " + HOSTILE.format(i)] for i in range(count)
    ]


class Someone:
    """A person at a keyboard who prefers the good answers."""

    def __init__(self, tab: Tab, server: Asking, name: str):
        self.tab, self.name, self.judged = tab, name, list[str]()
        self.took = list[float]()  # milliseconds from a key to the next pair
        tab.tell("Network.enable")
        tab.open(f"http://127.0.0.1:{server.port}/#name={name}", 1440)
        self.watch()

    def watch(self) -> None:
        self.settle()
        self.tab.evaluate(WATCH)

    def pause(self) -> None:
        self.settle()
        self.took += self.tab.evaluate("took.splice(0)")

    def reload(self) -> None:
        self.pause()
        self.tab.load("Page.reload")
        self.watch()

    def settle(self) -> Any:
        """Wait until no request is pending, and return the page's last state."""
        ends = time.monotonic() + 120
        while not self.tab.evaluate(CALM):
            assert time.monotonic() < ends, self.tab.evaluate("document.body.innerText")
            time.sleep(0.02)
        return self.tab.evaluate("now")

    def sees(self) -> list[str]:
        return self.tab.evaluate(
            "[...document.querySelectorAll('#answers .text')].map(e => e.innerText)"
        )

    def judges(self) -> bool:
        """Press the key of a verdict, and return False if there is no question."""
        question = self.settle()["question"]
        if question is None:
            return False
        answers = self.sees()
        self.judged.append(question["id"])
        self.tab.press("ab"[[text.startswith("good") for text in answers].index(True)])
        return True


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Tab]:
    with browser(tmp_path / "browser") as first_tab:
        yield first_tab


@pytest.mark.extended
@pytest.mark.parametrize(
    "count", [pytest.param(8, id="few"), pytest.param(100, id="200", marks=pytest.mark.slow)]
)
def test_two_people_by_keyboard_over_reloads_and_a_kill(
    tab: Tab, tmp_path: Path, count: int
) -> None:
    answers, keys = texts(count), {"overlap": 1.0, "annotators": 2, "reasons": ["correct", "clear"]}
    with asking(tmp_path, *answers, **keys) as server:
        ann, bob = Someone(tab, server, "ann"), Someone(Tab(tab.pipe), server, "bob")
        for turn in range(count // 2):
            assert ann.judges() and bob.judges()
            if turn == count // 4:
                before = ann.settle()["question"]["id"]
                ann.reload()
                assert ann.settle()["question"]["id"] == before
        ann.pause(), bob.pause()
        took = sorted(ann.took + bob.took)
        # The server is killed before an answer arrives; the page sends it again until a server stores it.
        server.kill()
        unsaved = ann.tab.evaluate("now.question.id")
        ann.tab.press("t")
        assert not ann.tab.evaluate(CALM)
        restarted = Asking(tmp_path, port=server.port, **keys)
        try:
            ann.settle()
            assert [(row["question"], row["verdict"]) for row in kept_of(tmp_path, "ann")][-1] == (
                unsaved,
                "tie",
            )
            ann.tab.press("u")  # undo
            assert ann.settle()["question"]["id"] == unsaved
            while ann.judges() | bob.judges():
                pass
            judged = restarted.judged()
        finally:
            restarted.kill()
        requested, broken = (
            tab.pipe.requested,
            [each.tab.evaluate("window.broken") for each in (ann, bob)],
        )
    for someone in (ann, bob):
        judged_ids = [
            row["question"]
            for row in kept_of(tmp_path, someone.name)
            if row["verdict"] in ("a", "b")
        ]
        assert len(judged_ids) == len({*judged_ids}) == count
        assert sorted(judged_ids) == sorted(someone.judged)
    assert [row["verdict"] for row in kept_of(tmp_path, "ann")].count(None) == 1
    assert {j["preference"] for j in judged["judgements"]} <= {"a", "b"}
    assert judged["figures"]["agreement"] == {"questions": count, "alpha": 1.0, "same": 1.0}
    assert judged["figures"]["answers"] == {"ann": count, "bob": count}
    # No part of a model's text was executed or loaded a resource.
    assert broken == [None, None]
    assert {url.split("/")[2] for url in requested if not url.startswith("data:")} == {
        f"127.0.0.1:{server.port}"
    }
    # A busy machine delays most pairs, so the quickest tenth measures the page itself (under 100 ms when idle).
    assert len(took) > count // 2 and took[len(took) // 10] <= 1000, took


@pytest.mark.extended
def test_the_page_is_accessible_on_a_phone_and_a_desktop(tab: Tab, tmp_path: Path) -> None:
    violations = list[str]()

    def examine(width: int, dark: bool, state: str) -> None:
        tab.look(width, dark)
        wrong = [*([] if tab.evaluate(FITS) else ["sticks out"]), *tab.axe_violations()]
        violations.extend(
            f"{state} {width} {'dark' if dark else 'light'}: {each}" for each in wrong
        )

    with asking(
        tmp_path, *texts(2), reasons=["correct", "clear"], instructions="Which is better?"
    ) as server:
        Someone(tab, server, "ann").settle()
        for width, dark in product((390, 1440), (False, True)):
            examine(width, dark, "asked")
        tab.evaluate("localStorage.clear(); history.replaceState(null, '', '#'); 0")
        tab.load("Page.reload")
        examine(390, True, "nameless")
    assert not violations
