"""Strategies: which of a prompt's contrasts become pairs first. Each is a function from contrasts, which come in
random order, to those that it would take, the first of them first. How many are taken says `pairs.max_per_prompt`."""

import random
from collections.abc import Callable

from stages.config.blocks.pairs import Pairs
from stages.config.choices import Strategy
from stages.pairing.contrasts import Contrast


def widest(contrasts: list[Contrast]) -> list[Contrast]:
    """The best against the worst first (West-of-N: arXiv:2401.12086)."""
    return sorted(contrasts, key=lambda c: -c.distance)


def narrowest(contrasts: list[Contrast]) -> list[Contrast]:
    """Return those that are just told apart first; `pairs.min_margin` says how far apart that is. Where labels are
    preferences, margins are by strength (`plackett_luce.py`), and what a labeler said against the strengths is left
    out. The rule is ours, after the finding that the very worst of many candidates is not the best rejected one; that
    paper takes one two standard deviations below the mean reward (arXiv:2502.16825)."""
    return sorted((c for c in contrasts if c.compared), key=lambda c: c.distance)


def of_best(contrasts: list[Contrast]) -> list[Contrast]:
    """The best candidate against any that is worse (Zephyr: arXiv:2310.16944)."""
    highest = max((c.standing for c in contrasts), default=0.0)
    return [c for c in contrasts if c.standing == highest]


def hard(contrasts: list[Contrast]) -> list[Contrast]:
    """The best candidate against the best of those that are worse: hard negatives (arXiv:2502.14400)."""
    return narrowest(of_best(contrasts))


def length_matched(contrasts: list[Contrast]) -> list[Contrast]:
    """Those of the most equal lengths first, so that length tells the two apart as little as it can (length bias:
    arXiv:2310.03716); of equal ratios the widest."""
    return sorted(contrasts, key=lambda c: (c.length_ratio, -c.distance))


def from_the_top(contrasts: list[Contrast]) -> list[Contrast]:
    """The first of a ranking against all below it, then the second, and so on: as Plackett–Luce has one chosen after
    the other. `plackett_luce.py` makes the contrasts."""
    return sorted(contrasts, key=lambda c: (-c.standing, -c.distance))


ORDERS: dict[Strategy, Callable[[list[Contrast]], list[Contrast]]] = {
    Strategy.best_worst: widest,
    Strategy.all: widest,
    Strategy.random: list,
    Strategy.margin: narrowest,
    Strategy.best_random: of_best,
    Strategy.hard: hard,
    Strategy.length_matched: length_matched,
    Strategy.ranked: from_the_top,
}


def select(contrasts: list[Contrast], strategy: Strategy, cfg: Pairs, prompt: str) -> list[Contrast]:
    """The contrasts that a strategy takes of a prompt. Those that it does not tell apart come in random order, drawn
    with the prompt as seed."""
    shuffled = contrasts.copy()
    random.Random(f"{cfg.seed}/{prompt}").shuffle(shuffled)
    return ORDERS[strategy](shuffled)[: limit_of(strategy, cfg)]


BY_STRENGTH = (Strategy.margin, Strategy.ranked)  # what takes preferences by their ranking


def limit_of(strategy: Strategy, cfg: Pairs) -> int:
    """How many pairs a prompt gives at most."""
    return 1 if strategy is Strategy.best_worst else cfg.max_per_prompt
