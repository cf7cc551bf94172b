"""Accuracy of the pairs that a strategy forms: right, wrong or neither, by checks or by known labels."""

import json
import random
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from stages import pairs
from stages.config.choices import Strategy
from stages.store.records import Candidate, Check, Example, Judgement, Pair, load, save
from stages.tasks.checks import share_passed
from tests.pairing.building import block
from tests.rows import candidate, judged_pool, work

CHECKS = [Check("upper"), Check("equals", {"text": "YES"})]  # YES passes both, NO one, yes none
WORDS = {1: "right", -1: "wrong", 0: "neither"}


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    """Forty prompts with six candidates, labelled by a judge that is right in 80% of comparisons and gives no ties."""
    draw = random.Random(0)
    judgements = list[Judgement]()
    texts = ("YES", "YES ", "NO", "NAY", "yes", "yea")
    answers = {f"q{i}": [(candidate(f"q{i}", text), None) for text in texts] for i in range(40)}
    for name, candidates in answers.items():
        for (a, _), (b, _) in combinations(candidates, 2):
            is_first = share_passed(CHECKS, a.text) >= share_passed(CHECKS, b.text)
            is_right = draw.random() < 0.8
            ids = {"a": a.candidate_id, "b": b.candidate_id}
            preferred = "a" if is_first == is_right else "b"
            judgements.append(Judgement(name, "judge", **ids, preference=preferred))
    return with_checks(judged_pool(tmp_path / "pool", answers), judgements)


def with_checks(folder: Path, judgements: list[Judgement]) -> Path:
    """Give a pool's prompts the checks, and its node the judgements and an audit."""
    prompts = load(folder / "prompts.parquet", Example)
    save(folder / "prompts.parquet", [replace(p, checks=CHECKS) for p in prompts], Example)
    save(folder / "judgements.parquet", judgements, Judgement)
    (folder / "audit.jsonl").touch()
    return folder


def counted(folder: Path) -> Counter[str]:
    """Return how many of a node's pairs are right, wrong and neither, by the checks."""
    verdicts = Counter[str]()
    for pair in load(folder / "pairs.parquet", Pair):
        chosen = share_passed(CHECKS, pair.chosen[0]["content"])
        rejected = share_passed(CHECKS, pair.rejected[0]["content"])
        verdicts[WORDS[(chosen > rejected) - (chosen < rejected)]] += 1
    return verdicts


def test_the_checks_say_of_every_strategys_own_pairs_what_they_are(
    judged: Path, tmp_path: Path
) -> None:
    right_shares = dict[Strategy, float]()
    for strategy in Strategy:
        cfg = block(strategy=strategy, max_per_prompt=2)
        metrics = pairs.run(cfg, {"judged": judged}, work(tmp_path / strategy))
        verdicts = counted(tmp_path / strategy)
        accuracy = metrics["expected_accuracy"]
        assert accuracy == metrics["strategies"][strategy]["accuracy"]
        assert accuracy["pairs"] == verdicts.total() == metrics["pairs"]
        for word in WORDS.values():
            assert accuracy[word]["mean"] == pytest.approx(verdicts[word] / verdicts.total())
            assert accuracy[word]["low"] < accuracy[word]["high"]
        right_shares[strategy] = accuracy["right"]["mean"]
    assert right_shares[Strategy.best_worst] > right_shares[Strategy.random]


A, COPY, B, C = (candidate("q", text) for text in ("YES", "YES ", "NO", "yes"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            [((COPY, B), "a"), ((C, A), "a"), ((B, C), "tie")],
            {"right": 1, "wrong": 1, "neither": 1},
        ),
        ([((COPY,), "good"), ((B,), "good"), ((C,), "bad")], {"right": 2, "neither": 1}),
        ([((COPY,), "good")], {}),
    ],
)
def test_words_on_judgements_count_for_their_pairs_and_copies_and_no_check_beside_them(
    words: list[tuple[tuple[Candidate, ...], str]], expected: dict[str, int], tmp_path: Path
) -> None:
    """Both the judge and the checks prefer A to B, A to C, and B to C."""
    judgements = list[Judgement]()
    for a, b in combinations((A, COPY, B, C), 2):
        ids = {"a": a.candidate_id, "b": b.candidate_id}
        judgements.append(Judgement("q", "x", **ids, preference="tie" if b is COPY else "a"))
    pool = judged_pool(tmp_path / "pool", {"q": [(c, None) for c in (A, COPY, B, C)]})
    folder = with_checks(pool, judgements)
    rows = [{"judged": [c.candidate_id for c in of], "known": word} for of, word in words]
    (folder / "known.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = block(strategy=Strategy.all, max_per_prompt=9)
    metrics = pairs.run(cfg, {"judged": folder}, work(tmp_path / "out"))
    accuracy = metrics.get("expected_accuracy", {"pairs": 0})
    assert accuracy["pairs"] == sum(expected.values())
    for word, count in expected.items():
        assert accuracy[word]["mean"] * accuracy["pairs"] == pytest.approx(count)
