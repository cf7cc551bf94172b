"""Labels and pairs: from judgements to chosen and rejected, with every prompt accounted for."""

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from stages import label, pairs
from stages.config.blocks.pairs import Pairs
from stages.config.choices import Strategy, Unfinished
from stages.config.errors import UserError
from stages.labelers.labeler import Pool
from stages.labelers.verifier import Verifier
from stages.store.records import Candidate, Check, Example, Judgement, Pair, load, save
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
    ("strategy", "options", "expected"),
    [
        (Strategy.best_worst, {}, {("a", "c")}),
        (
            Strategy.all,
            {"max_per_prompt": 9},
            {("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("d", "c")},
        ),
        (Strategy.margin, {"min_margin": 0.7}, {("a", "c")}),
        (
            Strategy.all,
            {"max_per_prompt": 9, "min_score": 1.0},
            {("a", "b"), ("a", "c"), ("a", "d")},
        ),
    ],
)
def test_strategies(strategy: Strategy, options: dict, expected: set, tmp_path: Path) -> None:
    built, _ = build_pairs(
        tmp_path / "out",
        block(strategy=strategy, **options),
        judged_pool(tmp_path / "pool", SCORED),
    )
    assert set(built) == expected
    assert len(built) == len(expected)


def test_random_pairs_are_seeded_and_never_tied(tmp_path: Path) -> None:
    judged = judged_pool(tmp_path / "pool", SCORED)
    scores = {"a": 1.0, "b": 0.5, "c": 0.0, "d": 0.5}
    seen = set()
    for seed in range(20):
        cfg = block(strategy=Strategy.random, max_per_prompt=2, seed=seed)
        built, _ = build_pairs(tmp_path / f"{seed}", cfg, judged)
        assert built == build_pairs(tmp_path / f"{seed}-again", cfg, judged)[0]
        assert all(scores[chosen] > scores[rejected] for chosen, rejected in built)
        assert len(built) == 2
        seen |= set(built)
    assert len(seen) == 5, "every admissible pair is drawn some time"


def test_prompts_without_a_pair_are_counted_by_reason(tmp_path: Path) -> None:
    answers = {
        "good": [(candidate("good", "a"), 1.0), (candidate("good", "b"), 0.0)],
        "tied": [(candidate("tied", "a"), 1.0), (candidate("tied", "b"), 1.0)],
        "alone": [(candidate("alone", "a"), 1.0)],
        "unjudged": [(candidate("unjudged", "a"), None), (candidate("unjudged", "b"), 1.0)],
        "same": [(candidate("same", "a"), 1.0), (candidate("same", " a ", 4), 0.0)],
        "long": [(candidate("long", "a", 90), 1.0), (candidate("long", "b", 3), 0.0)],
        "cut": [(candidate("cut", "a", finished=False), 1.0), (candidate("cut", "b"), 0.0)],
    }
    built, metrics = build_pairs(
        tmp_path / "out", block(max_length_ratio=4.0), judged_pool(tmp_path / "pool", answers)
    )
    assert built == [("a", "b")]
    assert metrics["prompts_without_pair"] == {
        "every candidate got the same score": 1,
        "fewer than two judged candidates": 2,
        "no two candidates differ in text": 1,
        "every length ratio above pairs.max_length_ratio": 1,
        "only an unfinished candidate was better": 1,
    }


def half(prompt: str, *scored: tuple[str, float, bool]) -> list[tuple[Candidate, float | None]]:
    """Candidates with a text and a score each, and whether they ended."""
    return [(candidate(prompt, text, finished=ended), score) for text, score, ended in scored]


HALF = {
    "better": half("better", ("a", 1.0, False), ("b", 0.5, True), ("c", 0.0, True)),
    "worse": half("worse", ("a", 1.0, True), ("b", 0.0, False)),
    "both": half("both", ("a", 1.0, True), ("b", 0.5, True), ("c", 0.0, False)),
}


def test_an_unfinished_completion_is_never_chosen_and_rejected_without_an_end(
    tmp_path: Path,
) -> None:
    judged = judged_pool(tmp_path / "pool", HALF)
    built, metrics = build_pairs(tmp_path / "kept", block(), judged)
    assert built == [("b", "c"), ("a", "b"), ("a", "c")]
    stored = load(tmp_path / "kept" / "pairs.parquet", Pair)
    assert [p.rejected_finish_reason for p in stored] == ["stop", "length", "length"]
    assert metrics["unfinished"] == {
        "kept as rejected": 2,
        "dropped as rejected": 0,
        "refused as chosen": 2,
    }
    built, metrics = build_pairs(tmp_path / "dropped", block(unfinished=Unfinished.drop), judged)
    assert built == [("b", "c"), ("a", "b")], (
        "another contrast of the prompt is taken where there is one"
    )
    assert metrics["prompts_without_pair"] == {"only an unfinished candidate was worse": 1}
    assert metrics["unfinished"] == {
        "kept as rejected": 0,
        "dropped as rejected": 3,
        "refused as chosen": 2,
    }


LEVELS = (("a", 1.0), ("b", 0.5), ("c", 0.0))
LOW = {"q": [(candidate("q", "a"), 0.5), (candidate("q", "b"), 0.0)]}
LONG = {"q": [(candidate("q", "a", 30), 1.0), (candidate("q", "b"), 0.0)]}


@pytest.mark.parametrize(
    ("answers", "keys", "way_out", "loosened"),
    [
        (
            LOW,
            {"min_score": 1.0},
            r"Lower pairs\.min_score=1 \(0: any score\)\.",
            {"min_score": 0.5},
        ),
        (
            LOW,
            {"min_score": 0.0, "min_margin": 0.5},
            r"Lower pairs\.min_margin=0\.5 .*",
            {"min_margin": 0.4},
        ),
        (
            LONG,
            {"max_length_ratio": 2.0},
            r"Raise pairs\.max_length_ratio=2 \(null: .*",
            {"max_length_ratio": None},
        ),
    ],
)
def test_who_gets_no_pair_is_told_the_rule_that_was_in_the_way_and_no_other(
    answers: Any, keys: dict[str, Any], way_out: str, loosened: dict[str, Any], tmp_path: Path
) -> None:
    judged, cfg = (
        judged_pool(tmp_path / "pool", answers),
        block(**{"min_score": 0.0, "min_margin": 0.0} | keys),
    )
    with pytest.raises(
        UserError, match=rf"^pairs: no pair .* from 1 prompts \([^)]*\)\. {way_out}$"
    ):
        build_pairs(tmp_path / "out", cfg, judged)
    built, _ = build_pairs(tmp_path / "loosened", replace(cfg, **loosened), judged)
    assert built == [("a", "b")], "as it says, there is one then"


def tied(folder: Path, agrees: list[bool | None], sampler: str = "file") -> Path:
    """A pool of one prompt whose every comparison is a tie: of those that were asked in both orders, whether the judge
    agreed with itself."""
    candidates = [replace(candidate("q", text), sampler=sampler) for text in "abcd"]
    judged = judged_pool(folder, {"q": [(c, None) for c in candidates]})
    ids = [*combinations((c.candidate_id for c in candidates), 2)][: len(agrees)]
    ties = [
        Judgement("q", "judge", a=a, b=b, preference="tie", order_swapped_agrees=agreed)
        for (a, b), agreed in zip(ids, agrees, strict=True)
    ]
    save(judged / "judgements.parquet", ties, Judgement)
    return judged


def test_a_prompt_is_held_out_with_all_its_pairs(tmp_path: Path) -> None:
    answers = {
        f"{i:04}": [(candidate(f"{i:04}", t), s) for t, s in (("a", 1.0), ("b", 0.5), ("c", 0.0))]
        for i in range(200)
    }
    out = work(tmp_path / "out")
    cfg = replace(block(strategy=Strategy.all, max_per_prompt=3), validation_fraction=0.25)
    metrics = pairs.run(cfg, {"judged": judged_pool(tmp_path / "pool", answers)}, out)
    split: dict[str, set[str]] = {}
    for p in load(out / "pairs.parquet", Pair):
        split.setdefault(p.prompt_id, set()).add(p.split)
    assert all(len(s) == 1 for s in split.values())
    assert 25 < metrics["held_out"] / 3 < 75


def test_the_verifier_scores_the_share_of_checks_and_fails_where_there_are_none(
    built: Path, tmp_path: Path
) -> None:
    checks = [Check("upper"), Check("equals", {"text": "YES"})]
    example = prompt("q", checks=checks)
    texts = {"YES": 1.0, "NO": 0.5, "yes": 0.0, "": 0.0}
    judgements = Verifier().judge(example, [candidate("q", t) for t in texts])
    assert [j.score for j in judgements] == list(texts.values())
    bare = Verifier().judge(replace(example, checks=[]), [candidate("q", "YES")])
    assert bare[0].score is None and str(bare[0].error).startswith("the prompt has no checks"), (
        "missing, and not a zero"
    )


TOPIC = [
    Check("on_topic", {"topics": [["tide"]]}),
    Check("own_words", {"text": "Explain how the tides work."}),
]
TWO_LINES = Check("line_count", {"count": 2})


@pytest.mark.parametrize(
    ("checks", "answer", "share", "reward"),
    [
        ([TWO_LINES, *TOPIC], "The moon pulls the tides.", 2 / 3, 0.0),
        ([TWO_LINES, *TOPIC], "The moon pulls water.\nIt rises.", 2 / 3, 2 / 3),
        ([TWO_LINES, *TOPIC], "The moon pulls the tides.\nThey rise.", 1.0, 1.0),
        (
            [TWO_LINES, Check("upper"), *TOPIC],
            "The moon pulls the tides.\nThey rise.",
            3 / 4,
            1 / 4,
        ),
        (TOPIC, "The moon pulls water.", 1 / 2, 1 / 2),
        (
            [TWO_LINES, *TOPIC],
            "The moon pulls tides, the moon pulls tides,\nthe moon pulls tides.",
            1.0,
            1 / 3,
        ),
        (TOPIC, "The moon pulls tides, the moon pulls tides, the moon pulls tides.", 1.0, 0.0),
        ([Check("upper"), Check("equals", {"text": "YES"})], "NO", 1 / 2, 0.0),
        ([Check("upper"), Check("equals", {"text": "YES"})], "YES", 1.0, 1.0),
        ([TWO_LINES], "to be or not to be or not\nto be or not to be or not", 1.0, 1.0),
    ],
)
def test_rollouts_have_no_reward_for_a_form_alone_nor_for_a_topic_without_the_constraints_or_in_a_loop(
    checks: list[Check], answer: str, share: float, reward: float
) -> None:
    asked, completion = prompt("q", checks=checks), candidate("q", answer)
    assert [j.score for j in Verifier().judge(asked, [completion])] == [pytest.approx(share)]
    [judgement] = Verifier().judge_rollouts(Pool([asked], [completion]))
    assert judgement.score == pytest.approx(reward)


def test_too_many_failed_judgements_stop_the_stage(tmp_path: Path) -> None:
    folder = save_pool(tmp_path / "pool", [prompt("q")], [candidate("q", "a")])
    with pytest.raises(UserError, match=r"1 of 1 .*no checks"):
        label.run(settings("recipe=tiny").label, {"pool": folder}, work(tmp_path / "out"))


def dataset(tmp_path: Path, rows: list[dict], *typed: str) -> tuple[StageDir, dict[str, Any]]:
    file = tmp_path / "preferences.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    out = work(tmp_path / "out")
    return out, label.run(settings("label=dataset", f"label.path={file}", *typed).label, {}, out)


USER = {"role": "user", "content": "q"}


def test_a_prompt_in_a_column_does_not_hide_the_turns_before_it(tmp_path: Path) -> None:
    earlier = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}, USER]
    whole = {
        name: [*earlier, {"role": "assistant", "content": name}] for name in ("chosen", "rejected")
    }
    out, metrics = dataset(tmp_path, [{"prompt": "q", **whole}, {"prompt": "hello", **whole}])
    assert metrics["judgements"] == 2
    pairs.run(block(), {"judged": out.path}, work(tmp_path / "pairs"))
    (pair,) = load(tmp_path / "pairs" / "pairs.parquet", Pair)
    assert (pair.prompt, pair.chosen[0]["content"]) == (earlier, "chosen")


