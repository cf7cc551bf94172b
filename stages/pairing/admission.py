"""The rules that decide which contrasts may become pairs, counts of the refused ones, and advice to admit more."""

from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from math import inf
from typing import NamedTuple

import numpy as np

from stages.config.blocks.pairs import Pairs
from stages.config.choices import Unfinished
from stages.config.installation import read_beside
from stages.pairing.contrasts import Contrast
from stages.store.records import Candidate, Judgement

FEWER = "fewer than two judged candidates"
COPIES = "that repeat another one"
AGAINST_RANKING = "no comparison that the ranking agrees with"
TASK_FULL = "its task has pairs.max_per_task pairs"
OUTSIDE_QUANTILES = "no margin within pairs.margin_quantiles"
RULES: dict[str, dict[str, str]] = read_beside(__file__)
TIES, BETTER_UNFINISHED = RULES["ties"]["reason"], RULES["better_unfinished"]["reason"]
WORSE_UNFINISHED = RULES["worse_unfinished"]["reason"]
# Advice to get candidates of different quality: for sampled ones DRAW, and for those of a file GIVE.
DRAW = "Raise sample.temperatures or sample.candidates_per_prompt"
GIVE = {
    "dataset": "The file must have two different answers to a prompt, one of them better. Single answers with labels are for "
    "align=kto",
    "file": "sample.file must have two different candidates of a prompt, one of them better",
}
LONGER = "Raise sample.max_new_tokens"
Accepts = Callable[[Contrast, Pairs, Container[str]], bool]


class WaysOut(NamedTuple):
    """Advice to get candidates with different texts or scores, candidates that end, and worse ones that end."""

    texts: str
    scores: str
    ended: str = LONGER
    worse_ended: str = ""


class Rule(NamedTuple):
    """A condition on contrasts: its texts in the YAML file beside this one, and the test that a contrast must pass."""

    reason: str
    refused: str
    way_out: str
    accepts: Accepts


# The tests of the rules. The last argument has the ids of candidates that must not be chosen.
ACCEPTS: dict[str, Accepts] = {
    "equal_scores": lambda c, cfg, unsound: c.score is None or c.distance > 0,
    "ties": lambda c, cfg, unsound: c.margin is None or c.margin > 0,
    "equal_texts": lambda c, cfg, unsound: (
        compared_text(c.better, cfg) != compared_text(c.worse, cfg)
    ),
    "better_unfinished": lambda c, cfg, unsound: c.better.finish_reason == "stop",
    "worse_unfinished": lambda c, cfg, unsound: (
        c.worse.finish_reason == "stop" or cfg.unfinished is Unfinished.keep
    ),
    "quality": lambda c, cfg, unsound: c.better.candidate_id not in unsound,
    "min_score": lambda c, cfg, unsound: c.score is None or c.score >= cfg.min_score,
    "min_margin": lambda c, cfg, unsound: c.margin is None or c.margin > cfg.min_margin,
    "max_length_ratio": lambda c, cfg, unsound: c.length_ratio <= (cfg.max_length_ratio or inf),
    "max_length_difference": lambda c, cfg, unsound: (
        cfg.max_length_difference is None or abs(c.longer_by) <= cfg.max_length_difference
    ),
}


