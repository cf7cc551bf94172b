"""The rules that decide which contrasts may become pairs, counts of the refused ones, and advice to admit more."""

from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from stages.config.blocks.pairs import Pairs
from stages.config.choices import Unfinished
from stages.pairing.contrasts import Contrast
from stages.store.records import Candidate, Judgement

FEWER = "fewer than two judged candidates"
TIES = "no candidate is preferred to another"
COPIES = "that repeat another one"
AGAINST_RANKING = "no comparison that the ranking agrees with"
TASK_FULL = "its task has pairs.max_per_task pairs"
OUTSIDE_QUANTILES = "no margin within pairs.margin_quantiles"
BETTER_UNFINISHED = "only an unfinished candidate was better"
WORSE_UNFINISHED = "only an unfinished candidate was worse"
# Advice to get candidates of different quality: for sampled ones DRAW, and for those of a file GIVE.
DRAW = "Raise sample.temperatures or sample.candidates_per_prompt"
GIVE = {
    "dataset": "The file must have two different answers to a prompt, one of them better",
    "file": "sample.file must have two different candidates of a prompt, one of them better",
}
LONGER = "Raise sample.max_new_tokens"


class WaysOut(NamedTuple):
    """Advice to get candidates with different texts or scores, candidates that end, and worse ones that end."""

    texts: str
    scores: str
    ended: str = LONGER
    worse_ended: str = ""


class Rule(NamedTuple):
    """A condition on contrasts: the reason for a prompt without a pair, a name for the refused contrasts, the test
    that a contrast must pass, and advice to admit more contrasts."""

    reason: str
    refused_name: str
    accepts: Callable[[Contrast], bool]
    way_out: str


class Admission:
    """A filter of contrasts by the rules and by an interval of margins. `refused` counts contrasts by reason."""

    def __init__(self, cfg: Pairs, ways_out: WaysOut, margins: tuple[float, float] | None = None):
        self.cfg, self.ways_out, self.margins = cfg, ways_out, margins
        self.unsound_ids: Container[str] = ()
        self.rules = build_rules(cfg, lambda candidate: candidate.candidate_id not in self.unsound_ids, ways_out)
        self.advice = {rule.reason: rule.way_out for rule in self.rules}
        self.advice |= {FEWER: ways_out.texts, COPIES: ways_out.texts}
        self.advice |= {OUTSIDE_QUANTILES: f"Widen {cfg.key}.margin_quantiles (null: all)"}
        self.advice[AGAINST_RANKING] = "Use pairs=ranked, which makes pairs from the ranking alone"
        self.advice[TASK_FULL] = f"Raise {cfg.key}.max_per_task"
        self.refused_names = {rule.reason: rule.refused_name for rule in self.rules}
        self.refused_names[OUTSIDE_QUANTILES] = f"outside {cfg.key}.margin_quantiles={cfg.margin_quantiles}"
        self.refused_names[COPIES] = COPIES
        self.refused = Counter[str]()

    def admit(self, contrasts: list[Contrast], unsound: Container[str]) -> tuple[list[Contrast], str]:
        """Return the admitted contrasts of a prompt and, if there are none, the reason of the rule that refused the
        last one. `unsound`: ids of candidates that must not be chosen, whatever their score."""
        reason, self.unsound_ids = "" if contrasts else FEWER, unsound
        for rule in self.rules:
            contrasts, reason = self.apply_rule(contrasts, rule.accepts, rule.reason, reason)
        different = [*{(c.better.stripped_text, c.worse.stripped_text): c for c in contrasts}.values()]
        self.refused[COPIES] += len(contrasts) - len(different)
        if not self.margins:
            return different, reason
        low, high = self.margins
        return self.apply_rule(different, lambda c: low <= c.distance <= high, OUTSIDE_QUANTILES, reason)

    def refused_by_name(self) -> Counter[str]:
        """Return the numbers of refused contrasts by their names."""
        return Counter({self.refused_names[reason]: count for reason, count in self.refused.items()})

    def filter_messages(self) -> list[str]:
        """Return a message for each setting that refused contrasts, with the way to switch the setting off."""
        settings = {reason: way for reason, way in self.advice.items() if way not in self.ways_out}
        return [
            f"{self.refused[reason]} comparisons {self.refused_names[reason]} are left out. {way}."
            for reason, way in settings.items()
            if self.refused[reason]
        ]

    def apply_rule(
        self, contrasts: list[Contrast], keeps: Callable[[Contrast], bool], name: str, reason: str
    ) -> tuple[list[Contrast], str]:
        """Return the contrasts that pass, and the reason if there are none: `name`, or the earlier `reason`."""
        remaining = [contrast for contrast in contrasts if keeps(contrast)]
        self.refused[name] += len(contrasts) - len(remaining)
        return remaining, name if contrasts and not remaining else reason


