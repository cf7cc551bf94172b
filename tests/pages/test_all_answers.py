"""The page of all answers in a real browser: worse answers first, filters, search and keys, with hostile texts."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from stages.evaluation.measures import FAVOURED, Measure
from stages.pages import all_answers
from stages.pages.example_answers import ModelAnswer, ShownAnswer
from stages.store.records import Example
from stages.store.user_columns import UserColumns
from tests.browser import CHROMIUM, Tab, browser, foreign_scripts, page_faults
from tests.evaluation.made_results import results

MODELS = {"base": "Base", "sft": "SFT", "policy": "DPO"}
RESULTS = results()
HOSTILE = "</script><script>document.title = 'taken over'</script><img src=x onerror=\"document.title = 1\">\u202e"
SECONDS = 2.0  # in which a browser opens the page
TRIES = 3  # of which the quickest counts: other programs use the machine, too


def shown(name: str, sft: float, policy: float, text: str = "the same") -> ShownAnswer:
    """Return a prompt whose answers pass these shares of its checks. `text`: the policy's answer."""
    example = Example(
        name, [{"role": "user", "content": f"Ask {name}."}], f"Reference {name}", "s", "t", "test"
    )
    texts = {"base": "other", "sft": "the same", "policy": text}
    answers = [ModelAnswer(role, MODELS[role], texts[role], "") for role in MODELS]
    return ShownAnswer(example, answers, {"base": 0.0, "sft": sft, "policy": policy})


def rendered(prompts: Sequence[ShownAnswer], folder: Path) -> str:
    return all_answers.render_answers({"answer": prompts}, {}, MEASURES, {"eval": folder}, RESULTS)


def content_of(html: str) -> dict[str, Any]:
    """Return what the page's script reads."""
    text = html.partition('<script type="application/json" id="content">')[2]
    return dict(json.loads(text.partition("</script>")[0]))


MEASURES = [
    Measure(FAVOURED, "pair", name, value, role)
    for name, role, value in (("better", "control", 0.0), ("alike", "policy", 0.0))
]
PROMPTS = [
    shown("better", 0.0, 1.0, "now right"),
    shown("alike", 1.0, 1.0),
    shown("changed", 1.0, 1.0, "in other words"),
    shown("worse", 1.0, 0.5, HOSTILE),
    shown("worst", 1.0, 0.0, "wrong"),
]


def test_worse_answers_come_first_then_changed_ones(tmp_path: Path) -> None:
    prompts = content_of(rendered(PROMPTS, tmp_path))["prompts"]
    names = [prompt["reference"].removeprefix("Reference ") for prompt in prompts]
    assert names == ["worst", "worse", "alike", "changed", "better"]
    gained_less = [
        name for name, prompt in zip(names, prompts, strict=True) if prompt["gained_less"]
    ]
    assert gained_less == ["alike"], "what the control gained is not said of the policy"
    assert [prompt["state"] for prompt in prompts] == ["worse", "worse", "alike", "alike", "better"]
    answers = {answer["text"]: answer["passes"] for answer in prompts[0]["answers"]}
    assert answers == {"other": False, "the same": True, "wrong": False}


def test_a_page_that_would_be_too_long_says_how_many_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(all_answers, "MOST_CHARACTERS", 1000)
    html = rendered(PROMPTS, tmp_path)
    prompts = content_of(html)["prompts"]
    assert 1 <= len(prompts) < len(PROMPTS)
    assert f"the first {len(prompts)}:" in html and f"<h1>{len(PROMPTS)} prompts" in html


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Tab]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with browser(tmp_path / "browser") as tab:
        yield tab


def opened(tab: Tab, html: str, folder: Path) -> None:
    page = folder / all_answers.PAGE
    page.write_text(html, encoding="utf-8")
    tab.open(page, 1440)


def headings(tab: Tab) -> list[str]:
    return list(
        tab.evaluate("[...document.querySelectorAll('article h2')].map(h => h.textContent)")
    )


