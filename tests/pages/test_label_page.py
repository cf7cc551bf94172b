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
from stages.store.records import Candidate, Example, Judgement, load, save
from tests.browser import foreign_scripts, page_faults
from tests.endpoints.servers import Model, running
from tests.helpers import Chain, build
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
        question_count = len(one.requests)
        page = chain.root / "labels.html"
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
    assert 'href="labels.html"' in (chain.root / "report.html").read_text()
    metrics = json.loads((chain.root / "latest" / "pairs" / "manifest.json").read_text())["metrics"]
    assert metrics["expected_accuracy"]["pairs"] > 20
    assert sections(html) == ["known", "shares", "judges", "tasks", "cases", "made"]
    words = Counter(j.preference for j in Labelling.read(folder).judgements)
    assert f"{words['a'] + words['b']} preferences, {words['tie']} ties." in text_of(html)
    judge_rows = rows(html, "judges")
    count = len(Labelling.read(folder).preferences)
    assert re.match(rf"{count} 0 50\.0% .* 0 of {count} ", judge_rows["judge-0"])
    assert re.match(rf"{count} 0 all {2 * count} .* all {count} ", judge_rows["judge-2"])
    assert "judge-0 and judge-1 say the same of 100.0%" in text_of(html, "judges")
    accuracy = json.loads((folder / "reliability.json").read_text())["accuracy"]["mean"]
    assert rows(html, "known")["right"].startswith(f"{accuracy:.1%}")
    assert not re.findall(r"""(?:src|href)=["'](?!#)""", html), "self-contained"

    spoilt_html = label_page.page(spoilt(folder, tmp_path / "label" / folder.name))
    assert foreign_scripts(spoilt_html) == []
    assert "{{ 7 * 7 }}" in spoilt_html
    assert r"\x1b[2J\u202e\u200b" in spoilt_html
    assert not UNSEEN.search(spoilt_html.replace("\n", ""))
    assert len(spoilt_html.encode()) <= 400_000
    page = tmp_path / "labels.html"
    page.write_text(spoilt_html)
    assert page_faults(page, tmp_path / "browser") == []


def test_the_page_is_written_wherever_labels_were_made_or_used_on_the_way(chain: Chain) -> None:
    page = chain.root / "labels.html"
    for stage in ("pairs", "reference", "sft"):
        page.unlink(missing_ok=True)
        build(chain.root, f"stage={stage}")
        assert page.exists() is (stage != "sft")


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
