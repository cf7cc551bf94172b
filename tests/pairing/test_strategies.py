"""Pair strategies choose as documented, rankings have the likeliest strengths, and the comparison table is
correct."""

import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest

from stages.config.choices import Strategy
from stages.config.errors import UserError
from stages.pairing.contrasts import Contrast, comparisons
from stages.pairing.plackett_luce import rank_contrasts, strengths
from stages.pairing.strategies import ORDERS, select_contrasts
from stages.store.records import Candidate, Judgement, Pair, load, save
from tests.helpers import refused
from tests.rows import candidate, judged_pool
from tests.stages.test_pairs import block, build_pairs

RNG = np.random.default_rng(0)
SCORES = [i / 4 for i in range(5)]
MANY = block(max_per_prompt=99)


def scored(prompt: str, n: int = 6) -> list[tuple[Candidate, float]]:
    """Return candidates of random lengths with random scores, at least two of them different."""
    drawn = [0.0, 1.0, *RNG.choice(SCORES, n - 2).tolist()]
    return [
        (candidate(prompt, f"text {i}", int(RNG.integers(1, 40))), s) for i, s in enumerate(drawn)
    ]


def contrasts_of(answers: list[tuple[Candidate, float]]) -> list[Contrast]:
    judgements = [Judgement(c.prompt_id, "x", c.candidate_id, score=score) for c, score in answers]
    return [c for c in comparisons(judgements, {c.candidate_id: c for c, _ in answers}) if c.margin]


def first(strategy: Strategy, contrasts: list[Contrast], seed: int = 0) -> Contrast:
    return select_contrasts(contrasts, strategy, replace(MANY, seed=seed), "p")[0]


def test_every_strategy_has_an_order() -> None:
    assert ORDERS.keys() == set(Strategy)


@pytest.mark.parametrize("prompt", range(20))
def test_a_strategy_takes_first_what_it_says(prompt: int) -> None:
    contrasts = contrasts_of(scored(str(prompt)))
    best = max(c.score or 0 for c in contrasts)
    below = [c for c in contrasts if c.score == best]
    assert first(Strategy.best_worst, contrasts).margin == max(c.distance for c in contrasts)
    assert first(Strategy.margin, contrasts).margin == min(c.distance for c in contrasts)
    hard = first(Strategy.hard, contrasts)
    assert (hard.score, hard.margin) == (best, min(c.distance for c in below))
    assert first(Strategy.length_matched, contrasts).length_ratio == min(
        c.length_ratio for c in contrasts
    )
    drawn = {id(first(Strategy.best_random, contrasts, seed)) for seed in range(40 * len(below))}
    assert drawn == {id(c) for c in below}, "only the best against any worse one"
    in_order = [c.standing for c in select_contrasts(contrasts, Strategy.ranked, MANY, "p")]
    assert in_order == sorted(in_order, reverse=True) and len(in_order) == len(contrasts)


def test_the_likeliest_mistake_comes_first_and_one_of_unknown_likelihood_last() -> None:
    answers = [
        (replace(answer, logprob=None if i == 3 else -float(i)), score)
        for i, (answer, score) in enumerate(
            zip(
                [answer for answer, _ in scored("likely")],
                [1.0, 0.0, 1.0, 0.0, 0.5, 0.0],
                strict=False,
            )
        )
    ]
    order = [
        c.worse.logprob for c in select_contrasts(contrasts_of(answers), Strategy.likely, MANY, "p")
    ]
    logprobs = [value for value in order if value is not None]
    assert logprobs == sorted(logprobs, reverse=True) and logprobs[0] == -1.0
    assert order[len(logprobs) :] == [None] * (len(order) - len(logprobs)) != []


def test_strengths_explain_the_wins_that_there_were() -> None:
    """At the likeliest strengths, expected wins equal observed ones (Hunter 2004), with one more win and loss each."""
    for n in (2, 5, 12):
        won = RNG.integers(0, 4, (n, n)) * (1 - np.eye(n))
        strength = np.exp(strengths(won))
        chance = strength[:, None] / (strength[:, None] + strength)
        expected = ((won + won.T) * chance).sum(axis=1) + 2 * strength / (strength + 1)
        assert expected == pytest.approx(won.sum(axis=1) + 1, abs=1e-3)