def choose(tab: Tab, control: str, value: str) -> str:
    """Set a control, and return the page's count of prompts."""
    event = "input" if control == "words" else "change"
    tab.evaluate(
        f"{control}.value = {json.dumps(value)}; {control}.dispatchEvent(new Event('{event}'))"
    )
    return str(tab.evaluate("document.getElementById('count').textContent"))


@pytest.mark.extended
def test_prompts_are_filtered_by_their_change_by_a_column_and_by_words(
    tab: Tab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    languages = {prompt.prompt.id: {"language": "de", "n": i} for i, prompt in enumerate(PROMPTS)}
    languages["worst"] = {"language": 'a "b" <i>'}
    columns = UserColumns(["language", "n"], languages)
    monkeypatch.setattr(all_answers, "read_user_columns", lambda *_: columns)
    opened(tab, rendered(PROMPTS, tmp_path), tmp_path)
    assert len(headings(tab)) == 5
    assert choose(tab, "state", "worse") == "1 to 2 of 2 prompts"
    assert choose(tab, "state", "changed") == "1 to 4 of 4 prompts"
    assert choose(tab, "value", 'a "b" <i>') == "1 to 1 of 1 prompts"
    assert choose(tab, "value", "") == "1 to 4 of 4 prompts"
    assert choose(tab, "words", "OTHER words") == "1 to 1 of 1 prompts"
    assert choose(tab, "words", "in no answer") == "0 prompts"


@pytest.mark.extended
def test_keys_go_from_prompt_to_prompt_over_the_ends_of_pages(tab: Tab, tmp_path: Path) -> None:
    many = [shown(f"{i:03}", 1.0, 0.0, "wrong") for i in range(120)]
    opened(tab, rendered(many, tmp_path), tmp_path)
    assert len(headings(tab)) == 50
    focused = "document.activeElement.querySelector('h2')?.textContent"
    for key, expected in (
        ("j", "1 · worse"),
        ("j", "2 · worse"),
        ("k", "1 · worse"),
        ("k", "1 · worse"),
    ):
        tab.press(key)
        assert tab.evaluate(focused) == expected
    tab.evaluate("on.click()")
    assert tab.evaluate(focused) == "51 · worse"
    tab.press("k")
    assert tab.evaluate(focused) == "50 · worse"
    tab.press("j")
    assert tab.evaluate(focused) == "51 · worse"
    tab.evaluate("words.focus()")
    tab.press("j")
    assert tab.evaluate("document.activeElement.id") == "words", "a key is typed into a field"


@pytest.mark.extended
def test_hostile_answers_are_text_and_anybody_can_read_the_page(tab: Tab, tmp_path: Path) -> None:
    html = rendered(PROMPTS, tmp_path)
    assert foreign_scripts(html) == []
    opened(tab, html, tmp_path)
    assert tab.evaluate("document.title") == "Plumbline answers"
    texts = tab.evaluate("[...document.querySelectorAll('article pre')].map(e => e.textContent)")
    assert HOSTILE.replace("\u202e", r"\u202e") in texts
    assert not tab.evaluate("document.querySelectorAll('article img, article script').length")
    assert page_faults(tmp_path / all_answers.PAGE, tmp_path / "faults") == []


@pytest.mark.extended
def test_two_thousand_prompts_of_three_models_open_in_two_seconds(tab: Tab, tmp_path: Path) -> None:
    long = "Each answer has nine hundred characters of words. " * 18
    many = [shown(f"{i:04}", 1.0, 0.0, f"{long}{i}") for i in range(2000)]
    for prompt in many:
        prompt.answers[:2] = [answer._replace(answer=long) for answer in prompt.answers[:2]]
    html = rendered(many, tmp_path)
    milliseconds = list[float]()
    for _ in range(TRIES):
        opened(tab, html, tmp_path)
        assert choose(tab, "words", "") == "1 to 50 of 2000 prompts"
        milliseconds.append(
            tab.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
        )
    assert min(milliseconds) < 1000 * SECONDS
