"""The label page of every labeler, with hostile texts, in a real browser; and the whole chain from a judge to it."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stages.config.errors import UNSEEN
from stages.evaluation.labelling import Labelling
from stages.pages import label_page
from stages.pages.label_page import ROOM, cut
from stages.store.records import Candidate, Example, Judgement, load, save
from tests.browser import page_faults
from tests.endpoints.servers import Model, running
from tests.helpers import Chain, as_published, build
from tests.labelers.asking import somebody
from tests.labelers.judging import judging

pytest.importorskip("openai")
pytest.importorskip("starlette")
HOSTILE = (
    "<script>document.title = 'taken over'</script><img src=x onerror=\"document.title = 'taken over'\">{{ 7 * 7 }}"
    "\x1b[2J\u202e\u200b"
)


def text_of(html: str, section: str = "") -> str:
    """Return the text of a page, or of one of its sections, without tags."""
    part = (
        html.partition(f'<section id="{section}">')[2].partition("</section>")[0]
        if section
        else html
    )
    return " ".join(re.sub(r"<[^>]+>", " ", part).split())


def sections(html: str) -> list[str]:
    return re.findall(r'<section id="(\w+)"', html)


def rows(html: str, section: str) -> dict[str, str]:
    """Return the text of each table row in a section, by its head."""
    part = html.partition(f'<section id="{section}">')[2].partition("</section>")[0]
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', part, flags=re.DOTALL)
    return {text_of(head): text_of(rest) for head, rest in rows}


def asking(*judges: Model) -> tuple[str, ...]:
    named = ",".join(
        f"{{base_url: '{judge.url}', model: judge-{i}}}" for i, judge in enumerate(judges)
    )
    return ("label=judge", f"label.endpoints=[{named}]", "label.audit=30")


@pytest.fixture
def judged(chain: Chain) -> tuple[Chain, Path, str]:
    """Build a chain to its report, labelled by two judges that prefer longer answers and one that prefers the first.

    Gives the chain, the folder of the label node, and the HTML of the page in the store's root.
    """

    def longest(texts):
        return max("AB", key=lambda side: (len(texts[side]), texts[side]))

    with (
        running(Model(judging(longest))) as one,
        running(Model(judging(longest))) as two,
        running(Model(judging(lambda texts: "A"))) as first,
    ):
        line = asking(one, two, first)
        build(chain.root, *line)
        question_count, page = len(one.requests), chain.root / "labels.html"
        html = page.read_text()
        page.unlink()
        build(chain.root, *line, "stage=label")
        assert page.read_text() == html and len(one.requests) == question_count
        return chain, chain.folder("label", *line), html


@pytest.mark.extended
def test_a_judge_labels_the_whole_chain_is_built_and_the_page_tells_what_it_is_worth(
    judged: tuple[Chain, Path, str], tmp_path: Path
) -> None:
    chain, folder, html = judged
    report = (chain.root / "report.html").read_text()
    assert 'href="labels.html"' in report
    accuracy = json.loads((chain.root / "latest" / "pairs" / "manifest.json").read_text())[
        "metrics"
    ]["expected_accuracy"]
    assert (
        all(f'data-label="{word}">' in report for word in accuracy if word != "pairs")
        and accuracy["pairs"] > 20
    )
    assert sections(html) == ["known", "shares", "judges", "tasks", "cases", "made"]
    words = Counter(j.preference for j in Labelling.read(folder).judgements)
    counts = f"{words['a'] + words['b']} preferences, {words['tie']} ties."
    assert (
        f"{words.total()} comparisons on 48 prompts, by judge: {counts}" in text_of(html)
        and words["tie"] > 0
    )
    judge_rows = rows(html, "judges")
    preferences = len(Labelling.read(folder).preferences)
    assert re.match(rf"{preferences} 0 50\.0% .* 0 of {preferences} ", judge_rows["judge-0"]), (
        "no position bias"
    )
    assert re.match(
        rf"{preferences} 0 all {2 * preferences} .* all {preferences} ", judge_rows["judge-2"]
    ), "the order decides"
    assert re.search(
        rf"judge-0 and judge-1 say the same of 100\.0% .* of {preferences} judgements",
        text_of(html, "judges"),
    )
    reliability = json.loads((folder / "reliability.json").read_text())
    assert rows(html, "known")["right"].startswith(f"{reliability['accuracy']['mean']:.1%}")
    assert f"of {reliability['known']} judgements" in text_of(html).partition("drawn at random")[0]
    assert not re.findall(r"""(?:src|href)=["'](?!#)""", html), "self-contained"
    hostile = spoilt(folder, tmp_path / "label" / folder.name)
    spoilt_html = label_page.page(hostile)
    assert (
        "<script" not in spoilt_html and "<img" not in spoilt_html and "{{ 7 * 7 }}" in spoilt_html
    )
    assert r"\x1b[2J\u202e\u200b" in spoilt_html and not UNSEEN.search(
        spoilt_html.replace("\n", "")
    )
    assert len(spoilt_html.encode()) <= 400_000
    page = tmp_path / "labels.html"
    page.write_text(spoilt_html)
    assert page_faults(page, tmp_path / "browser") == []


