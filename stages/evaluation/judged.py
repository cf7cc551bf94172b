"""Win rates of the policy's answers against another model's, from any labeler."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.config.blocks.evaluation import CONSTANT, Compared, Eval
from stages.evaluation.intervals import Interval
from stages.evaluation.measures import Measure
from stages.evaluation.reliability import KNOWN_WORDS, Key, own_vote, read_known_words
from stages.evaluation.results import JudgedComparison, Opposed, Waiting
from stages.evaluation.win_rates import Comparisons, comparison_results, detectable, win_rate
from stages.store.records import Candidate, Judgement, content_id, load

POINTS = {"a": 1.0, "tie": 0.5, "b": 0.0}  # what candidate `a` scores for each preference


class Counts(NamedTuple):
    """What is counted of a comparison, as in `JudgedComparison`."""

    judged: int
    missing: dict[str, int]
    ties: int
    flips: int | None
    tokens: dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """Two answers to every prompt with their judgements. `sides`: the policy's answer first. `preferences`: by prompt;
    `scores`: by candidate. `missing`: why there is no verdict, by either. `words_of_people`: verdicts by ids."""

    sides: list[tuple[Candidate, Candidate]]
    preferences: dict[str, Judgement]
    scores: dict[str | None, float]
    missing: Mapping[str | None, str]
    words_of_people: Mapping[Key, str]

    @classmethod
    def read(cls, versus: Path, label: Path | None) -> "Comparison":
        """Read a `versus` node and its `label` node, which is None if all answers are alike and nobody was asked."""
        candidates = iter(load(versus / "candidates.parquet", Candidate))
        judgements = load(label / "judgements.parquet", Judgement) if label else []
        words = (label or versus) / KNOWN_WORDS
        return cls(
            [*zip(candidates, candidates, strict=True)],
            {j.prompt_id: j for j in judgements if j.preference},
            {j.candidate_id: j.score for j in judgements if j.score is not None},
            {j.candidate_id or j.prompt_id: j.error for j in judgements if j.error},
            read_known_words(words) if words.exists() else {},
        )

    def won(self, policy: Candidate, other: Candidate) -> float:
        """Return 1 if the policy's answer won, 0.5 for a tie or equal texts, 0 if it lost, NaN if not judged."""
        if policy.answer.strip() == other.answer.strip():
            return POINTS["tie"]
        if judgement := self.preferences.get(policy.prompt_id):
            points = POINTS[str(judgement.preference)]
            return points if judgement.a == policy.candidate_id else 1 - points
        gap = self.scores.get(policy.candidate_id, math.nan) - self.scores.get(
            other.candidate_id, math.nan
        )
        return (1 + float(np.sign(gap))) / 2  # NaN stays NaN

    def shown_first(self, policy: Candidate) -> float:
        """Return 1 if the policy's answer was shown first, 0 if the other was, 0.5 for both orders or neither."""
        judgement = self.preferences.get(policy.prompt_id)
        # each of several people, and of the members, has an order of its own
        several = ("human", "ensemble")
        if (
            judgement is None
            or judgement.order_swapped_agrees is not None
            or judgement.labeler in several
        ):
            return 0.5
        return float(judgement.a == policy.candidate_id)

    @cached_property
    def lengths(self) -> NDArray[np.float64]:
        """Tokens of both answers without their thoughts: (prompts, 2)."""
        return np.array([[side.length for side in both] for both in self.sides], float).reshape(
            -1, 2
        )

    @cached_property
    def outcomes(self) -> Comparisons:
        keys = [(policy.candidate_id, other.candidate_id) for policy, other in self.sides]
        judge = replace(
            self, preferences={name: own_vote(j) for name, j in self.preferences.items()}
        )
        return Comparisons(
            won=np.array([self.won(*both) for both in self.sides], float),
            longer_by=self.lengths[:, 0] - self.lengths[:, 1],
            people=np.array(
                [POINTS.get(self.words_of_people.get(key, ""), math.nan) for key in keys], float
            ),
            shown_first=np.array([self.shown_first(policy) for policy, _ in self.sides], float),
            alike=np.array(
                [policy.answer.strip() == other.answer.strip() for policy, other in self.sides],
                bool,
            ),
            judge=np.array([judge.won(*both) for both in self.sides], float),
        )

    def reasons(self) -> Iterator[str]:
        """Yield for each comparison without a verdict why it has none."""
        for (policy, other), won in zip(self.sides, self.outcomes.won, strict=True):
            if math.isnan(won):
                reasons = map(
                    self.missing.get, (policy.prompt_id, policy.candidate_id, other.candidate_id)
                )
                yield next(filter(None, reasons), "no reason given")

    @property
    def counts(self) -> Counts:
        """Counts and mean lengths that are reported with the win rates."""
        won = self.outcomes.won
        swapped = [
            j.order_swapped_agrees
            for j in self.preferences.values()
            if j.order_swapped_agrees is not None
        ]
        return Counts(
            judged=int(np.isfinite(won).sum()),
            missing=dict(Counter(self.reasons())),
            ties=int((won == POINTS["tie"]).sum()),
            flips=swapped.count(False) if swapped else None,
            tokens=dict(zip(("policy", "other"), map(float, self.lengths.mean(0)), strict=True)),
        )