def order_message(judgements: Iterable[Judgement]) -> str:
    """Return how many comparisons the order of the answers decided, with advice; '' if none."""
    agreements = [j.order_swapped_agrees for j in judgements if j.order_swapped_agrees is not None]
    if all(agreements):
        return ""
    return (
        f"In {agreements.count(False)} of {len(agreements)} comparisons the judge's choice changed with the order of "
        "the answers, so they are ties. Name another judge in label.judge.endpoints, or set label.judge.kind=pointwise"
    )


def quantile_margins(distances: Sequence[float], quantiles: Sequence[float]) -> tuple[float, float]:
    """Return the margins at two quantiles, each rounded inwards to a margin that occurs."""
    if not distances:
        return 0.0, 0.0
    low, high = quantiles
    return float(np.quantile(distances, low, method="higher")), float(np.quantile(distances, high, method="lower"))


def build_rules(cfg: Pairs, is_sound: Callable[[Candidate], bool], ways_out: WaysOut) -> list[Rule]:
    """Return the rules in the order of their use. `is_sound`: False for candidates that must not be chosen."""
    key = cfg.key
    return [
        Rule(
            "every candidate got the same score",
            "of equal scores",
            lambda c: c.score is None or c.distance > 0,
            ways_out.scores,
        ),
        Rule(TIES, "without a better answer", lambda c: c.margin is None or c.margin > 0, ways_out.scores),
        Rule(
            "no two candidates differ in text",
            "of the same text twice",
            lambda c: c.better.stripped_text != c.worse.stripped_text,
            ways_out.texts,
        ),
        # A truncated chosen completion teaches endless answers; with an added end of turn it teaches to stop early.
        Rule(
            BETTER_UNFINISHED,
            "with an unfinished better answer",
            lambda c: c.better.finish_reason == "stop",
            ways_out.ended,
        ),
        Rule(
            WORSE_UNFINISHED,
            f"with an unfinished worse answer ({key}.unfinished=drop)",
            lambda c: c.worse.finish_reason == "stop" or cfg.unfinished is Unfinished.keep,
            ways_out.worse_ended or f"{LONGER}, or set {key}.unfinished=keep",
        ),
        Rule(
            f"no better candidate keeps the rules of {key}.quality",
            f"with a better answer against the rules of {key}.quality",
            lambda c: is_sound(c.better),
            f"Set {key}.quality=false",
        ),
        Rule(
            f"no score of {key}.min_score or more",
            f"with a better answer that scores less than {key}.min_score={cfg.min_score:g}",
            lambda c: c.score is None or c.score >= cfg.min_score,
            f"Lower {key}.min_score={cfg.min_score:g} (0: any score)",
        ),
        Rule(
            f"no margin above {key}.min_margin",
            f"with a margin of no more than {key}.min_margin={cfg.min_margin:g}",
            lambda c: c.margin is None or c.margin > cfg.min_margin,
            f"Lower {key}.min_margin={cfg.min_margin:g} (0: any margin)",
        ),
        Rule(
            f"every length ratio above {key}.max_length_ratio",
            f"with lengths further apart than {key}.max_length_ratio={cfg.max_length_ratio or 0:g}",
            lambda c: cfg.max_length_ratio is None or c.length_ratio <= cfg.max_length_ratio,
            f"Raise {key}.max_length_ratio={cfg.max_length_ratio or 0:g} (null: any lengths)",
        ),
        Rule(
            f"every length difference above {key}.max_length_difference",
            f"with lengths further apart than {key}.max_length_difference={cfg.max_length_difference} tokens",
            lambda c: cfg.max_length_difference is None or abs(c.longer_by) <= cfg.max_length_difference,
            f"Raise {key}.max_length_difference={cfg.max_length_difference} (null: any lengths)",
        ),
    ]
