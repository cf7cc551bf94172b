"""Labels and pairs: from judgements to chosen and rejected, with every prompt accounted for."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stages import label, pairs
from stages.config.choices import Strategy, Unfinished
from stages.config.errors import UserError
from stages.labelers.labeler import Pool
from stages.labelers.verifier import VerifierLabeler
from stages.store.records import Check, Judgement, Pair, load
from stages.store.workspace import StageDir
from tests.helpers import settings
from tests.pairing.building import LEVELS, block, build_pairs
from tests.rows import candidate, judged_pool, prompt, save_pool, work


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
    judgements = VerifierLabeler().judge(example, [candidate("q", text) for text in texts])
    assert [j.score for j in judgements] == list(texts.values())
    [missing] = VerifierLabeler().judge(prompt("q"), [candidate("q", "YES")])
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
    [judgement] = VerifierLabeler().judge(example, [completion])
    [reward_judgement] = VerifierLabeler().judge_rollouts(Pool([example], [completion]))
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


def test_a_pair_knows_if_the_file_lists_the_better_answer_first(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": f"{i}",
            "response_a": f"a {i}",
            "response_b": f"b {i}",
            "winner": "ab"[i % 3 > 1],
        }
        for i in range(12)
    ]
    out, _ = dataset(tmp_path, rows)
    folder = work(tmp_path / "pairs")
    pairs.run(block(unfinished=Unfinished.keep), {"judged": out.path}, folder)
    stored = load(folder / "pairs.parquet", Pair)
    assert sum(pair.chosen_first is True for pair in stored) == 8
    for pair in stored:
        assert pair.chosen_first == pair.chosen[0]["content"].startswith("a")
        assert pairs.turn_around(pair).chosen_first != pair.chosen_first


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
        (
            [{"prompt": "q", "completions": ["a", "b"], "scores": [7, 7]}],
            "all 2 answers have the score 7",
        ),
    ],
)
def test_a_preference_file_that_cannot_be_used_is_told(
    rows: list[dict], pattern: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=pattern):
        dataset(tmp_path, rows)


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