def test_scores_of_several_answers_become_judgements_between_0_and_1(tmp_path: Path) -> None:
    rows = [
        {"prompt": "q", "responses": ["a", "b", "c"], "scores": [10, 4, 2]},
        {"prompt": "p", "responses": ["a", "b"], "scores": [6, 6]},
    ]
    out, metrics = dataset(tmp_path, rows)
    assert [j.score for j in load(out / "judgements.parquet", Judgement)] == [
        1.0,
        0.25,
        0.0,
        0.5,
        0.5,
    ]
    assert "read as {prompt: prompt, completions:" in metrics["read"][0]
    pairs_metrics = pairs.run(block(), {"judged": out.path}, work(tmp_path / "pairs"))
    assert pairs_metrics["prompts_without_pair"] == {"every candidate got the same score": 1}
    (pair,) = load(tmp_path / "pairs" / "pairs.parquet", Pair)
    assert (pair.chosen[0]["content"], pair.rejected[0]["content"], pair.margin) == ("a", "c", 1.0)


def test_of_several_scores_of_an_answer_the_mean_counts(tmp_path: Path) -> None:
    out, metrics = dataset(
        tmp_path, [{"prompt": "p", "responses": ["a", "a", "b", "c"], "scores": [2, 5, 3, 6]}]
    )
    assert [j.score for j in load(out / "judgements.parquet", Judgement)] == [0.375, 0.25, 1.0]
    assert "1 answers have several scores" in metrics["read"][-1]


