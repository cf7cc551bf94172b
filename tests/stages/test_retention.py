"""Retention: claims that hold where nothing was lost, and do not where something was."""

import json
from pathlib import Path

import pytest

from stages.evaluation.retention import (
    variety,
    within_length,
)
from stages.store.records import Candidate, Check, Example
from tests.helpers import Chain, build
from tests.rows import candidate


def answer(text: str) -> Candidate:
    return candidate("p", text, len(text.split()))


def test_what_is_measured_of_an_answer() -> None:
    def prompt(kind: str, **params: int) -> Example:
        return Example("p", [], None, "open", "t", "test", checks=[Check(kind, params)])

    assert variety(prompt("no_commas"), answer("a b a b a")) == 0.5
    ten = answer("one two three four five six seven eight nine ten")
    assert within_length(prompt("words_at_most", count=8), ten) == pytest.approx(0.75)
    assert within_length(prompt("words_at_least", count=20), ten) == pytest.approx(0.5)
    assert within_length(prompt("words_between", low=4, high=5), ten) == 0


@pytest.mark.extended
def test_running_text_and_plain_requests_are_in_the_evaluation(
    chain: Chain, tmp_path: Path
) -> None:
    texts = tmp_path / "texts.jsonl"
    rows = [{"text": f"The {thing} stood in the garden."} for thing in ("bench", "lamp", "vase")]
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = (
        f"eval.retention=[{{path: {texts}}}]",
        "data.tasks.open_plain=6",
        "data.tasks.open_lengths=6",
    )
    build(chain.root, *overrides)
    results = json.loads((chain.folder("eval", *overrides) / "results.json").read_text())
    claims = results["retention"]["claims"]
    assert [c["against"] for c in claims[:2]] == ["sft", "base"]
    assert {"different pairs of words", "answers without a loop"} <= {c["what"] for c in claims}
    assert [c["prompts"] for c in claims if c["what"] == "share of the requested length"] == [6, 6]
    page = (chain.folder("report", *overrides) / "report.html").read_text()
    assert results["retention"]["sentence"] in page