def preferred(order: str, *preferences: str) -> list[tuple[str, str, bool]]:
    """Return the ranking's contrasts for preferences `a>b` or `a=b`: better, worse, and False if both rank equal."""
    by_name = {name: candidate("q", name) for name in order}
    words = {">": "a", "=": "tie"}
    judgements = [
        Judgement(
            "q",
            "judge",
            a=by_name[a].candidate_id,
            b=by_name[b].candidate_id,
            preference=words[sign],
        )
        for a, sign, b in preferences
    ]
    ranking = rank_contrasts(comparisons(judgements, {c.candidate_id: c for c in by_name.values()}))
    return [(c.better.text, c.worse.text, bool(c.margin)) for c in ranking]


def test_a_ranking_orders_uncompared_candidates_and_resolves_contradictions() -> None:
    assert preferred("abc", "a>b", "b>c") == [("a", "b", True), ("a", "c", True), ("b", "c", True)]
    circle = preferred("abcd", "a>b", "b>c", "c>a", "a>d", "b>d", "c>d")
    assert {(a, b) for a, b, is_decided in circle if is_decided} == {
        ("a", "d"),
        ("b", "d"),
        ("c", "d"),
    }
    assert ("b", "c", False) in [*preferred("abc", "a>b", "a>c", "b=c"), ("c", "b", False)]
    assert preferred("ab", "b>a") == [("b", "a", True)]
    repeated = preferred("abc", "a>b", "a>b", "b>a", "b>c")
    assert [(a, b) for a, b, _ in repeated] == [("a", "b"), ("a", "c"), ("b", "c")], (
        "two preferences outweigh one"
    )


def compared(folder: Path, order: str, *preferences: str) -> Path:
    """Write a judged pool of one prompt, with a letter as each candidate's text and preferences `a>b`."""
    ids = {name: candidate("q", name) for name in order}
    judged = judged_pool(folder, {"q": [(c, None) for c in ids.values()]})
    judgements = [
        Judgement("q", "judge", a=ids[a].candidate_id, b=ids[b].candidate_id, preference="a")
        for a, _, b in preferences
    ]
    save(judged / "judgements.parquet", judgements, Judgement)
    return judged


def test_margin_takes_the_narrowest_by_strength_and_nothing_that_contradicts_it(
    tmp_path: Path,
) -> None:
    """In a circle no candidate is better; `d>a` contradicts all other preferences."""
    cfg = replace(MANY, strategy=Strategy.margin, min_margin=0.0)
    upset = compared(tmp_path / "upset", "abcd", "a>b", "a>c", "b>c", "d>a", "b>d", "c>d")
    pairs, _ = build_pairs(tmp_path / "out", cfg, upset)
    assert pairs and not {("d", "a"), ("a", "d")} & {*pairs}, (
        "a contradicted comparison is not used in either direction"
    )
    with pytest.raises(UserError, match="no candidate is preferred to another"):
        build_pairs(
            tmp_path / "circle", cfg, compared(tmp_path / "round", "abc", "a>b", "b>c", "c>a")
        )


@pytest.mark.parametrize(
    ("min_margin", "expected"),
    [
        (0.0, ["ab", "bc", "cd", "ac", "bd", "ad"]),
        (0.38, ["ab", "cd", "ac", "bd", "ad"]),
        (0.7, ["ad"]),
    ],
)
def test_margins_of_preferences_are_differences_of_chances(
    min_margin: float, expected: list[str], tmp_path: Path
) -> None:
    """In a ranking of four, the Plackett-Luce margin is 0.40 of outer neighbours and 0.36 of the inner ones."""
    judged = compared(tmp_path / "pool", "abcd", *(f"{a}>{b}" for a, b in combinations("abcd", 2)))
    cfg = replace(MANY, strategy=Strategy.margin, min_margin=min_margin)
    pairs, metrics = build_pairs(tmp_path / "out", cfg, judged)
    assert sorted(pairs) == sorted((a, b) for a, b in expected)
    candidates = {c.candidate_id: c for c in load(judged / "candidates.parquet", Candidate)}
    ranking = rank_contrasts(
        comparisons(load(judged / "judgements.parquet", Judgement), candidates)
    )
    strength = dict(zip("abcd", strengths(np.triu(np.ones((4, 4)), 1)), strict=True))
    for c in ranking:
        s, t = (np.exp(strength[side.text]) for side in (c.better, c.worse))
        assert c.margin == pytest.approx((s - t) / (s + t), abs=1e-6)
    margins = {(c.better.text, c.worse.text): c.margin or 0 for c in ranking}
    assert [margins[two] for two in pairs] == sorted(margins[two] for two in pairs), (
        "narrowest first"
    )
    assert metrics["strategies"]["margin"]["margin"] == pytest.approx(
        fmean(margins[two] for two in pairs)
    )
    assert {p.margin for p in load(tmp_path / "out" / "pairs.parquet", Pair)} == {None}, (
        "margins of preferences are not stored"
    )