def test_of_several_thumbs_the_majority_counts(tmp_path: Path) -> None:
    thumbs = {"a": [True, False, False], "b": [False, True, True], "c": [True, False], "d": [True]}
    rows = [
        {"prompt": "p", "completion": text, "label": up}
        for text, each in thumbs.items()
        for up in each
    ]
    out, metrics = dataset(tmp_path, rows)
    assert [j.score for j in load(out / "judgements.parquet", Judgement)] == [0.0, 1.0, 0.5, 1.0]
    assert "3 answers have several scores" in metrics["read"][-1]


def test_answers_called_good_and_bad_make_pairs_where_a_prompt_has_both(tmp_path: Path) -> None:
    rows = [{"prompt": p, "completion": c, "label": c == "a"} for p in "qp" for c in "ab"] + [
        {"prompt": "o", "completion": "a", "label": True},
        {"prompt": "q", "completion": "a", "label": False},
    ]
    out, metrics = dataset(tmp_path, rows)
    assert (metrics["judgements"], metrics["pass_rate"]) == (5, 2 / 5)
    assert "1 answers have several scores" in metrics["read"][-1]
    assert pairs.run(block(), {"judged": out.path}, work(tmp_path / "pairs"))["pairs"] == 2


def test_rows_and_not_answers_are_what_too_many_of_are_unusable(tmp_path: Path) -> None:
    """Four answers in each of nine rows are 36 judgements, of which two bad rows are few."""
    rows = [{"prompt": f"{i}", "responses": list("abcd"), "scores": [1, 2, 3, 4]} for i in range(9)]
    with pytest.raises(UserError, match=r"2 of 11 .*label\.max_failed=0\.1"):
        dataset(tmp_path, rows + [{"prompt": "x", "responses": ["a", "b"], "scores": [1]}] * 2)