@pytest.mark.parametrize("stage", ["pairs", "unpaired", "reference", "sft"])
def test_the_page_is_written_wherever_labels_were_made_or_used_on_the_way(
    stage: str, chain: Chain
) -> None:
    page = chain.root / "labels.html"
    page.unlink()
    build(chain.root, f"stage={stage}")
    assert page.exists() is (stage != "sft")
    if page.exists():
        assert page.read_text() == label_page.page(chain.folder("label"))


def test_an_answer_without_a_score_is_none_that_was_scored(chain: Chain, tmp_path: Path) -> None:
    folder = tmp_path / "label" / "copy"
    shutil.copytree(chain.folder("label"), folder)
    judgements = load(folder / "judgements.parquet", Judgement)
    for judgement in judgements[:5]:
        judgement.score, judgement.error = None, "failed"
    save(folder / "judgements.parquet", judgements, Judgement)
    as_published(folder, "judgements.parquet")
    text = text_of(label_page.page(folder))
    assert (
        f"{len(judgements) - 5} answers to 48 prompts, scored by verifier" in text
        and "at 1, 5 missing." in text
    )


def spoilt(folder: Path, copy: Path) -> Path:
    """Copy a label node and make every text hostile, and too long to be shown in full."""
    shutil.copytree(folder, copy)
    for name, kind in (("prompts", Example), ("candidates", Candidate), ("judgements", Judgement)):
        records: list[Any] = load(copy / f"{name}.parquet", kind)  # type: ignore[type-var]
        for i, record in enumerate(records):
            match record:
                case Example():
                    record.messages = [{"role": HOSTILE, "content": HOSTILE * 200}] * 9
                case Candidate():
                    record.text = "" if i % 3 == 0 else f"{i} " + HOSTILE * 200
                case Judgement():
                    reply = {"text": HOSTILE * 200, "finish_reason": HOSTILE * 200}
                    record.raw = record.raw and json.dumps({HOSTILE: {"ab": reply, "ba": reply}})
        save(copy / f"{name}.parquet", records, kind)
    return copy


def test_a_verifiers_page_says_nothing_of_judges(chain: Chain) -> None:
    html = label_page.page(chain.folder("label"))
    labelling, metrics = Labelling.read(chain.folder("label")), chain.manifest("label")["metrics"]
    assert sections(html) == ["shares", "scores", "tasks", "cases", "made"]
    assert f"{metrics['mean_score']:.3f} on average, {metrics['pass_rate']:.1%} at 1" in text_of(
        html
    )
    assert rows(html, "scores") == {score: str(count) for score, count in metrics["scores"].items()}
    assert sum(int(row.split()[0]) for row in rows(html, "tasks").values()) == len(
        labelling.judgements
    )
    assert "label.audit" not in html, "its labels are what is known"


def test_an_answer_stands_below_its_folded_thought(chain: Chain, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(chain.folder("label"), tmp_path / "label"))
    candidates = load(folder / "candidates.parquet", Candidate)
    for c in candidates:
        c.answer_tokens, c.text = c.n_tokens, f"<think>\nSo: {'x' * ROOM}\n</think>\n\n{c.text}"
    save(folder / "candidates.parquet", candidates, Candidate)
    html = label_page.page(folder)
    cards = html.count('<div class="card">')
    assert html.count("<summary>thought</summary><pre>So: xx") == cards > 0
    assert "xx …</pre></details>" in html and "&lt;think&gt;" not in html