def test_pairs_of_a_ranking_keep_the_rules(tmp_path: Path) -> None:
    candidates = [candidate("q", "a", finished=False), candidate("q", "b"), candidate("q", "c")]
    judged = judged_pool(tmp_path / "pool", {"q": [(c, None) for c in candidates]})
    a, b, c = (each.candidate_id for each in candidates)
    judgements = [
        Judgement("q", "judge", a=a, b=b, preference="a"),
        Judgement("q", "judge", a=c, b=a, preference="b"),
    ]
    save(
        judged / "judgements.parquet",
        [*judgements, Judgement("q", "judge", a=b, b=c, preference="a")],
        Judgement,
    )
    cfg = replace(MANY, strategy=Strategy.ranked)
    pairs, metrics = build_pairs(tmp_path / "out", cfg, judged)
    assert pairs == [("b", "c")], "an unfinished candidate is never chosen"
    assert metrics["pairs"] == 1


ANSWERS = {f"q{i}": scored(f"q{i}") for i in range(30)}


def test_the_table_says_what_each_strategy_gives(tmp_path: Path) -> None:
    judged = judged_pool(tmp_path / "pool", dict(ANSWERS))
    tables = []
    for strategy in Strategy:
        pairs_made, metrics = build_pairs(
            tmp_path / strategy, replace(MANY, strategy=strategy, max_per_prompt=2), judged
        )
        pairs = load(tmp_path / strategy / "pairs.parquet", Pair)
        tokens = {
            c.candidate_id: c.n_tokens for c in load(judged / "candidates.parquet", Candidate)
        }
        gaps = [tokens[p.chosen_id] - tokens[p.rejected_id] for p in pairs]
        assert metrics["strategies"][strategy] == {
            "pairs": len(pairs_made),
            "prompts": len({p.prompt_id for p in pairs}),
            "margin": pytest.approx(fmean(p.margin or 0 for p in pairs)),
            "chosen_longer_by": pytest.approx(fmean(gaps)),
            "longer_chosen": pytest.approx(fmean(gap > 0 for gap in gaps if gap)),
        }
        tables.append(metrics["strategies"])
    assert all(table == tables[0] for table in tables), (
        "the table does not depend on the strategy in use"
    )


def test_margins_are_limited_to_quantiles_of_all_margins(tmp_path: Path) -> None:
    judged = judged_pool(tmp_path / "pool", dict(ANSWERS))
    every = replace(MANY, strategy=Strategy.all)
    build_pairs(tmp_path / "all", every, judged)
    margins = [p.margin for p in load(tmp_path / "all" / "pairs.parquet", Pair)]
    inside = replace(every, margin_quantiles=[0.25, 0.6])
    build_pairs(tmp_path / "some", inside, judged)
    inside_margins = [p.margin for p in load(tmp_path / "some" / "pairs.parquet", Pair)]
    low, high = np.quantile(margins, 0.25), np.quantile(margins, 0.6)
    assert sorted(inside_margins) == sorted(m for m in margins if low <= m <= high) and 0 < len(
        inside_margins
    ) < len(margins)
    message = refused("recipe=tiny", "pairs.margin_quantiles=[0.8, 0.2]")
    assert re.fullmatch(r"pairs.margin_quantiles=\[0.8, 0.2\]: .* \[0.25, 0.75\]\.", message)
