"""The report: one self-contained page, opened in a real browser, with hostile model text in it."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from stages import report
from stages.config.errors import UNSEEN
from stages.pages.example_answers import side_by_side
from stages.store.records import Candidate, load, save
from stages.store.store import Store
from tests.browser import browser, page_faults
from tests.helpers import CHROMIUM, Chain, browse, build, nodes, settings
from tests.rows import work
from tests.stages.test_eval import evaluated

DESK, PHONE = 900, 844  # pixels
MOST_WORDS = 90
HOSTILE = (
    "<script>document.title = 'taken over'</script><img src=x onerror=\"document.title = 'taken over'\">{{ 7 * 7 }}"
    "\x1b[2J\x9b31m\x00\r\u202eright to left\u2066\u200b\ufeff\u2028\U000e0041"
)


@pytest.fixture(scope="module")
def page(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report in which every answer of the policy is hostile. Do not write to it."""
    folder = tmp_path_factory.mktemp("report")
    inputs = {role: Chain(built).folder(role) for role in nodes(built)["report"].inputs}
    inputs["answer_policy"] = Path(shutil.copytree(inputs["answer_policy"], folder / "answers"))
    table = inputs["answer_policy"] / "answers.parquet"
    answers = load(table, Candidate)
    for answer in answers:
        answer.text = HOSTILE
    save(table, answers, Candidate)
    report.run(settings("recipe=tiny").report, inputs, work(folder))
    return folder / "report.html"


@pytest.mark.extended
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_shows_every_section_and_runs_nothing(page: Path, tmp_path: Path) -> None:
    dom = browse(page, tmp_path, "--dump-dom")
    assert "<title>Plumbline report</title>" in dom, "the model's script did not run"
    conclusions = re.findall(r'<section id="(\w+)">\s*<h3>[^<]+</h3>\s*<p>([^<]+)</p>', dom)
    names = [
        "results",
        "why",
        "kinds",
        "proportion",
        "answers",
        "labels",
        "curves",
        "settings",
        "lineage",
        "words",
    ]
    assert [name for name, _ in conclusions if name != "learnt"] == names, "each with a conclusion"
    assert "{{ 7 * 7 }}" in dom
    assert dom.count('class="plot"') >= 7


def test_anybody_can_read_it_on_a_phone_or_a_desk_in_light_and_dark(
    page: Path, tmp_path: Path
) -> None:
    assert page_faults(page, tmp_path / "browser") == []


