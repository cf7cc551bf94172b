"""Pair strategies choose as documented, rankings have the likeliest strengths, and the comparison table is
correct."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest

from stages.config.choices import Strategy
from stages.config.errors import UserError
from stages.pairing.contrasts import Contrast, comparisons
from stages.pairing.plackett_luce import rank_contrasts, strengths
from stages.pairing.strategies import select_contrasts
from stages.store.records import Candidate, Judgement, Pair, load, save
from tests.pairing.building import block, build_pairs
from tests.rows import candidate, judged_pool

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


def first(strategy: Strategy, contrasts: list[Contrast]) -> Contrast:
    return select_contrasts(contrasts, strategy, MANY, "p")[0]


@pytest.mark.parametrize("prompt", range(5))
def test_a_strategy_takes_first_what_it_says(prompt: int) -> None:
    contrasts = contrasts_of(scored(str(prompt)))
    best = max(c.score or 0 for c in contrasts)
    of_best = [c for c in contrasts if c.score == best]
    assert first(Strategy.best_worst, contrasts).margin == max(c.distance for c in contrasts)
    assert first(Strategy.margin, contrasts).margin == min(c.distance for c in contrasts)
    hard = first(Strategy.hard, contrasts)
    assert (hard.score, hard.margin) == (best, min(c.distance for c in of_best))
    matched = first(Strategy.length_matched, contrasts)
    assert matched.length_ratio == min(c.length_ratio for c in contrasts)
    assert first(Strategy.best_random, contrasts).score == best
    ranked = [c.standing for c in select_contrasts(contrasts, Strategy.ranked, MANY, "p")]
    assert ranked == sorted(ranked, reverse=True)
    assert len(ranked) == len(contrasts)


def test_the_likeliest_mistake_comes_first_and_one_of_unknown_likelihood_last() -> None:
    logprobs = {"right": 0.0, "unknown": None, "likely": -1.0, "unlikely": -5.0}
    answers = list[tuple[Candidate, float]]()
    for text, logprob in logprobs.items():
        answers.append((candidate("q", text, logprob=logprob), float(text == "right")))
    order = select_contrasts(contrasts_of(answers), Strategy.likely, MANY, "p")
    assert [c.worse.text for c in order] == ["likely", "unlikely", "unknown"]


def test_strengths_explain_the_wins_that_there_were() -> None:
    """At the likeliest strengths, expected wins equal observed ones (Hunter 2004), with one more win and loss each."""
    for n in (2, 5, 12):
        won = RNG.integers(0, 4, (n, n)) * (1 - np.eye(n))
        strength = np.exp(strengths(won))
        chance = strength[:, None] / (strength[:, None] + strength)
        expected = ((won + won.T) * chance).sum(axis=1) + 2 * strength / (strength + 1)
        assert expected == pytest.approx(won.sum(axis=1) + 1, abs=1e-3)


def judgements_of(order: str, *preferences: str) -> list[Judgement]:
    """Return a judgement for each preference `a>b` or `a=b` between candidates whose texts are letters."""
    words = {">": "a", "=": "tie"}
    judgements = list[Judgement]()
    ids = {name: candidate("q", name).candidate_id for name in order}
    for a, sign, b in preferences:
        judgements.append(Judgement("q", "judge", a=ids[a], b=ids[b], preference=words[sign]))
    return judgements


def preferred(order: str, *preferences: str) -> list[tuple[str, str, bool]]:
    """Return the ranking's contrasts for preferences: better, worse, and False if both rank equal."""
    candidates = {candidate("q", name).candidate_id: candidate("q", name) for name in order}
    ranking = rank_contrasts(comparisons(judgements_of(order, *preferences), candidates))
    return [(c.better.text, c.worse.text, bool(c.margin)) for c in ranking]


def test_a_ranking_orders_uncompared_candidates_and_resolves_contradictions() -> None:
    assert preferred("abc", "a>b", "b>c") == [("a", "b", True), ("a", "c", True), ("b", "c", True)]
    circle = preferred("abcd", "a>b", "b>c", "c>a", "a>d", "b>d", "c>d")
    decided = {(better, worse) for better, worse, is_decided in circle if is_decided}
    assert decided == {("a", "d"), ("b", "d"), ("c", "d")}
    assert preferred("abc", "a>b", "a>b", "b>a", "b>c")[0] == ("a", "b", True)