def test_a_labelling_says_what_length_alone_would_order_rightly(tmp_path: Path) -> None:
    # of equal length: no comparison
    better_first = [("a b", "a"), ("a b c", "a"), ("a", "a b"), ("a b", "b c")]
    rows = [{"prompt": f"{i}", "chosen": c, "rejected": r} for i, (c, r) in enumerate(better_first)]
    _, metrics = dataset(tmp_path, rows)
    assert metrics["longer_preferred"] == pytest.approx(2 / 3)
    assert "66.7% of 3 comparisons" in metrics["summary"]


def test_pairs_with_a_thought_on_one_side_are_counted(tmp_path: Path) -> None:
    thinking, unended = "<think>\nSo.\n</think>\n\n", "[THINK]So"
    sides = [
        (f"{thinking}a", "b"),
        ("a", f"{thinking}b"),
        ("a", unended),
        (f"{thinking}a", "<thought>No.</thought>b"),
        (f"{thinking}a", unended),
        ("a", "b"),
    ]
    rows = [{"prompt": f"{i}", "chosen": a, "rejected": b} for i, (a, b) in enumerate(sides)]
    out, _ = dataset(tmp_path, rows)
    folder = work(tmp_path / "pairs")
    made = pairs.run(block(unfinished=Unfinished.keep), {"judged": out.path}, folder)
    assert (made["pairs"], made["thought_on_one_side"]) == (len(rows), 3)
    assert any("3 of 6 pairs" in warning for warning in folder.warnings)