def test_an_audit_of_all_judgements_leaves_no_rate_of_the_others(
    chain: Chain, tmp_path: Path
) -> None:
    build(chain.root, "stage=label", "label.audit=100000")
    folder = chain.folder("label", "label.audit=100000")
    html = label_page.page(folder)
    assert "judgements, drawn at random" in html and "there is none" not in html
    shutil.copytree(folder, copy := tmp_path / "label")
    audit = copy / "audit.jsonl"
    audit.write_text(audit.read_text().replace('"answer": "', '"answer": "next\x85\u2028line '))
    assert label_page.page(copy) == html, (
        "a line of JSON may hold characters that end lines elsewhere"
    )


@pytest.mark.slow
def test_an_ensembles_page_tells_members_vetoes_people_and_where_they_differ(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(Model(judging(lambda texts: "A" if texts["A"] < texts["B"] else "B"))) as model:
        line = ("label=ensemble", f"label.endpoints=[{{base_url: '{model.url}', model: m}}]")
        line += ("label.members=[{labeler: verifier, veto: 0.5}, {labeler: judge, weight: 2}]",)
        line += ("label.people=4", "label.audit=5", "label.runtime.port=0")
        with somebody(monkeypatch, lambda question: "a"):
            build(chain.root, "stage=label", *line)
    folder, html = chain.folder("label", *line), (chain.root / "labels.html").read_text()
    ensemble_text, labelling = text_of(html, "ensemble"), Labelling.read(folder)
    votes = [json.loads(j.raw or "{}") for j in labelling.judgements]
    voted = [vote for vote in votes if "judge" in vote]
    differ = sum(vote["verifier"] != vote["judge"] for vote in voted)
    assert (
        0 < differ < len(voted)
        and f"the members differ on {differ}; a veto decides " in ensemble_text
    )
    checks = load(chain.folder("label") / "judgements.parquet", Judgement)
    low = sum(j.score is not None and j.score < 0.5 for j in checks)
    table = rows(html, "ensemble")
    assert table["verifier"].startswith(f"1 {len(voted)} ") and table["verifier"].endswith(
        f" 0.5 {low:,} answers"
    )
    assert table["judge"].startswith(f"2 {len(voted)} ") and table["judge"].endswith("–")
    assert f"verifier and judge say the same of {1 - differ / len(voted):.1%} (" in ensemble_text
    assert re.search(
        r"People were asked about 4 of the \d+ in doubt, .* About 5 more, drawn at random",
        ensemble_text,
    )
    cases = text_of(html, "cases")
    assert f"Members that disagree: {differ} of " in cases
    assert re.search(r"verifier: (A better|B better|a tie) judge: (A better|B better|a tie)", cases)
    assert "<script" not in label_page.page(spoilt(folder, tmp_path / "label" / folder.name))
    monkeypatch.setattr("stages.pages.label_page.SHOWN", len(votes))
    assert (
        len(
            re.findall(
                r"people: (?:A better|B better|a tie)", text_of(label_page.page(folder), "cases")
            )
        )
        >= 4
    )
    assert page_faults(chain.root / "labels.html", tmp_path / "browser") == []


@pytest.mark.parametrize("order", [1, -1])
def test_a_files_page_says_whether_the_longer_wins(
    order: int, chain: Chain, tmp_path: Path
) -> None:
    texts = ["short one", "an answer of five words"][::order]
    ends = [
        {"prompt": f"request {i}", "chosen": f"{i} {texts[0]}", "rejected": f"{i} {texts[1]}"}
        for i in range(40)
    ]
    file = tmp_path / "preferences.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ends))
    build(chain.root, "stage=label", "label=dataset", f"label.path={file}")
    html = (chain.root / "labels.html").read_text()
    assert sections(html) == ["shares", "made"]
    beginning = "0 of 40" if order > 0 else "all 40"
    assert rows(html, "shares")["the longer of two answers is better"].startswith(beginning)
    assert "label.audit=200" in html, "nobody told how often they are wrong"


def test_a_text_is_cut_to_what_it_takes_on_the_page_and_says_so() -> None:
    assert cut("a", "x" * ROOM) == ("a", "x" * ROOM, 0)
    assert cut("a", "<" * ROOM) == ("a", "<" * (ROOM // 4), ROOM - ROOM // 4)
    assert cut("a", "🙂" * ROOM).more == ROOM - ROOM // 4
