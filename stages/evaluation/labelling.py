"""What a labelling looks like, whoever made it: how much it leaves open, whether it goes by length, and where it was
close. Shares have intervals in which all outcomes of a prompt count as one draw."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np

from stages.evaluation import agreement
from stages.evaluation.agreement import Estimate
from stages.evaluation.reliability import equal
from stages.store.records import Candidate, Example, Judgement, load


class Share(NamedTuple):
    """A rate with its interval, and of how many."""

    of: int
    rate: Estimate


class Contest(NamedTuple):
    """Two candidates of a prompt that differ in length, and of which one is better: whether the longer one is, and how
    many times as long it is."""

    prompt_id: str
    longer: bool
    times: float


class Call(NamedTuple):
    """Two candidates of a prompt, better first, and by how much; 0 is a tie."""

    better: Candidate
    worse: Candidate
    gap: float


@dataclass(frozen=True)
class Labelling:
    """A judged pool."""

    prompts: dict[str, Example]
    candidates: dict[str, Candidate]
    judgements: list[Judgement]

    @classmethod
    def read(cls, folder: Path) -> "Labelling":
        """That of a label node."""
        prompts = {p.id: p for p in load(folder / "prompts.parquet", Example)}
        candidates = {c.candidate_id: c for c in load(folder / "candidates.parquet", Candidate)}
        return cls(prompts, candidates, load(folder / "judgements.parquet", Judgement))

    @cached_property
    def given(self) -> list[Judgement]:
        """The judgements that are not missing."""
        return [j for j in self.judgements if j.error is None]

    @cached_property
    def scored(self) -> dict[str, list[tuple[Candidate, float]]]:
        """Candidates with a score, by prompt."""
        found = defaultdict[str, list[tuple[Candidate, float]]](list)
        for j in self.given:
            if j.score is not None:
                found[j.prompt_id].append((self.candidates[str(j.candidate_id)], j.score))
        return found

    @cached_property
    def preferences(self) -> list[Judgement]:
        """Return preferences and ties between two texts that differ: two copies are a tie that nobody had to see."""
        return [j for j in self.given if j.preference and not equal(j, self.candidates)]

    @cached_property
    def contests(self) -> list[Contest]:
        found = [
            contest(j.prompt_id, self.candidates[str(j.a)].n_tokens, self.candidates[str(j.b)].n_tokens, sign)
            for j in self.preferences
            if (sign := {"a": 1, "b": -1}.get(str(j.preference), 0))
            and self.candidates[str(j.a)].n_tokens != self.candidates[str(j.b)].n_tokens
        ]
        for prompt_id, those in self.scored.items():
            score = np.array([score for _, score in those])
            length = np.array([candidate.n_tokens for candidate, _ in those])
            i, j = np.triu_indices(len(those), 1)
            apart = (score[i] != score[j]) & (length[i] != length[j])
            for a, b in zip(i[apart], j[apart], strict=True):
                found.append(contest(prompt_id, int(length[a]), int(length[b]), float(score[a] - score[b])))
        return found

    def mean_score(self) -> float | None:
        given = [score for those in self.scored.values() for _, score in those]
        return fmean(given) if given else None

    def ties(self) -> Share | None:
        return share([j.preference == "tie" for j in self.preferences], [j.prompt_id for j in self.preferences])

    def undecided(self) -> Share | None:
        """Of prompts with two candidates or more, those of which no candidate is better than another."""
        decided = {j.prompt_id: False for j in self.given if j.preference}
        decided |= {j.prompt_id: True for j in self.preferences if j.preference != "tie"}
        decided |= {p: len({s for _, s in those}) > 1 for p, those in self.scored.items() if len(those) > 1}
        return share([not told for told in decided.values()], list(decided))

    def flips(self) -> Share | None:
        """Of preferences that were asked for in both orders, those that the order changed."""
        asked = [j for j in self.judgements if j.order_swapped_agrees is not None]
        return share([not j.order_swapped_agrees for j in asked], [j.prompt_id for j in asked])

    def calls(self) -> list[Call]:
        """Closest first: of every prompt the two candidates whose scores differ least but differ, and every tie of two
        texts on which a labeler agreed with itself."""
        found = []
        for those in self.scored.values():
            ranked = sorted(those, key=lambda each: -each[1])
            near = [Call(a, b, s - t) for (a, s), (b, t) in pairwise(ranked) if s > t]
            found += sorted(near, key=lambda call: call.gap)[:1]
        for j in self.preferences:
            if j.preference == "tie" and j.order_swapped_agrees is not False:
                found.append(Call(self.candidates[str(j.a)], self.candidates[str(j.b)], 0.0))
        return sorted(found, key=lambda call: call.gap)

    def by_task(self) -> dict[str, "Labelling"]:
        """The same labelling, task by task; an open request counts under every kind of its constraints."""
        found = defaultdict[str, list[Judgement]](list)
        for j in self.judgements:
            for task in self.prompts[j.prompt_id].tasks:
                found[task].append(j)
        return {task: Labelling(self.prompts, self.candidates, its) for task, its in sorted(found.items())}


def contest(prompt_id: str, a: int, b: int, sign: float) -> Contest:
    """Of two lengths in tokens, where the first is better (`sign` above 0) or the second."""
    short, long = sorted((a, b))
    return Contest(prompt_id, (a > b) == (sign > 0), long / max(1, short))


def longer(contests: Sequence[Contest]) -> Share | None:
    """How often the longer of two is the better one."""
    return share([c.longer for c in contests], [c.prompt_id for c in contests])


def share(hits: Sequence[bool], prompts: Iterable[str]) -> Share | None:
    """The share of hits; None of none. `prompts`: the prompt of each.

    The interval is Wilson's for as many independent outcomes as these are worth (Korn & Graubard 1998, Survey
    Methodology 24:2): outcomes of one prompt are alike. Where all outcomes are, for the number of prompts.
    """
    if not hits:
        return None
    names, of = np.unique([*prompts], return_inverse=True)
    each, right, p, k = np.bincount(of), np.bincount(of, hits), float(np.mean(hits)), len(names)
    worth = float(k)
    if 0 < p < 1 and k > 1:
        variance = k / (k - 1) * ((right - p * each) ** 2).sum() / len(hits) ** 2
        worth = min(len(hits), max(1.0, p * (1 - p) / variance)) if variance else len(hits)
    return Share(len(hits), agreement.share(p * worth, worth))