class Admission:
    """A filter of contrasts by the rules and by an interval of margins. `refused` counts contrasts by reason."""

    def __init__(self, cfg: Pairs, ways_out: WaysOut, margins: tuple[float, float] | None = None):
        self.cfg, self.ways_out, self.margins = cfg, ways_out, margins
        self.rules = build_rules(cfg, ways_out)
        self.advice = {rule.reason: rule.way_out for rule in self.rules}
        self.advice |= {FEWER: ways_out.texts, COPIES: ways_out.texts}
        self.advice |= {OUTSIDE_QUANTILES: f"Widen {cfg.key}.margin_quantiles (null: all)"}
        self.advice[AGAINST_RANKING] = "Use pairs=ranked, which makes pairs from the ranking alone"
        self.advice[TASK_FULL] = f"Raise {cfg.key}.max_per_task"
        self.refused_names = {rule.reason: rule.refused for rule in self.rules}
        self.refused_names[OUTSIDE_QUANTILES] = (
            f"outside {cfg.key}.margin_quantiles={cfg.margin_quantiles}"
        )
        self.refused_names[COPIES] = COPIES
        self.refused = Counter[str]()

    def admit(
        self, contrasts: list[Contrast], unsound: Container[str]
    ) -> tuple[list[Contrast], str]:
        """Return the admitted contrasts of a prompt and, if there are none, the reason of the rule that refused the
        last one. `unsound`: ids of candidates that must not be chosen, whatever their score."""
        reason = "" if contrasts else FEWER
        for rule in self.rules:
            accepted = [c for c in contrasts if rule.accepts(c, self.cfg, unsound)]
            contrasts, reason = self.count_refused(contrasts, accepted, rule.reason, reason)
        contrast_by_texts = {
            (compared_text(c.better, self.cfg), compared_text(c.worse, self.cfg)): c
            for c in contrasts
        }
        different = [*contrast_by_texts.values()]
        self.refused[COPIES] += len(contrasts) - len(different)
        if not self.margins:
            return different, reason
        low, high = self.margins
        within = [c for c in different if low <= c.distance <= high]
        return self.count_refused(different, within, OUTSIDE_QUANTILES, reason)

    def filter_messages(self) -> list[str]:
        """Return a message for each setting that refused contrasts, with the way to switch the setting off."""
        settings = {reason: way for reason, way in self.advice.items() if way not in self.ways_out}
        return [
            f"{self.refused[reason]} comparisons {self.refused_names[reason]} are left out. {way}."
            for reason, way in settings.items()
            if self.refused[reason]
        ]

    def count_refused(
        self, contrasts: list[Contrast], accepted: list[Contrast], name: str, reason: str
    ) -> tuple[list[Contrast], str]:
        """Return the accepted contrasts, and the reason if there are none: `name`, or the earlier `reason`."""
        self.refused[name] += len(contrasts) - len(accepted)
        return accepted, name if contrasts and not accepted else reason


def compared_text(candidate: Candidate, cfg: Pairs) -> str:
    """Return the text by which a candidate is told from others of its prompt."""
    return candidate.text if cfg.exact_texts else candidate.stripped_text


def order_message(judgements: Iterable[Judgement]) -> str:
    """Return how many comparisons the order of the answers decided, with advice; '' if none."""
    agreements = [j.order_swapped_agrees for j in judgements if j.order_swapped_agrees is not None]
    if all(agreements):
        return ""
    return (
        f"In {agreements.count(False)} of {len(agreements)} comparisons the judge's choice changed with the order of "
        "the answers, so they are ties. Name another judge in label.endpoints, or set label.kind=pointwise"
    )


def quantile_margins(distances: Sequence[float], quantiles: Sequence[float]) -> tuple[float, float]:
    """Return the margins at two quantiles, each rounded inwards to a margin that occurs."""
    if not distances:
        return 0.0, 0.0
    low, high = quantiles
    return float(np.quantile(distances, low, method="higher")), float(
        np.quantile(distances, high, method="lower")
    )


def build_rules(cfg: Pairs, ways_out: WaysOut) -> list[Rule]:
    """Return the rules in the order of their use."""
    worse_ended = ways_out.worse_ended or f"{LONGER}, or set {cfg.key}.unfinished=keep"
    different = ways_out.texts
    if not cfg.exact_texts:
        different += f", or set {cfg.key}.exact_texts=true"
    values = {
        "cfg": cfg,
        "ways": ways_out,
        "different": different,
        "worse_ended": worse_ended,
        "ratio": cfg.max_length_ratio or 0,
    }
    texts = {
        rule: {key: text.format(**values) for key, text in RULES[rule].items()} for rule in RULES
    }
    return [Rule(**texts[rule], accepts=ACCEPTS[rule]) for rule in RULES]
