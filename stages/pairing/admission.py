"""Which contrasts may become pairs, which rule refused the others, and what would let those through."""

from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from stages.config.blocks.pairs import Pairs
from stages.config.choices import Unfinished
from stages.pairing.contrasts import Contrast
from stages.store.records import Judgement

FEWER = "fewer than two judged candidates"
TIES = "no candidate is preferred to another"
AGAINST = "no comparison that the ranking agrees with"
FULL = "its task has pairs.max_per_task pairs"
OUTSIDE_QUANTILES = "no margin within pairs.margin_quantiles"
BETTER_UNFINISHED = "only an unfinished candidate was better"
WORSE_UNFINISHED = "only an unfinished candidate was worse"
# How candidates come that can be told apart, by what draws them; where somebody has them already, by giving others.
DRAW = "Raise sample.temperatures or sample.candidates_per_prompt"
GIVE = {
    "dataset": "The file must have two different answers to a prompt, one of them better",
    "file": "sample.file must have two different candidates of a prompt, one of them better",
}
LONGER = "Raise sample.max_new_tokens"


class WaysOut(NamedTuple):
    """What gives candidates whose texts differ, whose scores differ, that end, and whose worse ones end."""

    texts: str
    scores: str
    ended: str = LONGER
    worse_ended: str = f"{LONGER}, or set pairs.unfinished=keep"


class Rule(NamedTuple):
    """What a contrast must be to become a pair, the reason that one gets which is not, and what would change that."""

    reason: str
    keeps: Callable[[Contrast], bool]
    way_out: str


class Admission:
    """Which contrasts may become pairs: by the rules, and by `margins`, between which theirs must lie. How many
    contrasts each rule refused is in `refused`."""

    def __init__(self, cfg: Pairs, ways_out: WaysOut, margins: tuple[float, float] | None = None):
        self.cfg, self.ways_out, self.margins = cfg, ways_out, margins
        self.ways = {rule.reason: rule.way_out for rule in rules(cfg, (), ways_out)}
        self.ways |= {FEWER: ways_out.texts, OUTSIDE_QUANTILES: "Widen pairs.margin_quantiles"}
        self.ways |= {AGAINST: "pairs=ranked takes what the ranking says", FULL: "Raise pairs.max_per_task"}
        self.refused = Counter[str]()

    def admit(self, contrasts: list[Contrast], unsound: Container[str]) -> tuple[list[Contrast], str]:
        """Those of a prompt's contrasts that may; where none may, the rule that refused the last of them. `unsound`:
        ids of candidates that must not be learnt from, whatever their score."""
        reason = "" if contrasts else FEWER
        for rule in rules(self.cfg, unsound, self.ways_out):
            contrasts, reason = self.kept(contrasts, rule.keeps, rule.reason, reason)
        different = [*{(c.better.stripped_text, c.worse.stripped_text): c for c in contrasts}.values()]
        if not self.margins:
            return different, reason
        low, high = self.margins
        return self.kept(different, lambda c: low <= c.distance <= high, OUTSIDE_QUANTILES, reason)

    def kept(
        self, contrasts: list[Contrast], keeps: Callable[[Contrast], bool], name: str, reason: str
    ) -> tuple[list[Contrast], str]:
        """What a rule leaves of contrasts, and the reason for there being none, which may be an earlier one."""
        found = [contrast for contrast in contrasts if keeps(contrast)]
        self.refused[name] += len(contrasts) - len(found)
        return found, name if contrasts and not found else reason


def by_order(judgements: Iterable[Judgement]) -> str:
    """Return how often the order of two answers decided a comparison, which is then a tie, and the way out; '' where
    it never did."""
    agrees = [j.order_swapped_agrees for j in judgements if j.order_swapped_agrees is not None]
    if all(agrees):
        return ""
    return (
        f"The order of the two answers decided {agrees.count(False)} of {len(agrees)} comparisons, which are ties. "
        "Name another judge in label.judge.endpoints, or set label.judge.kind=pointwise"
    )


def between(distances: Sequence[float], quantiles: Sequence[float]) -> tuple[float, float]:
    """The margins at these quantiles: of those that occur the nearest inside."""
    if not distances:
        return 0.0, 0.0
    low, high = quantiles
    return float(np.quantile(distances, low, method="higher")), float(np.quantile(distances, high, method="lower"))


def rules(cfg: Pairs, unsound: Container[str], ways: WaysOut) -> list[Rule]:
    """In their order."""
    return [
        Rule("every candidate got the same score", lambda c: c.score is None or c.distance > 0, ways.scores),
        Rule(TIES, lambda c: c.margin is None or c.margin > 0, ways.scores),
        Rule(
            "no two candidates differ in text", lambda c: c.better.stripped_text != c.worse.stripped_text, ways.texts
        ),
        # A chosen completion without an end would teach to go on; with one that was never drawn, an end too soon.
        Rule(BETTER_UNFINISHED, lambda c: c.better.finish_reason == "stop", ways.ended),
        Rule(
            WORSE_UNFINISHED,
            lambda c: c.worse.finish_reason == "stop" or cfg.unfinished is Unfinished.keep,
            ways.worse_ended,
        ),
        Rule(
            "no better candidate keeps the rules of pairs.quality",
            lambda c: c.better.candidate_id not in unsound,
            "Set pairs.quality=false",
        ),
        Rule(
            "no score of pairs.min_score or more",
            lambda c: c.score is None or c.score >= cfg.min_score,
            f"Lower pairs.min_score={cfg.min_score:g}",
        ),
        Rule(
            "no margin above pairs.min_margin",
            lambda c: c.margin is None or c.margin > cfg.min_margin,
            f"Lower pairs.min_margin={cfg.min_margin:g}",
        ),
        Rule(
            "every length ratio above pairs.max_length_ratio",
            lambda c: cfg.max_length_ratio is None or c.length_ratio <= cfg.max_length_ratio,
            "Raise pairs.max_length_ratio",
        ),
    ]
