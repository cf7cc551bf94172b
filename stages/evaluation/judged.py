"""Judged comparisons: what a labeler said of the policy's answers beside those of another model, as figures and in
sentences. Who judged, and how, is the labeler's affair."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.config.blocks.evaluation import CONSTANT, REFERENCES, Eval
from stages.evaluation.intervals import Interval
from stages.evaluation.reliability import KNOWN_WORDS, Key, from_file
from stages.evaluation.win_rates import Comparisons, compared, detectable, win_rate
from stages.store.records import Candidate, Judgement, load

POINTS = {"a": 1.0, "tie": 0.5, "b": 0.0}  # of the candidate `a`
SAYS = {
    "better": "{who} {finds} {answers} better than {others}",
    "worse": "{who} {finds} {answers} worse than {others}",
    "preferred, perhaps for length": "{who} {prefers} {answers} to {others}, perhaps for length alone",
    "rejected, perhaps for length": "{who} {prefers} {others} to {answers}, perhaps for length alone",
    "no measurable difference": "{who} {finds} no measurable difference between {answers} and {others}",
    "too few to say": "There are too few judgements to compare {answers} with {others}",
}


@dataclass(frozen=True)
class Comparison:
    """The two answers to every prompt, the policy's (or what takes its place) first, and what was said of them: of two
    at a time by prompt, or of each by its id."""

    sides: list[tuple[Candidate, Candidate]]
    preferences: dict[str, Judgement]
    scores: dict[str | None, float]
    missing: Counter[str]
    words_of_people: Mapping[Key, str]

    @classmethod
    def read(cls, versus: Path, label: Path | None) -> "Comparison":
        """Read a `versus` node and the labels of it: None where all answers are alike, and nobody was asked."""
        judgements = load(label / "judgements.parquet", Judgement) if label else []
        words = (label or versus) / KNOWN_WORDS
        return cls(
            sides_of(versus),
            {j.prompt_id: j for j in judgements if j.preference},
            {j.candidate_id: j.score for j in judgements if j.score is not None},
            Counter(j.error for j in judgements if j.error),
            from_file(words) if words.exists() else {},
        )

    def won(self, policy: Candidate, other: Candidate) -> float:
        """1 where the policy's answer is the better one, 0.5 for a tie, 0 where the other is; NaN where nobody said
        it. Equal texts are a tie, whether or not anybody was asked."""
        if policy.stripped_text == other.stripped_text:
            return POINTS["tie"]
        if judgement := self.preferences.get(policy.prompt_id):
            points = POINTS[str(judgement.preference)]
            return points if judgement.a == policy.candidate_id else 1 - points
        gap = self.scores.get(policy.candidate_id, math.nan) - self.scores.get(other.candidate_id, math.nan)
        return (1 + float(np.sign(gap))) / 2  # NaN stays NaN

    def shown_first(self, policy: Candidate) -> float:
        """1 where the policy's answer was shown first, 0 where the other was; 0.5 where both orders were shown, or the
        two were never side by side."""
        judgement = self.preferences.get(policy.prompt_id)
        if judgement is None or judgement.order_swapped_agrees is not None:
            return 0.5
        return float(judgement.a == policy.candidate_id)

    @cached_property
    def lengths(self) -> NDArray[np.float64]:
        """Tokens of both answers: (prompts, 2)."""
        return np.array([[side.n_tokens for side in both] for both in self.sides], float).reshape(-1, 2)

    @cached_property
    def outcomes(self) -> Comparisons:
        keys = [(policy.candidate_id, other.candidate_id) for policy, other in self.sides]
        return Comparisons(
            won=np.array([self.won(*both) for both in self.sides], float),
            longer_by=self.lengths[:, 0] - self.lengths[:, 1],
            people=np.array([POINTS.get(self.words_of_people.get(key, ""), math.nan) for key in keys], float),
            shown_first=np.array([self.shown_first(policy) for policy, _ in self.sides], float),
            alike=np.array([policy.stripped_text == other.stripped_text for policy, other in self.sides], bool),
        )

    @property
    def figures(self) -> dict[str, Any]:
        """Counts and lengths, to be told beside rates."""
        won = self.outcomes.won
        swapped = [j.order_swapped_agrees for j in self.preferences.values() if j.order_swapped_agrees is not None]
        return {
            "judged": int(np.isfinite(won).sum()),
            "missing": dict(self.missing),
            "ties": int((won == POINTS["tie"]).sum()),
            "flips": swapped.count(False) if swapped else None,
            "tokens": dict(zip(("policy", "other"), map(float, self.lengths.mean(0)), strict=True)),
        }


def judged(cfg: Eval, inputs: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """By whom the policy is compared with: how often its answers win, free of length and corrected by people where
    that can be told, and what a judge that knows nothing would give. Of a comparison that people have not completed,
    how many questions wait for them."""
    results, constant = dict[str, dict[str, Any]](), dict[str, Any]()
    if f"judged_{CONSTANT}" in inputs:
        won = Comparison.read(inputs[f"versus_{CONSTANT}"], inputs[f"judged_{CONSTANT}"]).outcomes.won
        if len(won):
            constant = {"one constant answer": asdict(win_rate(won[~np.isnan(won)], cfg.confidence))}
    for key, title in cfg.compared.items():
        comparison = Comparison.read(inputs[f"versus_{key}"], inputs.get(f"judged_{key}"))
        outcomes, prompts = comparison.outcomes, len(comparison.sides)
        alike = int(outcomes.alike.sum())
        row = {"title": title, "labeler": cfg.judged.labeler or "own", "prompts": prompts, "alike": alike}
        if f"judged_{key}" not in inputs and alike < prompts:
            results[key] = row | {"waiting": prompts - alike, "detectable": detectable(prompts)}
            continue
        rates = compared(outcomes, cfg.confidence, cfg.judged.max_longer)
        rates["nulls"] |= constant
        results[key] = row | comparison.figures | rates
    return results


def sides_of(versus: Path) -> list[tuple[Candidate, Candidate]]:
    """The two candidates of every prompt, as `versus` wrote them: the policy's first."""
    candidates = iter(load(versus / "candidates.parquet", Candidate))
    return list(zip(candidates, candidates, strict=True))


def sentence(row: Mapping[str, Any], policy: str) -> str:
    """Say in a sentence whose answers are better, by whom it was judged, and by how much. `policy`: its title."""
    usual = {"human": "People", "judge": "The judge", "reward_model": "The reward model"}
    who, answers = usual.get(row["labeler"], f"The labeler {row['labeler']}"), f"{policy}'s answers"
    opposed = REFERENCES if row["title"] == REFERENCES else f"{row['title']}'s answers"
    if "waiting" in row:
        return f"People have not said yet whether {answers} are better than {opposed}: stage=versus asks them."
    verbs = ("find", "prefer") if row["labeler"] == "human" else ("finds", "prefers")
    says = SAYS[row["effect"]].format(who=who, finds=verbs[0], prefers=verbs[1], answers=answers, others=opposed)
    rate = Interval(**(row["people"] or row)["win_rate"])
    share = f"{rate.mean:.1%} ({rate.low:.1%} to {rate.high:.1%})"
    return f"{says}: {answers} win {share} of {row['judged']} comparisons, ties half."
