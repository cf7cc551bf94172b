"""Retention: claims that hold where nothing was lost, and do not where something was."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.config.blocks.evaluation import Eval
from stages.evaluation.outcomes import tabulate
from stages.evaluation.retention import (
    claims,
    variety,
    within_length,
)
from stages.store.records import Candidate, Check, Example, save
from tests.helpers import TINY, Chain, build, settings
from tests.rows import candidate, work


def block(**changes: Any) -> Eval:
    return replace(settings(*TINY).eval, **changes)


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


def test_a_text_of_one_token_does_not_make_every_claim_hold(built: Path, tmp_path: Path) -> None:
    """Its mean log-prob is of no token."""
    roles = ("base", "sft", "policy")
    cfg = block(models={role: role for role in roles})
    file = tmp_path / "texts" / "examples.parquet"
    file.parent.mkdir()
    texts = ["The bench stood in the garden.", "a", "The bench stood."]
    save(
        file, [Example(str(i), [], text, "t", "t", "sft") for i, text in enumerate(texts)], Example
    )
    inputs = {role: Chain(built).folder("sft") for role in roles} | {"retained": file.parent}
    none: dict[str, dict[str, Candidate]] = {role: {} for role in roles}
    nothing = tabulate([], none)
    out = work(tmp_path)
    retention_claims, measured = claims(cfg, inputs, nothing, none, out)
    assert all(np.isfinite([c["policy"], c["other"]]).all() for c in retention_claims["claims"])
    assert [np.isfinite(m.value) for m in measured] == [True, True]
    assert "1 of 3 texts" in out.warnings[0]


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
