"""Properties of a labelling from any labeler: ties, order flips, length bias and its closest calls. In the intervals
of shares, all outcomes of one prompt count as one draw."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, pairwise
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from stages.evaluation import estimate
from stages.evaluation.intervals import Interval
from stages.evaluation.reliability import is_copy, key_of
from stages.store.records import Candidate, Example, Judgement, load


class Share(NamedTuple):
    """A rate with its interval, and the number of outcomes it is taken over."""

    total: int
    rate: Interval


class Call(NamedTuple):
    """Two candidates of a prompt and the difference of their scores; a `gap` of 0 is a tie."""

    better: Candidate
    worse: Candidate
    gap: float


@dataclass(frozen=True)
class Labelling:
    """A judged pool: its prompts and candidates by id, and all judgements."""

    prompts: dict[str, Example]
    candidates: dict[str, Candidate]
    judgements: list[Judgement]

    @classmethod
    def read(cls, folder: Path) -> "Labelling":
        """Read the labelling of a label node."""
        prompts = {p.id: p for p in load(folder / "prompts.parquet", Example)}
        candidates = {c.candidate_id: c for c in load(folder / "candidates.parquet", Candidate)}
        return cls(prompts, candidates, load(folder / "judgements.parquet", Judgement))

    @cached_property
    def valid(self) -> list[Judgement]:
        """The judgements without an error."""
        return [j for j in self.judgements if j.error is None]

    @cached_property
    def scored(self) -> dict[str, list[tuple[Candidate, float]]]:
        """Candidates with their scores, by prompt."""
        scored = defaultdict[str, list[tuple[Candidate, float]]](list)
        for j in self.valid:
            if j.score is not None:
                scored[j.prompt_id].append((self.candidates[str(j.candidate_id)], j.score))
        return scored

    @cached_property
    def preferences(self) -> list[Judgement]:
        """Preferences and ties between two different texts; two copies are a tie that no labeler had to judge."""
        return [j for j in self.valid if j.preference and not is_copy(j, self.candidates)]

    def longer(self) -> Share | None:
        """The share of comparisons of answers of unequal lengths in which the longer answer is the better one."""
        by_prompt = defaultdict[str, list[Judgement]](list)
        for j in (*self.preferences, *(j for j in self.valid if j.score is not None)):
            by_prompt[j.prompt_id].append(j)
        lengths = {name: self.candidates[name].length for j in self.valid for name in key_of(j)}
        gaps = [
            (p, gap)
            for p, judged in by_prompt.items()
            for gap in length_gaps(lengths, judged)
            if gap
        ]
        return share([gap > 0 for _, gap in gaps], [prompt for prompt, _ in gaps])

    def mean_score(self) -> float | None:
        scores = [score for candidates in self.scored.values() for _, score in candidates]
        return fmean(scores) if scores else None

    def ties(self) -> Share | None:
        return share(
            [j.preference == "tie" for j in self.preferences],
            [j.prompt_id for j in self.preferences],
        )

    def undecided(self) -> Share | None:
        """The share of prompts with two or more candidates in which no candidate is better than another."""
        decided = {j.prompt_id: False for j in self.valid if j.preference}
        decided |= {j.prompt_id: True for j in self.preferences if j.preference != "tie"}
        decided |= {
            p: len({s for _, s in rows}) > 1 for p, rows in self.scored.items() if len(rows) > 1
        }
        return share([not is_decided for is_decided in decided.values()], list(decided))

    def flips(self) -> Share | None:
        """The share of preferences asked in both orders that changed with the order."""
        swapped = [j for j in self.judgements if j.order_swapped_agrees is not None]
        return share([not j.order_swapped_agrees for j in swapped], [j.prompt_id for j in swapped])

    def calls(self) -> list[Call]:
        """List the closest calls, smallest gap first: per prompt the two unequal scores that differ least, and every
        tie that does not come from a change with the order."""
        calls = []
        for candidates in self.scored.values():
            ranked = sorted(candidates, key=lambda candidate_score: -candidate_score[1])
            near = [Call(a, b, s - t) for (a, s), (b, t) in pairwise(ranked) if s > t]
            calls += sorted(near, key=lambda call: call.gap)[:1]
        for j in self.preferences:
            if j.preference == "tie" and j.order_swapped_agrees is not False:
                calls.append(Call(self.candidates[str(j.a)], self.candidates[str(j.b)], 0.0))
        return sorted(calls, key=lambda call: call.gap)

    def by_task(self) -> dict[str, "Labelling"]:
        """Split the labelling by task; an open request belongs to every kind of constraint it has."""
        by_task = defaultdict[str, list[Judgement]](list)
        for j in self.judgements:
            for task in self.prompts[j.prompt_id].tasks:
                by_task[task].append(j)
        return {
            task: Labelling(self.prompts, self.candidates, rows)
            for task, rows in sorted(by_task.items())
        }


def length_gaps(lengths: Mapping[str, int], judgements: Iterable[Judgement]) -> Iterator[int]:
    """Yield by how many tokens the better of two answers to a prompt is longer, for all pairs of unequal answers."""
    scored = list[tuple[float, int]]()
    for j in judgements:
        if j.preference in ("a", "b"):
            yield (lengths[str(j.a)] - lengths[str(j.b)]) * (1 if j.preference == "a" else -1)
        elif j.score is not None:
            scored.append((j.score, lengths[str(j.candidate_id)]))
    for (score_a, tokens_a), (score_b, tokens_b) in combinations(scored, 2):
        if score_a != score_b:
            yield (tokens_a - tokens_b) * (1 if score_a > score_b else -1)


def share(hits: Sequence[bool], prompts: Iterable[str]) -> Share | None:
    """Return the share of hits, None without any outcome. `prompts`: the prompt of each hit."""
    return Share(len(hits), estimate.share(hits, prompts).interval()) if hits else None