def compared(folder: Path, order: str, *preferences: str) -> Path:
    """Write a judged pool of one prompt, with a letter as each candidate's text and preferences `a>b`."""
    judged = judged_pool(folder, {"q": [(candidate("q", name), None) for name in order]})
    save(judged / "judgements.parquet", judgements_of(order, *preferences), Judgement)
    return judged


def test_margin_takes_the_narrowest_by_strength_and_nothing_that_contradicts_it(
    tmp_path: Path,
) -> None:
    """In a circle no candidate is better; `d>a` contradicts all other preferences."""
    cfg = replace(MANY, strategy=Strategy.margin, min_margin=0.0)
    upset = compared(tmp_path / "upset", "abcd", "a>b", "a>c", "b>c", "d>a", "b>d", "c>d")
    pairs, _ = build_pairs(tmp_path / "out", cfg, upset)
    assert pairs
    assert not {("d", "a"), ("a", "d")} & {*pairs}
    circle = compared(tmp_path / "circle", "abc", "a>b", "b>c", "c>a")
    with pytest.raises(UserError, match="no candidate is preferred to another"):
        build_pairs(tmp_path / "none", cfg, circle)


@pytest.mark.parametrize(
    ("min_margin", "expected"),
    [(0.0, ["ab", "bc", "cd", "ac", "bd", "ad"]), (0.38, ["ab", "cd", "ac", "bd", "ad"])],
)
def test_margins_of_preferences_are_differences_of_chances(
    min_margin: float, expected: list[str], tmp_path: Path
) -> None:
    """In a ranking of four, the Plackett-Luce margin is 0.40 of outer neighbours and 0.36 of the inner ones."""
    judged = compared(tmp_path / "pool", "abcd", *(f"{a}>{b}" for a, b in combinations("abcd", 2)))
    cfg = replace(MANY, strategy=Strategy.margin, min_margin=min_margin)
    pairs, metrics = build_pairs(tmp_path / "out", cfg, judged)
    assert sorted(pairs) == sorted((a, b) for a, b in expected)
    strength = dict(zip("abcd", np.exp(strengths(np.triu(np.ones((4, 4)), 1))), strict=True))
    margins = list[float]()
    for a, b in pairs:
        margins.append((strength[a] - strength[b]) / (strength[a] + strength[b]))
    assert margins == sorted(margins), "narrowest first"
    assert metrics["strategies"]["margin"]["margin"] == pytest.approx(fmean(margins))


ANSWERS = {f"q{i}": scored(f"q{i}") for i in range(30)}


def test_the_table_says_what_each_strategy_gives(tmp_path: Path) -> None:
    judged = judged_pool(tmp_path / "pool", dict(ANSWERS))
    tokens = {c.candidate_id: c.n_tokens for c in load(judged / "candidates.parquet", Candidate)}
    tables = list[dict[str, Any]]()
    for strategy in Strategy:
        cfg = replace(MANY, strategy=strategy, max_per_prompt=2)
        out = tmp_path / strategy
        _, metrics = build_pairs(out, cfg, judged)
        pairs = load(out / "pairs.parquet", Pair)
        gaps = [tokens[p.chosen_id] - tokens[p.rejected_id] for p in pairs]
        assert metrics["strategies"][strategy] == {
            "pairs": len(pairs),
            "prompts": len({p.prompt_id for p in pairs}),
            "margin": pytest.approx(fmean(p.margin or 0 for p in pairs)),
            "chosen_longer_by": pytest.approx(fmean(gaps)),
            "longer_chosen": pytest.approx(fmean(gap > 0 for gap in gaps if gap)),
        }
        tables.append(metrics["strategies"])
    assert all(table == tables[0] for table in tables)


def test_margins_are_limited_to_quantiles_of_all_margins(tmp_path: Path) -> None:
    judged = judged_pool(tmp_path / "pool", dict(ANSWERS))
    cfg = replace(MANY, strategy=Strategy.all)
    build_pairs(tmp_path / "all", cfg, judged)
    margins = [p.margin or 0 for p in load(tmp_path / "all" / "pairs.parquet", Pair)]
    low, high = np.quantile(margins, [0.25, 0.6])
    build_pairs(tmp_path / "some", replace(cfg, margin_quantiles=[0.25, 0.6]), judged)
    some = [p.margin for p in load(tmp_path / "some" / "pairs.parquet", Pair)]
    assert sorted(some) == sorted(margin for margin in margins if low <= margin <= high)
    assert 0 < len(some) < len(margins)
