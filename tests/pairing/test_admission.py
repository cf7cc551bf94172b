"""Rules admit contrasts, and every prompt without a pair is counted with the rule that was in its way."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stages.config.choices import Strategy, Unfinished
from stages.config.errors import UserError
from stages.pairing.admission import RULES, Admission, WaysOut
from stages.pairing.contrasts import Contrast
from stages.store.records import Pair, load
from tests.pairing.building import LEVELS, SCORED, block, build_pairs
from tests.rows import candidate, judged_pool


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"strategy": Strategy.best_worst}, {("a", "c")}),
        (
            {"strategy": Strategy.all, "max_per_prompt": 9},
            {("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("d", "c")},
        ),
        ({"strategy": Strategy.margin, "min_margin": 0.7}, {("a", "c")}),
        (
            {"strategy": Strategy.all, "max_per_prompt": 9, "min_score": 1.0},
            {("a", "b"), ("a", "c"), ("a", "d")},
        ),
    ],
)
def test_strategies(options: dict, expected: set, tmp_path: Path) -> None:
    judged = judged_pool(tmp_path / "pool", SCORED)
    built, _ = build_pairs(tmp_path / "out", block(**options), judged)
    assert set(built) == expected
    assert len(built) == len(expected)


def test_prompts_without_a_pair_are_counted_by_reason(tmp_path: Path) -> None:
    answers = {
        "good": [(candidate("good", "a"), 1.0), (candidate("good", "b"), 0.0)],
        "tied": [(candidate("tied", "a"), 1.0), (candidate("tied", "b"), 1.0)],
        "unjudged": [(candidate("unjudged", "a"), None), (candidate("unjudged", "b"), 1.0)],
        "same": [(candidate("same", "a"), 1.0), (candidate("same", " a ", 4), 0.0)],
        "long": [(candidate("long", "a", 90), 1.0), (candidate("long", "b", 3), 0.0)],
        "cut": [(candidate("cut", "a", finished=False), 1.0), (candidate("cut", "b"), 0.0)],
    }
    judged = judged_pool(tmp_path / "pool", answers)
    built, metrics = build_pairs(tmp_path / "out", block(max_length_ratio=4.0), judged)
    assert built == [("a", "b")]
    reasons = {
        "every candidate got the same score",
        "fewer than two judged candidates",
        RULES["equal_texts"]["reason"],
        "every length ratio above pairs.max_length_ratio",
        "only an unfinished candidate was better",
    }
    assert metrics["prompts_without_pair"] == dict.fromkeys(reasons, 1)


def test_an_unfinished_completion_is_never_chosen_and_rejected_without_an_end(
    tmp_path: Path,
) -> None:
    answers = {
        "better": [
            (candidate("better", "a", finished=False), 1.0),
            (candidate("better", "b"), 0.5),
            (candidate("better", "c"), 0.0),
        ],
        "worse": [(candidate("worse", "a"), 1.0), (candidate("worse", "b", finished=False), 0.0)],
    }
    judged = judged_pool(tmp_path / "pool", answers)
    built, metrics = build_pairs(tmp_path / "kept", block(), judged)
    assert built == [("b", "c"), ("a", "b")]
    stored = load(tmp_path / "kept" / "pairs.parquet", Pair)
    assert [p.rejected_finish_reason for p in stored] == ["stop", "length"]
    counts = {"kept as rejected": 1, "dropped as rejected": 0, "refused as chosen": 2}
    assert metrics["unfinished"] == counts

    built, metrics = build_pairs(tmp_path / "dropped", block(unfinished=Unfinished.drop), judged)
    assert built == [("b", "c")]
    assert metrics["prompts_without_pair"] == {"only an unfinished candidate was worse": 1}
    counts = {"kept as rejected": 0, "dropped as rejected": 1, "refused as chosen": 2}
    assert metrics["unfinished"] == counts


@pytest.mark.parametrize(
    ("keys", "loosened"),
    [
        ({"min_score": 1.0}, {"min_score": 0.5}),
        ({"min_margin": 0.5}, {"min_margin": 0.4}),
        ({"max_length_ratio": 2.0}, {"max_length_ratio": None}),
        ({"max_length_ratio": 9.9}, {"max_length_ratio": 10.0}),
        ({"max_length_difference": 26}, {"max_length_difference": 27}),
    ],
)
def test_who_gets_no_pair_is_told_the_rule_that_was_in_the_way_and_no_other(
    keys: dict[str, Any], loosened: dict[str, Any], tmp_path: Path
) -> None:
    answers = {"q": [(candidate("q", "a", 30), 0.5), (candidate("q", "b"), 0.0)]}
    judged = judged_pool(tmp_path / "pool", answers)
    cfg = block(min_score=0.0, min_margin=0.0)
    [key] = keys
    with pytest.raises(UserError) as raised:
        build_pairs(tmp_path / "out", replace(cfg, **keys), judged)
    assert re.findall(r"pairs\.(\w+)=", str(raised.value)) == [key]
    built, _ = build_pairs(tmp_path / "loosened", replace(cfg, **loosened), judged)
    assert built == [("a", "b")]


@pytest.mark.parametrize("most", [1, 3, 5])
def test_a_task_gives_no_pair_more_than_it_may_where_prompts_give_several(
    most: int, tmp_path: Path
) -> None:
    answers = {
        f"q{i}": [(candidate(f"q{i}", text), score) for text, score in LEVELS] for i in range(4)
    }
    judged = judged_pool(tmp_path / "pool", answers)
    cfg = block(strategy=Strategy.all, max_per_prompt=2, max_per_task=most)
    built, metrics = build_pairs(tmp_path / "out", cfg, judged)
    assert len(built) == metrics["pairs"] == most
    full = metrics["prompts_without_pair"]["its task has pairs.max_per_task pairs"]
    assert full == 4 - (most + 1) // 2


def test_chosen_completions_keep_the_rules_where_quality_is_asked_for(tmp_path: Path) -> None:
    loop = "The sea is wide. " * 6
    good = "The tides rise twice a day."
    answers = {
        "q": [(candidate("q", loop), 1.0), (candidate("q", good), 0.5)],
        "r": [(candidate("r", good), 1.0), (candidate("r", loop), 0.0)],
    }
    judged = judged_pool(tmp_path / "pool", answers)
    assert len(build_pairs(tmp_path / "any", block(), judged)[0]) == 2
    built, metrics = build_pairs(tmp_path / "good", block(quality=True), judged)
    assert built == [(good, loop)]
    [reason] = metrics["prompts_without_pair"]
    assert "pairs.quality" in reason


@pytest.mark.parametrize(
    "keys",
    [
        {"min_score": 0.6},
        {"min_margin": 0.6},
        {"max_length_ratio": 2.0},
        {"max_length_difference": 20},
        {"margin_quantiles": [0.5, 1.0]},
    ],
)
def test_comparisons_that_a_setting_leaves_out_are_counted_with_its_key(
    keys: dict[str, Any],
) -> None:
    cfg = replace(block(min_score=0.0, min_margin=0.0), **keys)
    quantiles = (0.6, 1.0) if "margin_quantiles" in keys else None
    admission = Admission(cfg, WaysOut("", ""), quantiles)
    narrow = Contrast(candidate("q", "a", 30), candidate("q", "b"), margin=0.5, score=0.5)
    wide = Contrast(candidate("r", "a"), candidate("r", "b"), margin=1.0, score=1.0)
    assert admission.admit([narrow], [])[0] == []
    assert admission.admit([wide], []) == ([wide], "")
    [key] = keys
    [message] = admission.filter_messages()
    assert message.startswith("1 comparisons")
    assert f"pairs.{key}" in message


@pytest.mark.parametrize(
    "other", ["Zürich    ", "    Zürich", "Z\u200bürich", "Zu\u0308rich", "\ufeffZürich"]
)
def test_answers_that_look_alike_are_one_unless_a_key_says_otherwise(
    other: str, tmp_path: Path
) -> None:
    answers = {
        "alike": [(candidate("alike", "Zürich"), 1.0), (candidate("alike", other), 0.0)],
        "more": [(candidate("more", "a"), 1.0), (candidate("more", "b"), 0.0)],
    }
    judged = judged_pool(tmp_path / "pool", answers)
    built, metrics = build_pairs(tmp_path / "out", block(), judged)
    assert built == [("a", "b")]
    assert metrics["prompts_without_pair"] == {RULES["equal_texts"]["reason"]: 1}
    exact, _ = build_pairs(tmp_path / "exact", block(exact_texts=True), judged)
    assert len(exact) == 2


def test_a_key_that_is_set_already_is_not_told(tmp_path: Path) -> None:
    answers = {"equal": [(candidate("equal", "a"), 1.0), (candidate("equal", "a", 4), 0.0)]}
    judged = judged_pool(tmp_path / "pool", answers)
    with pytest.raises(UserError) as refusal:
        build_pairs(tmp_path / "out", block(exact_texts=True), judged)
    assert "pairs.exact_texts=true" not in str(refusal.value)


def test_the_key_that_makes_pairs_of_answers_that_look_alike_is_told(tmp_path: Path) -> None:
    answers = {"alike": [(candidate("alike", "a"), 1.0), (candidate("alike", "    a"), 0.0)]}
    judged = judged_pool(tmp_path / "pool", answers)
    with pytest.raises(UserError, match=r"pairs\.exact_texts=true"):
        build_pairs(tmp_path / "out", block(), judged)
