"""Labels and pairs: from judgements to chosen and rejected, with every prompt accounted for."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stages import label, pairs
from stages.config.blocks.pairs import Pairs
from stages.config.choices import Strategy, Unfinished
from stages.config.errors import UserError
from stages.labelers.labeler import Pool
from stages.labelers.verifier import Verifier
from stages.pairing.admission import RULES
from stages.store.records import Check, Judgement, Pair, load
from stages.store.workspace import StageDir
from tests.helpers import settings
from tests.rows import candidate, judged_pool, prompt, save_pool, work


def block(**changes: Any) -> Pairs:
    return replace(settings("recipe=tiny").pairs, validation_fraction=0.0, **changes)


def build_pairs(
    folder: Path, cfg: Pairs, judged: Path
) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    out = work(folder)
    metrics = pairs.run(cfg, {"judged": judged}, out)
    stored = load(out / "pairs.parquet", Pair)
    return [(p.chosen[0]["content"], p.rejected[0]["content"]) for p in stored], metrics


SCORED = {
    "q": [(candidate("q", t), s) for t, s in (("a", 1.0), ("b", 0.5), ("c", 0.0), ("d", 0.5))]
}


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


def test_the_key_that_makes_pairs_of_answers_that_look_alike_is_told(tmp_path: Path) -> None:
    answers = {"alike": [(candidate("alike", "a"), 1.0), (candidate("alike", "    a"), 0.0)]}
    judged = judged_pool(tmp_path / "pool", answers)
    with pytest.raises(UserError, match=r"pairs\.exact_texts=true"):
        build_pairs(tmp_path / "out", block(), judged)


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


LEVELS = (("a", 1.0), ("b", 0.5), ("c", 0.0))


@pytest.mark.parametrize(
    ("keys", "loosened"),
    [
        ({"min_score": 1.0}, {"min_score": 0.5}),
        ({"min_margin": 0.5}, {"min_margin": 0.4}),
        ({"max_length_ratio": 2.0}, {"max_length_ratio": None}),
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


def test_a_prompt_is_held_out_with_all_its_pairs(tmp_path: Path) -> None:
    answers = {
        f"{i:03}": [(candidate(f"{i:03}", text), score) for text, score in LEVELS]
        for i in range(200)
    }
    judged = judged_pool(tmp_path / "pool", answers)
    cfg = replace(block(strategy=Strategy.all, max_per_prompt=3), validation_fraction=0.25)
    _, metrics = build_pairs(tmp_path / "out", cfg, judged)
    stored = load(tmp_path / "out" / "pairs.parquet", Pair)
    assert len({(p.prompt_id, p.split) for p in stored}) == 200
    assert 25 < metrics["held_out"] / 3 < 75


def test_the_verifier_scores_the_share_of_checks_and_fails_where_there_are_none() -> None:
    example = prompt("q", checks=[Check("upper"), Check("equals", {"text": "YES"})])
    texts = {"YES": 1.0, "NO": 0.5, "yes": 0.0, "": 0.0}
    judgements = Verifier().judge(example, [candidate("q", text) for text in texts])
    assert [j.score for j in judgements] == list(texts.values())
    [missing] = Verifier().judge(prompt("q"), [candidate("q", "YES")])
    assert missing.score is None
    assert missing.error


@pytest.mark.parametrize(
    ("answer", "share", "reward"),
    [
        ("The moon pulls the tides.", 2 / 3, 0.0),  # a topic without the constraint
        ("The moon pulls water.\nIt rises.", 2 / 3, 2 / 3),
        ("The moon pulls the tides.\nThey rise.", 1.0, 1.0),
        ("The moon pulls tides, the moon pulls tides,\nthe moon pulls tides.", 1.0, 1 / 3),
    ],
)
def test_rollouts_have_no_reward_for_a_form_alone_nor_for_a_topic_without_the_constraints_or_in_a_loop(
    answer: str, share: float, reward: float
) -> None:
    checks = [
        Check("line_count", {"count": 2}),
        Check("on_topic", {"topics": [["tide"]]}),
        Check("own_words", {"text": "Explain how the tides work."}),
    ]
    example = prompt("q", checks=checks)
    completion = candidate("q", answer)
    [judgement] = Verifier().judge(example, [completion])
    [reward_judgement] = Verifier().judge_rollouts(Pool([example], [completion]))
    assert judgement.score == pytest.approx(share)
    assert reward_judgement.score == pytest.approx(reward)


def test_too_many_failed_judgements_stop_the_stage(tmp_path: Path) -> None:
    folder = save_pool(tmp_path / "pool", [prompt("q")], [candidate("q", "a")])
    with pytest.raises(UserError, match=r"1 of 1 .*no checks"):
        label.run(settings("recipe=tiny").label, {"pool": folder}, work(tmp_path / "out"))


def dataset(tmp_path: Path, rows: list[dict], *typed: str) -> tuple[StageDir, dict[str, Any]]:
    file = tmp_path / "preferences.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    out = work(tmp_path / "out")
    return out, label.run(settings("label=dataset", f"label.path={file}", *typed).label, {}, out)


def test_scores_of_several_answers_become_judgements_between_0_and_1(tmp_path: Path) -> None:
    rows = [
        {"prompt": "q", "responses": ["a", "b", "c"], "scores": [10, 4, 2]},
        {"prompt": "p", "responses": ["a", "a", "b"], "scores": [4, 8, 6]},
    ]
    out, _ = dataset(tmp_path, rows)
    scores = [j.score for j in load(out / "judgements.parquet", Judgement)]
    assert scores == [1.0, 0.25, 0.0, 0.5, 0.5], "of several scores of an answer the mean"
    metrics = pairs.run(block(), {"judged": out.path}, work(tmp_path / "pairs"))
    assert metrics["prompts_without_pair"] == {"every candidate got the same score": 1}
    [pair] = load(tmp_path / "pairs" / "pairs.parquet", Pair)
    assert (pair.chosen[0]["content"], pair.rejected[0]["content"], pair.margin) == ("a", "c", 1.0)


def test_a_labelling_says_what_length_alone_would_order_rightly(tmp_path: Path) -> None:
    # of equal length: no comparison
    better_first = [("a b", "a"), ("a b c", "a"), ("a", "a b"), ("a b", "b c")]
    rows = [{"prompt": f"{i}", "chosen": c, "rejected": r} for i, (c, r) in enumerate(better_first)]
    _, metrics = dataset(tmp_path, rows)
    assert metrics["longer_preferred"] == pytest.approx(2 / 3)


def test_pairs_with_a_thought_on_one_side_are_counted(tmp_path: Path) -> None:
    thought = "<think>\nSo.\n</think>\n\n"
    sides = [
        (f"{thought}a", "b"),
        ("a", "[THINK]So"),
        (f"{thought}a", "<thought>No.</thought>b"),
        ("a", "b"),
    ]
    rows = [{"prompt": f"{i}", "chosen": a, "rejected": b} for i, (a, b) in enumerate(sides)]
    out, _ = dataset(tmp_path, rows)
    folder = work(tmp_path / "pairs")
    metrics = pairs.run(block(unfinished=Unfinished.keep), {"judged": out.path}, folder)
    assert (metrics["pairs"], metrics["thought_on_one_side"]) == (4, 2)
    assert folder.warnings


def test_preferences_that_make_no_pair_are_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "chosen": "a", "rejected": rejected} for rejected in "bbcd"]
    out, metrics = dataset(tmp_path, [*rows, {"prompt": "p", "chosen": "a", "rejected": "b"}])
    assert metrics["judgements"] == 5
    folder = work(tmp_path / "pairs")
    metrics = pairs.run(block(), {"judged": out.path}, folder)
    assert metrics["pairs"] == 2
    assert sum(metrics["left_out"].values()) == 3, "a copy, and two beyond one a prompt"


@pytest.mark.parametrize(
    ("rows", "pattern"),
    [
        ([{"prompt": "q", "chosen": "a", "rejected": "a"}] * 3, "3 of 3 rows"),
        ([], "holds no rows"),
        ([{"prompt": "q", "completions": ["a", "b"], "scores": [7, 7]}], "all 2 ratings are 7"),
    ],
)
def test_a_preference_file_that_cannot_be_used_is_told(
    rows: list[dict], pattern: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=pattern):
        dataset(tmp_path, rows)


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
    ("rule", "kept", "turned"), [("keep", 70, 0), ("drop", 68, 0), ("swap", 70, 2)]
)
def test_rows_whose_scores_contradict_the_choice_are_told_and_used_as_it_is_asked(
    rule: str, kept: int, turned: int, tmp_path: Path
) -> None:
    rows = list[dict]()
    for i in range(70):
        score = "3" if i < 2 else "7"
        scores = {"score_chosen": score, "score_rejected": "5"}
        rows.append({"prompt": f"q{i}", "chosen": "a", "rejected": "b", **scores})
    out, _ = dataset(tmp_path, rows, f"label.contradicting={rule}")
    preferred = [j.preference for j in load(out / "judgements.parquet", Judgement)]
    assert (len(preferred), preferred.count("b")) == (kept, turned)
    assert any("in 2 of 70 rows" in line for line in out.warnings)