def judged_results(
    cfg: Eval, inputs: Mapping[str, Path]
) -> tuple[dict[str, JudgedComparison | Waiting], list[Measure]]:
    """Return the figures of each comparison by the key of the policy's opponent, and the policy's wins. Figures are
    the win rate, the length-controlled rate, the rate corrected by people and the rates of null judges. A comparison
    that people have not completed has the number of questions that wait for them instead."""
    results = dict[str, JudgedComparison | Waiting]()
    measured = list[Measure]()
    constant = dict[str, Interval]()
    if f"judged_{CONSTANT}" in inputs:
        won = Comparison.read(
            inputs[f"versus_{CONSTANT}"], inputs[f"judged_{CONSTANT}"]
        ).outcomes.won
        if len(won):
            constant["one constant answer"] = win_rate(won[~np.isnan(won)], cfg.confidence)
    for key, title in cfg.compared.items():
        comparison = Comparison.read(inputs[f"versus_{key}"], inputs.get(f"judged_{key}"))
        outcomes, prompts = comparison.outcomes, len(comparison.sides)
        alike = int(outcomes.alike.sum())
        assert isinstance(cfg.judged, Compared)  # else nothing is compared
        labeler = cfg.judged.labeler
        opposed = Opposed(title, labeler, prompts, alike)
        if f"judged_{key}" in inputs:
            measured += measure_wins(comparison, key, title, labeler, cfg.instruments["judge"])
        elif alike < prompts:
            results[key] = Waiting(opposed, prompts - alike, detectable(prompts))
            continue
        rates = comparison_results(outcomes, cfg.confidence, cfg.judged.max_longer)
        rates = replace(rates, nulls=rates.nulls | constant)
        results[key] = JudgedComparison(opposed, **comparison.counts._asdict(), rates=rates)
    return results, measured


def measure_wins(
    comparison: Comparison, key: str, title: str, labeler: str, judge: str
) -> Iterator[Measure]:
    """Yield the outcome of each judged pair of answers: 1 if the policy's answer won, 0.5 for a tie, 0 if it lost, NaN
    without a verdict. The opponent (`key`: its role) would win half against itself. `judge`: a digest of the labeler,
    since the verdicts of two judges cannot be compared."""
    name = f"wins against {title} by {labeler}"
    for (_, other), won in zip(comparison.sides, comparison.outcomes.won.tolist(), strict=True):
        unit = content_id(other.prompt_id, other.text, judge)
        yield Measure(name, unit, key, won)
        yield Measure(name, unit, key, POINTS["tie"], role=key)