def test_a_tie_between_two_answers_makes_no_pair(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "output_1": "a", "output_2": "b", "preference": p} for p in ("tie", 1)]
    rows += [{"prompt": "p", "output_1": "a", "output_2": "b", "preference": p} for p in ("tie", 2)]
    out, metrics = dataset(tmp_path, rows)
    assert metrics["ties"] == 2
    pairs.run(block(), {"judged": out.path}, work(tmp_path / "pairs"))
    built = load(tmp_path / "pairs" / "pairs.parquet", Pair)
    assert [(f.prompt[0]["content"], f.chosen[0]["content"]) for f in built] == [
        ("q", "a"),
        ("p", "b"),
    ]


def test_preferences_that_make_no_pair_are_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "chosen": "a", "rejected": r} for r in "bbcd"] + [
        {"prompt": "p", "chosen": "a", "rejected": "b", "annotator": 5}
    ]
    out, metrics = dataset(tmp_path, rows)
    assert metrics["judgements"] == 5
    assert out.warnings == [f"{tmp_path / 'preferences.jsonl'}: columns annotator are not used"]
    folder = work(tmp_path / "pairs")
    pairs_metrics = pairs.run(block(), {"judged": out.path}, folder)
    assert pairs_metrics["pairs"] == 2
    assert pairs_metrics["left_out"] == {
        "beyond the 1 that a prompt gives": 2,
        "that repeat another one": 1,
    }


@pytest.mark.parametrize("strategy", [s for s in Strategy if s is not Strategy.ranked])
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"min_score": 1.0},
        {"min_margin": 0.5},
        {"max_per_task": 2},
        {"margin_quantiles": [0.2, 0.8]},
    ],
)
def test_comparisons_are_pairs_and_what_was_left_out(
    strategy: Strategy, keys: dict[str, Any], tmp_path: Path
) -> None:
    answers = {
        q: [(candidate(q, t), s) for t, s in (("a", 1.0), ("b", 0.5), ("c", 0.0), ("d", 0.5))]
        for q in "pqr"
    }
    answers["same"] = [
        (candidate("same", t, n), s) for t, n, s in (("a", 3, 1.0), ("a", 4, 0.5), ("b", 3, 0.0))
    ]
    _, metrics = build_pairs(
        tmp_path / "out", block(strategy=strategy, **keys), judged_pool(tmp_path / "pool", answers)
    )
    assert (
        metrics["comparisons"] == 3 * 6 + 3 == metrics["pairs"] + sum(metrics["left_out"].values())
    )


@pytest.mark.parametrize(
    ("rows", "pattern"),
    [
        (
            [{"prompt": "q", "chosen": "a", "rejected": "a"}] * 3,
            "rejected: is the same as chosen. 3 of 3 rows",
        ),
        ([], "holds no rows"),
        ([{"prompt": "q", "completions": ["a", "b"], "scores": [7, 7]}], "all 2 ratings are 7"),
        ([{"prompt": "q", "completions": ["a", "b"], "scores": [10**400, 7]}], "must be numbers"),
        ([{"prompt": "q", "completions": ["a", "b"], "scores": [1.5e308, 7]}], "numbers below"),
    ],
)
def test_a_preference_file_that_cannot_be_used_is_told(
    rows: list[dict], pattern: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=pattern):
        dataset(tmp_path, rows)


