"""The report: one self-contained page, opened in a real browser, with hostile model text in it."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stages import report
from stages.config.errors import UNSEEN
from stages.evaluation.claims import REHEARSAL
from stages.pages.headline import ONE_SEED
from stages.pages.seeds import read_runs, summary
from stages.store import records
from stages.store.manifest import manifest_of
from stages.store.records import Candidate, load, save
from stages.store.sealed_json import load_json
from stages.store.store import Store
from stages.store.workspace import SAMPLES, append_samples, read_samples
from tests.browser import CHROMIUM, browser, foreign_scripts, page_faults
from tests.evaluation.planted_preferences import SETS
from tests.evaluation.test_claims import on_pairs_of, texts_of
from tests.helpers import Chain, as_published, build, nodes, settings
from tests.rows import work
from tests.stages.test_eval import evaluated

DESK = 900  # pixels
PHONE = 844
MOST_WORDS = 90
TEXTS_OF = "[...document.querySelectorAll('{}')].map(e => e.textContent)"
HOSTILE = (
    "<script>document.title = 'taken over'</script><img src=x onerror=\"document.title = 'taken over'\">{{ 7 * 7 }}"
    "\x1b[2J\x9b31m\x00\r\u202eright to left\u2066\u200b\ufeff\u2028\U000e0041"
)


@pytest.fixture(scope="module")
def page(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report in which every answer of the policy is hostile, and one that was sampled during its training. Do not
    write to it."""
    folder = tmp_path_factory.mktemp("report")
    inputs = {role: Chain(built).folder(role) for role in nodes(built)["report"].inputs}
    inputs["answer_policy"] = Path(shutil.copytree(inputs["answer_policy"], folder / "answers"))
    table = inputs["answer_policy"] / "answers.parquet"
    answers = load(table, Candidate)
    for answer in answers:
        answer.text = HOSTILE
    save(table, answers, Candidate)
    inputs["dpo"] = Path(shutil.copytree(inputs["dpo"], folder / "dpo"))
    sample = read_samples(inputs["dpo"])[-1]
    sample.answer = HOSTILE
    append_samples(inputs["dpo"], [sample])
    as_published(inputs["dpo"], SAMPLES)
    report.run(settings("recipe=tiny").report, inputs, work(folder))
    return folder / "report.html"


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


