"""Retention: claims that hold where nothing was lost, and do not where something was."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stages.evaluation import retention
from stages.evaluation.outcomes import Table
from stages.evaluation.results import Retained, Retention
from stages.evaluation.retention import (
    claims,
    mark_holding,
    mean_claim,
    variety,
    within_length,
)
from stages.store.records import Candidate, Check, Example
from tests.helpers import Chain, build, settings
from tests.rows import candidate, work


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


def claim(p: float) -> Retained:
    return Retained("length", "sft", 0.5, 0.5, 0.05, p, 100, None)


@pytest.mark.parametrize(
    ("p_values", "holding"),
    [
        ([0.01, 0.02, 0.04], [True, True, True]),
        ([0.04, 0.01, 0.02], [True, True, True]),
        ([0.01, 0.03, 0.04], [True, False, False]),
        ([0.02, 0.02, 0.02], [False, False, False]),
        ([0.04], [True]),
        ([0.06], [False]),
    ],
)
def test_the_claim_of_rank_k_holds_at_alpha_divided_by_those_not_yet_decided(
    p_values: list[float], holding: list[bool]
) -> None:
    """Holm: at 5% the limits for three claims are 1.67%, 2.5% and 5%, and after one that fails none holds."""
    tested = [claim(p) for p in p_values]
    mark_holding(tested, 0.05)
    assert [c.holds for c in tested] == holding


def test_of_four_claims_that_are_all_false_any_holds_in_one_of_twenty_evaluations() -> None:
    """Every measure is worse by its margin. Without a correction, any holds in 19% of all evaluations."""
    rng = np.random.default_rng(5)
    evaluations = 400
    n_wrong = 0
    for _ in range(evaluations):
        losses = rng.normal(-0.1, 1.0, (4, 50))
        tested = [mean_claim("log-prob", "sft", (loss, np.zeros(50)), 0.05, 0.1) for loss in losses]
        mark_holding(tested, 0.05)
        n_wrong += any(c.holds for c in tested)
    assert 0.01 < n_wrong / evaluations < 0.1


PLAIN = [Example(f"p{i}", [], None, "open", "t", "test", group="open_plain") for i in range(200)]
TITLES = {"base": "Base", "policy": "DPO"}


def retention_of(base_text: str, policy_text: str, folder: Path) -> Retention:
    """Return the results of retention on open requests that each model gives one answer to."""
    answers = {
        role: {e.id: answer(text) for e in PLAIN}
        for role, text in (("base", base_text), ("policy", policy_text))
    }
    empty = np.zeros((len(PLAIN), len(TITLES)))
    table = Table([*TITLES], PLAIN, empty, empty, empty)
    cfg = replace(settings("recipe=tiny").eval, models=TITLES)
    retained, _ = claims(cfg, {}, table, answers, work(folder))
    assert retained
    return retained


def test_claims_hold_where_answers_are_the_same_and_not_where_they_loop(tmp_path: Path) -> None:
    good = "The tides rise twice a day because the moon pulls the water."
    same = retention_of(good, good, tmp_path)
    assert [c.holds for c in same.claims] == [True, True]
    looping = retention_of(good, "The sea is wide. " * 9, tmp_path)
    assert [c.holds for c in looping.claims] == [False, False]
    for c in looping.claims:
        assert c.what in looping.sentence


def test_each_answer_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = list[Candidate]()

    def count(prompt: Example, answer: Candidate) -> float:
        measured.append(answer)
        return variety(prompt, answer)

    monkeypatch.setattr(retention, "variety", count)
    retention_of("The tides rise.", "The sea is wide.", tmp_path)
    assert len(measured) == len(PLAIN) * len(TITLES)


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
    tested = results["retention"]["claims"]
    assert [c["against"] for c in tested[:2]] == ["sft", "base"]
    assert {"different pairs of words", "answers without a loop"} <= {c["what"] for c in tested}
    assert [c["prompts"] for c in tested if c["what"] == "share of the requested length"] == [6, 6]
    page = (chain.folder("report", *overrides) / "report.html").read_text()
    assert results["retention"]["sentence"] in page