def test_a_kind_of_constraint_gives_as_many_pairs_as_it_may(tmp_path: Path) -> None:
    names = [f"q{i}" for i in range(6)]
    judged = judged_pool(
        tmp_path / "pool",
        {q: [(candidate(q, "yes"), 1.0), (candidate(q, "no"), 0.0)] for q in names},
    )
    prompts = load(judged / "prompts.parquet", Example)
    tasks = [
        "no_commas",
        "bold_parts + no_commas",
        "no_commas",
        "bold_parts",
        "bold_parts",
        "bold_parts",
    ]
    save(
        judged / "prompts.parquet",
        [replace(p, task=t) for p, t in zip(prompts, tasks, strict=True)],
        Example,
    )
    built, metrics = build_pairs(tmp_path / "out", block(max_per_task=2), judged)
    assert len(built) == 3, (
        "two of no_commas, of which one is of bold_parts too, and one more of bold_parts"
    )
    assert metrics["prompts_without_pair"] == {"its task has pairs.max_per_task pairs": 3}


@pytest.mark.parametrize("most", [1, 2, 3, 5])
def test_a_task_gives_no_pair_more_than_it_may_where_prompts_give_several(
    most: int, tmp_path: Path
) -> None:
    judged = judged_pool(
        tmp_path / "pool",
        {f"q{i}": [(candidate(f"q{i}", t), s) for t, s in LEVELS] for i in range(4)},
    )
    cfg = block(strategy=Strategy.all, max_per_prompt=2, max_per_task=most)
    built, metrics = build_pairs(tmp_path / "out", cfg, judged)
    assert len(built) == metrics["pairs"] == most
    full = metrics["prompts_without_pair"]["its task has pairs.max_per_task pairs"]
    assert full == 4 - -(-most // 2)


def test_the_rows_of_a_file_are_of_no_one_task_that_gives_so_many_pairs(tmp_path: Path) -> None:
    out, _ = dataset(
        tmp_path, [{"prompt": f"{i}", "chosen": "a", "rejected": "b"} for i in range(5)]
    )
    assert (
        pairs.run(block(max_per_task=2), {"judged": out.path}, work(tmp_path / "pairs"))["pairs"]
        == 5
    )


def test_chosen_completions_keep_the_rules_where_quality_is_asked_for(tmp_path: Path) -> None:
    loop = "The sea is wide. " * 6
    scored_candidates = {
        "q": [
            (candidate("q", loop), 1.0),
            (candidate("q", "The sea is wide, and the tides rise."), 0.5),
        ]
    }
    scored_candidates["r"] = [
        (candidate("r", "The tides rise twice a day."), 1.0),
        (candidate("r", loop), 0.0),
    ]
    judged = judged_pool(tmp_path / "pool", scored_candidates)
    assert len(build_pairs(tmp_path / "any", block(), judged)[0]) == 2
    built, metrics = build_pairs(tmp_path / "good", block(quality=True), judged)
    assert [chosen for chosen, _ in built] == ["The tides rise twice a day."]
    assert metrics["prompts_without_pair"] == {
        "no better candidate keeps the rules of pairs.quality": 1
    }


def test_answers_that_are_rejected_together_are_not_said_to_be_equal(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "chosen": "a", "rejected": ["b", "c"]}]
    out, _ = dataset(tmp_path, rows)
    judged = load(out / "judgements.parquet", Judgement)
    assert [j.preference for j in judged] == ["a", "a"]


@pytest.mark.parametrize("rule", ["keep", "drop", "swap"])
@pytest.mark.parametrize(("count", "is_told"), [(1, False), (2, True)])
@pytest.mark.parametrize(
    "stated",
    [
        lambda sign: {"score_chosen": str(5 + sign), "score_rejected": "5"},
        lambda sign: {"margin": sign},
    ],
)
def test_rows_whose_scores_contradict_the_choice_are_told_and_used_as_it_is_asked(
    rule: str, count: int, is_told: bool, stated: Any, tmp_path: Path
) -> None:
    rows = [
        {"prompt": f"q{i}", "chosen": "a", "rejected": "b", **stated(-2 if i < count else 2)}
        for i in range(70)
    ]
    out, _ = dataset(tmp_path, rows, f"label.contradicting={rule}")
    preferred = [j.preference for j in load(out / "judgements.parquet", Judgement)]
    assert (len(preferred), preferred.count("b")) == (
        70 - count * (rule == "drop"),
        count * (rule == "swap"),
    )
    assert any(f"in {count} of 70 rows" in line for line in out.warnings) == is_told
