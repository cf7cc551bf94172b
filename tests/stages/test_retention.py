"""Retention: claims that hold where nothing was lost, and do not where something was."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.config.blocks.evaluation import Eval
from stages.config.errors import UserError
from stages.evaluation.outcomes import tabulate
from stages.evaluation.retention import (
    Claim,
    claims,
    mark_holding,
    mean_claim,
    variety,
    within_length,
)
from stages.store.records import Candidate, Check, Example, save
from tests.helpers import TINY, Chain, build, settings
from tests.rows import candidate, work

SIMULATED = 300


def block(**changes: Any) -> Eval:
    return replace(settings(*TINY).eval, **changes)


def answer(text: str) -> Candidate:
    return candidate("p", text, len(text.split()))


def test_a_loss_as_large_as_the_margin_is_called_kept_in_one_of_twenty() -> None:
    draw = np.random.default_rng(0)
    margin, claims_held = 0.05, 0
    for _ in range(SIMULATED):
        other = draw.normal(0, 1, 120)
        policy = other - margin + draw.normal(0, 0.2, 120)
        claims_held += mean_claim("log-prob", "sft", (policy, other), 0.05, margin).p <= 0.05
    assert claims_held / SIMULATED == pytest.approx(0.05, abs=4 * (0.05 * 0.95 / SIMULATED) ** 0.5)


def test_no_loss_is_shown_to_be_none_and_a_great_one_is_not() -> None:
    other = np.random.default_rng(1).normal(0, 1, 200)
    assert mean_claim("log-prob", "sft", (other, other), 0.05, 0.05).p < 0.01
    assert mean_claim("log-prob", "sft", (other - 0.2, other), 0.05, 0.05).p > 0.99


def test_a_measure_in_which_nothing_varies_is_no_surer_than_so_many_answers_make_it() -> None:
    """Were 2% of all answers empty, the claim would be false, and 64 would show none of them in a quarter of cases."""
    full = np.ones(64)
    few = mean_claim("asked length", "sft", (full, full), 0.05, 0.02, bounded=True)
    assert few.p == pytest.approx(0.98**64)
    assert few.needed is not None and few.prompts < few.needed < 1000
    assert (
        mean_claim(
            "different pairs", "base", (0 * full, 0 * full), 0.05, share=0.9, bounded=True
        ).needed
        is None
    )


def test_many_claims_have_to_be_clearer_than_one() -> None:
    def of(p):
        return Claim("what", "sft", 0.0, 0.0, 0.1, p, 100, 100)

    alone, both, three = [of(0.04)], [of(0.04), of(0.03)], [of(0.04), of(0.001), of(0.02)]
    for interval in (alone, both, three):
        mark_holding(interval, 0.05)
    assert [c.holds for c in alone] == [True]
    assert [c.holds for c in both] == [False, False], "0.03 is above 0.05 / 2"
    assert [c.holds for c in three] == [True, True, True], (
        "0.001 <= 0.05/3, 0.02 <= 0.05/2, 0.04 <= 0.05"
    )


def test_what_is_measured_of_an_answer() -> None:
    def prompt(kind, **params):
        return Example("p", [], None, "open", "t", "test", checks=[Check(kind, params)])

    assert variety(prompt("no_commas"), answer("a b c d")) == 1
    assert variety(prompt("no_commas"), answer("a b a b a")) == 0.5
    assert variety(prompt("no_commas"), answer("")) == 0
    ten = answer("one two three four five six seven eight nine ten")
    assert within_length(prompt("words_at_most", count=10), ten) == 1
    assert within_length(prompt("words_at_most", count=8), ten) == pytest.approx(0.75)
    assert within_length(prompt("words_at_least", count=20), ten) == pytest.approx(0.5)
    assert within_length(prompt("words_between", low=4, high=5), ten) == 0


def test_a_text_of_one_token_does_not_make_every_claim_hold(built: Path, tmp_path: Path) -> None:
    """Its mean log-prob is of no token."""
    roles = ("base", "sft", "policy")
    cfg, file = (
        block(models={role: role for role in roles}),
        tmp_path / "texts" / "examples.parquet",
    )
    file.parent.mkdir()
    texts = [
        "The bench stood in the garden, and nobody knew who had left it.",
        "a",
        "The bench stood.",
    ]
    save(
        file, [Example(str(i), [], text, "t", "t", "sft") for i, text in enumerate(texts)], Example
    )
    inputs = {role: Chain(built).folder("sft") for role in roles} | {"retained": file.parent}
    none: dict[str, dict[str, Candidate]] = {role: {} for role in roles}
    nothing, out = tabulate([], none), work(tmp_path)
    retention_claims, measured = claims(cfg, inputs, nothing, none, out)
    assert all(np.isfinite([c["policy"], c["other"]]).all() for c in retention_claims["claims"])
    assert [np.isfinite(m.value) for m in measured] == [True, True]
    assert "1 of 3 texts" in out.warnings[0]
    save(file, [Example("0", [], "a", "t", "t", "sft")], Example)
    with pytest.raises(UserError, match="two tokens"):
        claims(cfg, inputs, nothing, none, out)


@pytest.mark.extended
def test_running_text_and_plain_requests_are_in_the_evaluation(built: Path, tmp_path: Path) -> None:
    root = tmp_path / "outputs"
    shutil.copytree(built, root, symlinks=True)
    texts = tmp_path / "texts.jsonl"
    warnings = [
        f"The {thing} stood in the garden, and nobody knew who had left it."
        for thing in ("bench", "lamp", "vase")
    ]
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in warnings))
    overrides = (
        f"eval.retention=[{{path: {texts}}}]",
        "data.tasks.open_plain=6",
        "data.tasks.open_lengths=6",
    )
    build(root, *overrides)
    results = json.loads((Chain(root).folder("eval", *overrides) / "results.json").read_text())
    claims = results["retention"]["claims"]
    assert [(c["what"], c["against"]) for c in claims[:2]] == [
        ("log-prob of running text, nats per token", "sft"),
        ("log-prob of running text, nats per token", "base"),
    ]
    assert {"different pairs of words", "answers without a loop"} <= {c["what"] for c in claims}
    assert [c["prompts"] for c in claims if c["what"] == "share of the requested length"] == [6, 6]
    page = (Chain(root).folder("report", *overrides) / "report.html").read_text()
    assert results["retention"]["sentence"] in page
    assert '<section id="retention">' in page
