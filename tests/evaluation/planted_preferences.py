"""Sets of planted log-probs and texts of held-out pairs, of which it is known what may be said."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from stages.evaluation import claims
from stages.evaluation.blind_rules import BlindPair
from stages.evaluation.claims import Word
from stages.evaluation.learnt import ScoredPairs
from stages.evaluation.results import Divergence, Learnt, Results
from stages.store.records import Pair
from tests.evaluation.made_results import results
from tests.helpers import settings

TITLES = {"base": "Base", "sft": "SFT", "policy": "DPO"}
WITH_CONTROL = {**TITLES, "control": "Plain SFT"}
LONG, SHORT = 12, 4  # tokens of the two answers of a pair
KL = {"policy": Divergence(0.052, 1.0, 80)}
# Log-probs of the longer answer and the shorter one, of which the longer one is the better: by (log-prob, per token).
BETTER_IS_LONG = {
    (True, True): (-3.0, -4.0),
    (False, True): (-6.0, -4.0),
    (False, False): (-24.0, -4.0),
}


class Kind(NamedTuple):
    """A number of pairs that are alike. `longer`: their better answer is the longer one; `gained`: the policy gained
    more on the better answer; `repeats`: they repeat a training pair."""

    number: int
    longer: bool
    gained: bool
    repeats: bool = False


class Right(NamedTuple):
    """On how many of the first pairs a model has the better answer likelier, by log-prob and per token."""

    by_sum: int
    by_token: int


NEVER = Right(0, 0)


@dataclass(frozen=True)
class Planted:
    """A set with what may be said of it. `step`: the nats that the policy moved each answer by; `of_training`: how many
    of 40 training pairs have a longer better answer; `word`: of what was learnt, None if a note stands for it;
    `over_control`: of plain SFT; `facts`: figures and names in the sentence and in the verdict."""

    title: str
    kinds: Sequence[Kind]
    word: Word | None
    facts: Sequence[str]
    step: float = 5.0
    of_training: int = 36
    policy: Right = NEVER
    control: Right | None = None
    over_control: Word | None = None
    is_rehearsal: bool = False

    @property
    def rows(self) -> list[Kind]:
        """A row for each pair."""
        return [*chain.from_iterable([kind] * kind.number for kind in self.kinds)]

    def log_probs(self, right: Right) -> Any:
        """Return the log-probs of a model that has so many pairs right: (pairs, 2). Where the shorter answer is the
        better one, both measures have it right."""
        sums = list[tuple[float, float]]()
        for i, row in enumerate(self.rows):
            by_measure = (i < right.by_sum, i < right.by_token)
            sums.append(BETTER_IS_LONG[by_measure] if row.longer else (-4.0, -24.0))
        return np.array(sums)

    def learnt(self) -> Learnt:
        """Return the figures of the held-out pairs."""
        rows = self.rows
        signs = np.array([(1.0, -1.0) if row.gained else (-1.0, 1.0) for row in rows])
        policy = self.log_probs(self.policy)
        sums = {"sft": policy - self.step * signs, "policy": policy}
        if self.control:
            sums["control"] = self.log_probs(self.control)
        models = WITH_CONTROL if self.control else TITLES
        cfg = replace(settings("recipe=tiny").eval, models=models)
        no_ids: Any = None
        pairs = [(planted_pair(i, row), no_ids) for i, row in enumerate(rows)]
        tokens = np.array([lengths(row.longer) for row in rows], float)
        scored = ScoredPairs(pairs, sums, tokens, tokens, "sft", cfg)
        training = [BlindPair(lengths(i < self.of_training), (0, 0), None) for i in range(40)]
        figures = scored.results(training)
        assert figures
        return figures

    def results(self) -> Results:
        """Return the results of an evaluation on these pairs, with their verdict."""
        models = WITH_CONTROL if self.control else TITLES
        made = results({}, models, learnt=self.learnt(), gives_verdict=["learnt"], kl=KL)
        if self.is_rehearsal:
            made = claims.rehearsed(made)
        return replace(made, verdict=claims.verdict(made))


def lengths(longer: bool) -> tuple[float, float]:
    """Return the tokens of chosen and rejected."""
    return (LONG, SHORT) if longer else (SHORT, LONG)


def planted_pair(number: int, row: Kind) -> Pair:
    request = [{"role": "user", "content": f"request {number}"}]
    texts = [f"{side} {number}" for side in ("better", "worse")]
    chosen, rejected = ([{"role": "assistant", "content": text}] for text in texts)
    ids = [str(number), f"prompt {number}"]
    pair = Pair(*ids, request, chosen, rejected, None, "l", "all", "a", "b", "validation")
    pair.repeats = row.repeats
    return pair


MANY = [Kind(40, True, True), Kind(40, False, True)]  # all of 80 gained, half of them not by length
SETS = [
    Planted(
        "length explains all",
        [Kind(60, True, True), Kind(20, False, False)],
        Word.shortcut,
        ["75.0%", "80 held-out pairs", "the 20 pairs whose better answer is not the longer: 0"],
    ),
    Planted(
        "length may explain all",
        [Kind(60, True, True), Kind(12, False, True), Kind(8, False, False)],
        Word.perhaps,
        ["90.0%", "the 20 pairs whose better answer is not the longer: 12", "told from length"],
    ),
    Planted(
        "too few pairs tell from length",
        [Kind(70, True, True), Kind(5, False, True)],
        Word.perhaps,
        ["100.0%", "the 5 pairs whose better answer is not the longer: 5", "too few to tell"],
    ),
    Planted(
        "no pair tells from length",
        [Kind(75, True, True)],
        Word.perhaps,
        ["the 0 pairs whose better answer is not the longer: 0", "too few to tell"],
    ),
    Planted(
        "length explains part",
        [Kind(50, True, True), Kind(26, False, True), Kind(4, False, False)],
        Word.better,
        ["95.0%", "the 30 pairs whose better answer is not the longer: 26", "moved 0.83 nats"],
    ),
    Planted(
        "length explains nothing",
        [Kind(20, True, False), Kind(60, False, True)],
        Word.better,
        ["75.0%", "the 60 pairs whose better answer is not the longer: 60", "KL 0.052"],
    ),
    Planted(
        "the shorter answer explains all",
        [Kind(60, False, True), Kind(20, True, False)],
        Word.shortcut,
        ["the 20 pairs whose better answer is not the shorter: 0"],
        of_training=4,
    ),
    Planted(
        "repeats gained and the others did not",
        [Kind(50, False, True, repeats=True), Kind(15, False, True), Kind(15, False, False)],
        Word.same,
        ["50 of 80 held-out pairs repeat a training pair", "50.0%", "of 30 held-out pairs"],
    ),
    Planted(
        "only repeats",
        [Kind(60, True, True, repeats=True)],
        None,
        ["60 held-out pairs", claims.ONLY_REPEATS[1:]],
    ),
    Planted(
        "reversed",
        [Kind(8, True, True), Kind(32, True, False), Kind(40, False, False)],
        Word.worse,
        ["10.0%", "80 held-out pairs"],
    ),
    Planted(
        "chance",
        [Kind(20, True, True), Kind(20, True, False)] + [Kind(20, False, i > 0) for i in range(2)],
        Word.same,
        ["50.0%", "80 held-out pairs"],
    ),
    Planted(
        "moved nothing",
        MANY,
        Word.unmoved,
        ["100.0%", "moved 8.3e-06 nats a token"],
        step=5e-5,
    ),
    Planted("too few pairs", [Kind(8, False, True)], None, ["oo few to say", "8 held-out pairs"]),
    Planted(
        "rehearsal",
        MANY,
        None,
        ["Rehearsal on random weights", "your file passes all stages"],
        policy=Right(36, 40),
        control=Right(0, 0),
        is_rehearsal=True,
    ),
    Planted(
        "control equal",
        MANY,
        Word.better,
        ["cannot be told from pairs"],
        policy=Right(20, 30),
        control=Right(20, 30),
        over_control=Word.unknown,
    ),
    Planted(
        "control lower by both measures",
        MANY,
        Word.better,
        ["ore than plain SFT"],
        policy=Right(30, 36),
        control=Right(12, 20),
        over_control=Word.better,
    ),
    Planted(
        "control higher by both measures",
        MANY,
        Word.better,
        ["ess than plain SFT"],
        policy=Right(12, 20),
        control=Right(30, 36),
        over_control=Word.worse,
    ),
    Planted(
        "control lower by log-prob alone",
        MANY,
        Word.better,
        ["ore than plain SFT by one of two measures"],
        policy=Right(30, 36),
        control=Right(12, 36),
        over_control=Word.preferred,
    ),
    Planted(
        "measures that contradict each other",
        MANY,
        Word.better,
        ["cannot be told from pairs"],
        policy=Right(5, 40),
        control=Right(20, 24),
        over_control=Word.unknown,
    ),
]