@pytest.mark.extended
@pytest.mark.parametrize(
    ("title", "most"),
    [
        ("length explains all", MOST_WORDS),
        ("length explains part", MOST_WORDS),
        ("repeats gained and the others did not", 100),
        # two measures with their biases, and the training of plain SFT
        ("control lower by log-prob alone", 115),
    ],
)
def test_the_first_screen_of_preferences_is_short_and_says_what_limits_it(
    title: str, most: int, chain: Chain, tmp_path: Path
) -> None:
    """Beside the user's own prompt and the answers to it."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    [case] = [case for case in SETS if case.title == title]
    texts_of(chain, tmp_path / "page", on_pairs_of(case, chain))
    with browser(tmp_path / "browser") as tab:
        tab.open(tmp_path / "page" / "report.html", 1440)
        assert bottom_of(tab, ".first") <= DESK
        large = "parseFloat(getComputedStyle(document.querySelector('h1{}')).fontSize)"
        assert tab.evaluate(large.format("")) > 1.5 * tab.evaluate(large.format(" span"))
        # a run on the user's file does not name the command for one
        tab.evaluate("document.querySelectorAll('.example, .own').forEach(e => e.remove())")
        words = str(tab.evaluate("document.querySelector('.first').innerText"))
    assert len(re.findall(r"[A-Za-z]{2,}", words)) <= most
    assert "one seed" in words
    for fact in case.facts:
        assert fact in words


@pytest.mark.extended
def test_each_command_is_copied_by_a_button_and_every_fold_has_its_own_name(
    built: Path, tmp_path: Path
) -> None:
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with browser(tmp_path / "browser") as tab:
        tab.open(built / "report.html", 1440)
        commands = tab.evaluate(TEXTS_OF.format("code.command"))
        names = tab.evaluate("[...document.querySelectorAll('button.copy')].map(b => b.ariaLabel)")
        assert names == [f"copy: {command}" for command in commands]
        assert "python run.py recipe=from_preferences data.path=FILE" in commands
        tab.pipe.tell("Browser.grantPermissions", permissions=["clipboardReadWrite"])
        tab.tell("Page.bringToFront")
        tab.evaluate("document.querySelector('button.copy').click()")
        copied = "document.querySelector('button.copy').ariaLabel"
        wait = "new Promise(done => setTimeout(done, 200))"
        tab.evaluate(wait)
        assert tab.evaluate(copied) == f"copied: {commands[0]}"
        folds = tab.evaluate(
            "[...document.querySelectorAll('summary')].map(s => s.ariaLabel || s.textContent)"
        )
        assert len({*folds}) == len(folds)


def bottom_of(tab: Any, selector: str) -> float:
    """Return where an element ends, in pixels from the top of the page."""
    return float(
        tab.evaluate(f"document.querySelector('{selector}').getBoundingClientRect().bottom")
    )


def test_model_text_is_escaped_and_nothing_is_fetched(page: Path, built: Path) -> None:
    html = page.read_text()
    tokens = json.loads((Chain(built).folder("sft") / "token_example.json").read_text())
    assert html.count('<span class="trained') == sum(t["trained"] for t in tokens)
    assert foreign_scripts(html) == []
    curves = html.split('<section id="curves">')[1].split("</section>")[0]
    assert "&lt;script&gt;" in curves
    assert "&lt;script&gt;" in html.replace(curves, "")
    assert r"\x1b[2J\x9b31m\x00\r\u202eright" in html
    assert not UNSEEN.search(html.replace("\n", "").replace("\t", ""))
    assert {*re.findall(r"""(?:src|href)=["']([^#"'][^"']*)""", html)} == {
        "labels.html",
        "answers.html",
        "../../index.html",
    }, "the files beside it and the list of runs"


def test_thoughts_change_no_result_and_are_shown_folded(chain: Chain, tmp_path: Path) -> None:
    """The policy thinks before each answer, the first time without an end."""
    inputs = {role: chain.folder(role) for role in nodes(chain.root)["report"].inputs}
    before = json.loads((inputs["eval"] / "results.json").read_text())
    table = inputs["answer_policy"] / "answers.parquet"
    answers = load(table, Candidate)
    for answer in answers:
        answer.answer_tokens = answer.n_tokens
        answer.n_tokens += 5
        answer.text = f"<think>\nSo: <br>\n</think>\n\n{answer.text}"
    answers[0].text = "<think>\nSo: no end"
    answers[0].answer_tokens = 0
    save(table, answers, Candidate)
    folder = tmp_path / "eval"
    results = evaluated(chain, chain.folder("dpo"), inputs["answer_policy"], folder)
    assert results["thoughts"] == {"base": 0, "sft": 0, "policy": 1}
    lost = before["primary"]["policy"]["mean"] - results["primary"]["policy"]["mean"]
    assert 0 <= lost * before["primary"]["prompts"] <= 1
    shutil.copy(chain.folder("eval") / "manifest.json", folder)
    report.run(settings("recipe=tiny").report, inputs | {"eval": folder}, work(tmp_path))
    first_screen, rest = (tmp_path / "report.html").read_text().split("<h2", 1)
    assert "So:" not in first_screen
    cards = re.findall(r"<summary>thought of DPO</summary><pre>So: (.*?)</pre></details>", rest)
    assert cards
    assert {*cards} <= {"&lt;br&gt;", "no end"}


@pytest.mark.extended
def test_several_seeds_are_shown_each_and_together(chain: Chain, tmp_path: Path) -> None:
    build(chain.root, "seeds=[1]")
    html = (chain.root / "report.html").read_text()
    manifests = [m for _, m in Store(chain.root).manifests("eval")]
    deltas = [100 * m["metrics"]["delta"]["policy-sft"]["mean"] for m in manifests]
    mean = f"{sum(deltas) / 2:+.1f} points".replace("-", "−")
    assert re.search(rf"Over 2 seeds, .*: {re.escape(mean)}", html)
    assert "<h1>Seed 0: " in html
    over_seeds = json.loads((chain.root / "latest" / "report" / "seeds.json").read_text())
    assert over_seeds["seeds"] == [0, 1]
    gains = over_seeds["checks"]["policy-sft"]
    assert sorted(100 * value for value in gains["values"]) == pytest.approx(sorted(deltas))
    assert gains["interval"]["low"] < min(gains["values"])
    assert over_seeds["headline"] in html.split("</h1>")[0]
    metrics = chain.manifest("report", "seeds=[1]")["metrics"]
    assert metrics["over_seeds"] == over_seeds
    assert metrics["by_seed"] == over_seeds["headline"]
    one = chain.manifest("report")["metrics"]
    assert (one["by_seed"], one["over_seeds"]) == (ONE_SEED, None)
    roles = nodes(chain.root, "seeds=[1]")["report"].inputs
    inputs = {role: chain.folder(role, "seeds=[1]") for role in roles}
    manifests_by_role = {role: manifest_of(folder) for role, folder in inputs.items()}
    runs = read_runs(inputs, manifests_by_role)
    rehearsed = summary(runs, inputs, 0.95, REHEARSAL)
    assert rehearsed and rehearsed.checks
    assert rehearsed.headline == "" and REHEARSAL in rehearsed.sentence
    assert "2 seeds" in over_seeds["headline"]
    assert runs[0].results.gives_verdict == ["checks"] and over_seeds["learnt"]
    assert "pairs" not in over_seeds["headline"], "it speaks of the verdict, which is by checks"
    assert all(m["fingerprint"] in html for m in manifests)
    assert page_faults(chain.root / "report.html", tmp_path) == []


def test_each_file_of_an_evaluation_is_read_once(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = {role: chain.folder(role) for role in nodes(chain.root)["report"].inputs}
    opened = Counter[Path]()

    def count(path: Path, *rest: Any) -> Any:
        opened[path] += 1
        return original[path.suffix](path, *rest)

    original = {".json": load_json, ".parquet": records.open_table}
    monkeypatch.setattr(records, "open_table", count)
    monkeypatch.setattr("stages.evaluation.results.load_json", count)
    report.run(settings("recipe=tiny").report, inputs, work(tmp_path))
    read = {path.name: number for path, number in opened.items() if path.parent == inputs["eval"]}
    assert read == {"results.json": 1, "measures.parquet": 1}
