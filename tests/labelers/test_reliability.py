"""`label.audit=N`: agreement of judgements with known verdicts, and the error rates that follow."""

import json
import random
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path

import pytest

from stages.config.errors import UserError
from stages.evaluation.estimate import share
from stages.evaluation.reliability import (
    countable,
    draw_audit,
    key_of,
    read_known_words,
    reliability,
)
from stages.store.records import Judgement
from tests.endpoints.servers import Model, running
from tests.formats.reading import lines
from tests.helpers import Chain, build
from tests.labelers.judging import judging
from tests.rows import pool

pytest.importorskip("openai")
MANY = pool(*([f"poor {i}", f"good answer {i}"] for i in range(2000)))
PROMPTS = {p.id: p for p in MANY.prompts}
CANDIDATES = {c.candidate_id: c for c in MANY.candidates}


def labelled(right: float) -> tuple[list[Judgement], dict[tuple[str, ...], str]]:
    """Return preferences of a judge whose accuracy is `right`, and the true preferences by pair."""
    rng = random.Random(0)
    judgements = list[Judgement]()
    truth_by_pair = dict[tuple[str, ...], str]()
    for prompt, (poor, good) in MANY.by_prompt():
        a, b = rng.sample([poor, good], 2)
        truth, wrong = ("a", "b") if a is good else ("b", "a")
        word = truth if rng.random() < right else wrong
        of = {"a": a.candidate_id, "b": b.candidate_id}
        judgements.append(Judgement(prompt.id, "judge", **of, preference=word))
        truth_by_pair[a.candidate_id, b.candidate_id] = truth
    return judgements, truth_by_pair


def test_error_rates_are_estimated_and_correct_the_positive_rate() -> None:
    judgements, truth_by_pair = labelled(0.8)
    audit = draw_audit(judgements, 400)
    report = reliability(judgements, audit, truth_by_pair, PROMPTS, CANDIDATES)
    for name in ("accuracy", "sensitivity", "specificity", "pair_accuracy"):
        assert report[name]["low"] <= 0.8 <= report[name]["high"], name
        assert report[name]["high"] - report[name]["low"] < 0.15
    assert report["kappa"]["low"] <= 0.6 <= report["kappa"]["high"]
    truth = sum(word == "a" for word in truth_by_pair.values()) / len(truth_by_pair)
    corrected = report["positive_rate"]["corrected"]
    assert corrected["low"] <= truth <= corrected["high"]
    assert report["by_topic"]["t"]["n"] == 400


def test_verdicts_on_one_prompt_are_one_draw() -> None:
    """30 prompts × 6 judgements, which a judge gets right or wrong together: rates are as sure as of 30 draws."""
    few = pool(*([f"answer {i} {j}" for j in range(4)] for i in range(30)))
    judgements = list[Judgement]()
    truth_by_pair = dict[tuple[str, ...], str]()
    right = list[bool]()
    for i, (prompt, candidates) in enumerate(few.by_prompt()):
        right.append(i % 5 > 0)
        for a, b in combinations(candidates, 2):
            pair = {"a": a.candidate_id, "b": b.candidate_id}
            word = "a" if right[i] else "b"
            swapped = {"order_swapped_agrees": right[i]}
            judgements.append(Judgement(prompt.id, "judge", **pair, preference=word, **swapped))
            truth_by_pair[a.candidate_id, b.candidate_id] = "a"
    candidates_by_id = {c.candidate_id: c for c in few.candidates}
    prompts_by_id = {p.id: p for p in few.prompts}
    report = reliability(judgements, judgements, truth_by_pair, prompts_by_id, candidates_by_id)
    draws = share(right, map(str, range(30))).interval()
    for name in ("accuracy", "pair_accuracy", "sensitivity"):
        assert report[name] == pytest.approx(asdict(draws)), name
    assert report["by_topic"]["t"]["low"] == pytest.approx(draws.low)
    assert report["order_flips"]["high"] == pytest.approx(1 - draws.low)


def test_what_is_audited_is_drawn_without_a_look_at_the_verdict() -> None:
    judgements, _ = labelled(0.8)
    turned = [replace(j, preference="tie") for j in reversed(judgements)]
    audit = draw_audit(judgements, 50)
    other = draw_audit(turned, 50)
    assert [key_of(j) for j in audit] == [key_of(j) for j in other]
    failed = [replace(j, preference=None, error="no JSON") for j in judgements[:5]]
    assert countable([*failed, *judgements[5:]], CANDIDATES) == countable(
        judgements[5:], CANDIDATES
    )
    report = reliability(failed + judgements[5:], [], {}, PROMPTS, CANDIDATES)
    assert report["missing"] == {"no JSON": 5}


def test_a_completed_audit_is_read_in_both_orders_and_bad_lines_are_reported(
    tmp_path: Path,
) -> None:
    rows = [
        {"judged": ["x", "y"], "known": "a"},
        {"judged": ["z"], "known": "bad"},
        {"judged": ["w"], "known": None},
    ]
    file = lines(tmp_path, rows)
    assert read_known_words(file) == {("x", "y"): "a", ("y", "x"): "b", ("z",): "bad"}
    for wrong in ({"judged": ["z"], "known": "a"}, {"known": "a"}, "no object"):
        with pytest.raises(UserError, match=r"^label\.known=.*line 2 "):
            read_known_words(lines(tmp_path, [rows[0], wrong]))


@pytest.mark.extended
def test_an_audit_by_checks_and_then_by_a_person_asks_no_judge_again(
    chain: Chain, tmp_path: Path
) -> None:
    def longer(texts):
        return 10 if len(texts["ANSWER"]) > 40 else 1

    with running(Model(judging(longer, "score"))) as model:
        typed = (
            "label=judge",
            f"label.endpoints=[{{base_url: '{model.url}', model: judge}}]",
            "label.kind=pointwise",
            "label.audit=40",
        )
        build(chain.root, "stage=label", *typed)
        folder = chain.folder("label", *typed)
        before = len(model.requests)
        report = json.loads((folder / "reliability.json").read_text())
        assert report["audited"] == report["known"] == 40, "every prompt has checks"
        filled = tmp_path / "filled.jsonl"
        with open(filled, "w") as sink:
            for line in (folder / "audit.jsonl").read_text().splitlines():
                row = json.loads(line)
                assert not {"verdict", "score"} & row.keys()
                row["known"] = "good" if len(row["answer"]) > 40 else "bad"
                sink.write(json.dumps(row) + "\n")
        known = (*typed, f"label.known={filled}")
        build(chain.root, "stage=label", *known)
        report = json.loads((chain.folder("label", *known) / "reliability.json").read_text())
        assert report["accuracy"]["mean"] == 1
        assert len(model.requests) == before
    assert "audited" in chain.manifest("label", *typed)["metrics"]["summary"]