@pytest.mark.extended
def test_the_first_screen_answers_without_a_click(built: Path, tmp_path: Path) -> None:
    """At 1440 × 900 all of it, in at most 90 words; at 390 × 844 the sentence, the rates and the lamps."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with browser(tmp_path / "browser") as tab:
        tab.open(built / "report.html", 1440)
        assert bottom_of(tab, ".first") <= DESK
        words = str(tab.evaluate("document.querySelector('.first').innerText"))
        assert len(re.findall(r"[A-Za-z]{2,}", words)) <= MOST_WORDS
        tab.open(built / "report.html", 390)
        assert bottom_of(tab, ".lamps") <= PHONE
        assert tab.evaluate("document.querySelectorAll('.plot').length") >= 5
        assert not tab.evaluate("document.querySelectorAll('details[open]').length")


def bottom_of(tab: Any, selector: str) -> float:
    """Return where an element ends, in pixels from the top of the page."""
    return float(
        tab.evaluate(f"document.querySelector('{selector}').getBoundingClientRect().bottom")
    )


def test_model_text_is_escaped_and_nothing_is_fetched(page: Path) -> None:
    html = page.read_text()
    assert "<script" not in html
    assert "&lt;script&gt;" in html and r"\x1b[2J\x9b31m\x00\r\u202eright" in html
    assert not UNSEEN.search(html.replace("\n", "").replace("\t", ""))
    assert {*re.findall(r"""(?:src|href)=["']([^#"'][^"']*)""", html)} == {"labels.html"}, (
        "which lies beside it"
    )


def test_it_shows_a_training_example_token_by_token(page: Path, built: Path) -> None:
    tokens = json.loads((Chain(built).folder("sft") / "token_example.json").read_text())
    assert [t["text"] for t in tokens if t["trained"]][-1] == "<|im_end|>"
    assert page.read_text().count('<span class="trained') == sum(t["trained"] for t in tokens)


def test_what_dpo_improved_damaged_and_left_alike_is_shown(chain: Chain) -> None:
    inputs = {role: chain.folder(role) for role in nodes(chain.root)["report"].inputs}
    results = json.loads((inputs["eval"] / "results.json").read_text())
    headings = side_by_side(inputs, results, 2)
    expected = {"Most improved": (False, True), "Most damaged": (True, False)}
    assert {heading.split(",")[0] for heading in headings} <= {*expected, "Alike"}
    for heading, prompts in headings.items():
        assert 1 <= len(prompts) <= 2
        for prompt in prompts:
            passed = tuple(prompt.shares[role] == 1 for role in ("sft", "policy"))
            assert passed == expected.get(heading.split(",")[0], (passed[0], passed[0]))
    assert headings == side_by_side(inputs, results, 2), "chosen by content"
    assert side_by_side(inputs, results, 0) == {}, "no heading stands above nothing"


@pytest.fixture
def thoughtful(chain: Chain, tmp_path: Path) -> tuple[dict[str, Path], dict[str, Any]]:
    """Return the inputs of a report on a policy that thinks before each answer, the first time without an end, and the
    results of the evaluation."""
    inputs = {role: chain.folder(role) for role in nodes(chain.root)["report"].inputs}
    table = inputs["answer_policy"] / "answers.parquet"
    answers = load(table, Candidate)
    for number, answer in enumerate(answers):
        answer.answer_tokens, answer.n_tokens = answer.n_tokens, answer.n_tokens + 5
        answer.text = f"<think>\nSo: {number}<br>\n</think>\n\n{answer.text}"
    answers[0].text, answers[0].answer_tokens = "<think>\nSo: no end", 0
    save(table, answers, Candidate)
    folder = tmp_path / "eval"
    results = evaluated(chain, chain.folder("dpo"), inputs["answer_policy"], folder)
    shutil.copy(chain.folder("eval") / "manifest.json", folder)
    return inputs | {"eval": folder}, results


def test_thoughts_change_no_result_and_are_counted(
    thoughtful: tuple[dict[str, Path], dict[str, Any]], chain: Chain
) -> None:
    _, results = thoughtful
    before = json.loads((chain.folder("eval") / "results.json").read_text())
    assert "thoughts" not in before
    assert results["thoughts"] == {"base": 0, "sft": 0, "policy": 1}
    assert results["thought_tokens"]["policy"] == pytest.approx(5, abs=0.5)
    for key in ("mean_tokens", "loops"):
        assert results[key] == pytest.approx(before[key], rel=0.1)
    lost = before["primary"]["policy"]["mean"] - results["primary"]["policy"]["mean"]
    assert 0 <= lost * before["primary"]["prompts"] <= 1


def test_a_thought_is_shown_folded_above_its_answer(
    thoughtful: tuple[dict[str, Path], dict[str, Any]], built: Path, tmp_path: Path
) -> None:
    inputs, _ = thoughtful
    report.run(settings("recipe=tiny").report, inputs, work(tmp_path))
    html = (tmp_path / "report.html").read_text()
    first_screen, rest = html.split("<h2", 1)
    assert "So:" not in first_screen and "think" not in first_screen
    cards = re.findall(r"<details><summary>thought</summary><pre>So: (.*?)</pre></details>", rest)
    assert cards and all("&lt;br&gt;" in card or card == "no end" for card in cards)
    assert "answers after a thought" in rest and "&lt;think&gt;" not in html
    assert "after a thought" not in (built / "report.html").read_text()
    if CHROMIUM:
        assert page_faults(tmp_path / "report.html", tmp_path / "browser") == []


@pytest.mark.extended
def test_several_seeds_are_shown_each_and_together(chain: Chain, tmp_path: Path) -> None:
    before = chain.count()
    build(chain.root, "seeds=[1]")
    built = chain.count() - before
    assert {stage: built[stage] for stage in ("base", "data", "sft", "dpo", "eval")} == {
        "base": 0, "data": 0, "sft": 1, "dpo": 1, "eval": 1,
    }  # fmt: skip
    html = (chain.root / "report.html").read_text()
    manifests = [m for _, m in Store(chain.root).manifests("eval")]
    deltas = [100 * m["metrics"]["delta"]["policy-sft"]["mean"] for m in manifests]
    sentence = re.search(
        r"Over 2 seeds, each prompt&#39;s outcomes averaged, DPO [a-z ]+: (\S+) points .*\.", html
    )
    assert sentence and sentence[1].replace("−", "-") == f"{sum(deltas) / 2:+.1f}"
    assert (
        f"By seed from {min(deltas):+.1f} to {max(deltas):+.1f}; helped in ".replace("-", "−")
        in sentence[0]
    )
    assert "One seed" not in html and "<h1>Seed 0: " in html, "it is of one, as is the page"
    assert all(m["fingerprint"] in html for m in manifests)
    assert page_faults(chain.root / "report.html", tmp_path) == []
    assert (chain.root / "latest/dpo").resolve() == chain.folder("dpo").resolve(), (
        "the first seed's"
    )
