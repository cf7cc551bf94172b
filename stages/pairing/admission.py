"""Which contrasts may become pairs, and which rule refused the others."""

from collections import Counter
from collections.abc import Callable, Container, Sequence

import numpy as np

from stages.config.blocks.pairs import Pairs
from stages.config.choices import Unfinished
from stages.pairing.contrasts import Contrast

BETTER_UNFINISHED = "only an unfinished candidate was better"
WORSE_UNFINISHED = "only an unfinished candidate was worse"


class Admission:
    """Which contrasts may become pairs: by the rules, and by `margins`, between which theirs must lie. How many
    contrasts each rule refused is in `refused`."""

    def __init__(self, cfg: Pairs, margins: tuple[float, float] | None = None):
        self.cfg, self.margins, self.refused = cfg, margins, Counter[str]()

    def admit(self, contrasts: list[Contrast], unsound: Container[str]) -> tuple[list[Contrast], str]:
        """Those of a prompt's contrasts that may; where none may, the rule that refused the last of them. `unsound`:
        ids of candidates that must not be learnt from, whatever their score."""
        reason = "" if contrasts else "fewer than two judged candidates"
        for name, rule in rules(self.cfg, unsound).items():
            contrasts, reason = self.kept(contrasts, rule, name, reason)
        different = [*{(c.better.text.strip(), c.worse.text.strip()): c for c in contrasts}.values()]
        if not self.margins:
            return different, reason
        low, high = self.margins
        within = lambda c: low <= c.distance <= high
        return self.kept(different, within, "no margin within pairs.margin_quantiles", reason)

    def kept(
        self, contrasts: list[Contrast], rule: Callable[[Contrast], bool], name: str, reason: str
    ) -> tuple[list[Contrast], str]:
        """What a rule leaves of contrasts, and the reason for there being none, which may be an earlier one."""
        found = [contrast for contrast in contrasts if rule(contrast)]
        self.refused[name] += len(contrasts) - len(found)
        return found, name if contrasts and not found else reason


def between(distances: Sequence[float], quantiles: Sequence[float]) -> tuple[float, float]:
    """The margins at these quantiles: of those that occur the nearest inside."""
    if not distances:
        return 0.0, 0.0
    low, high = quantiles
    return float(np.quantile(distances, low, method="higher")), float(np.quantile(distances, high, method="lower"))


def rules(cfg: Pairs, unsound: Container[str]) -> dict[str, Callable[[Contrast], bool]]:
    """What a contrast must be to become a pair, by the reason that one gets which is not. In their order."""
    return {
        "every candidate got the same score": lambda c: c.margin is None or c.margin > 0,
        "no two candidates differ in text": lambda c: c.better.text.strip() != c.worse.text.strip(),
        # A chosen completion without an end would teach to go on; with one that was never drawn, an end too soon.
        BETTER_UNFINISHED: lambda c: c.better.finish_reason == "stop",
        WORSE_UNFINISHED: lambda c: c.worse.finish_reason == "stop" or cfg.unfinished is Unfinished.keep,
        "no better candidate keeps the rules of pairs.quality": lambda c: c.better.candidate_id not in unsound,
        "no score of pairs.min_score or more": lambda c: c.score is None or c.score >= cfg.min_score,
        "no margin above pairs.min_margin": lambda c: c.margin is None or c.margin > cfg.min_margin,
        "every length ratio above pairs.max_length_ratio": lambda c: (
            cfg.max_length_ratio is None or c.length_ratio <= cfg.max_length_ratio
        ),
    }
