"""One ranking of a prompt's candidates, and the pairs that it stands for.

A judge that is asked about two at a time may contradict itself, and may not have seen every two. The Plackett–Luce
model (of two at a time: Bradley–Terry's) gives each candidate a strength from all that was said; strengths rank them
all. A ranking is broken up into all its pairs, from which such strengths can be learnt without bias, as they cannot
from neighbours alone (full breaking: Azari Soufiani et al. 2013). DPO of pairs is that of rankings two at a time
(arXiv:2305.18290, appendix A.3). Lists that a file ranks or scores are rankings already.

Of two strengths s and t the model prefers the first with a chance of s / (s + t). The margin of a pair is the
difference of its two chances, (s - t) / (s + t): from 0 to below 1, as a difference of two scores is.
"""

from functools import lru_cache
from itertools import combinations
from math import tanh

import numpy as np
from numpy.typing import NDArray

from stages.pairing.contrasts import Contrast

ROUNDS, TOLERANCE = 500, 1e-6  # of the iteration at most, and the change of a log-strength at which it ends
EQUAL_STRENGTHS = 1e-3  # difference of log-strengths


def rank_contrasts(contrasts: list[Contrast]) -> list[Contrast]:
    """Every two candidates of a prompt by rank, better first; equals have margin 0. Scores are a ranking already."""
    if not contrasts or any(c.score is not None for c in contrasts):
        return contrasts
    candidates = {side.candidate_id: side for c in contrasts for side in (c.better, c.worse)}
    index = {name: i for i, name in enumerate(candidates)}
    wins = np.zeros((len(index), len(index)))
    for c in contrasts:
        better, worse = index[c.better.candidate_id], index[c.worse.candidate_id]
        share = 1.0 if c.margin is None else 0.5  # half a win each of a tie
        wins[better, worse] += share
        wins[worse, better] += 1 - share
    strength = dict(zip(candidates, cached_strengths(tuple(map(tuple, wins.tolist()))), strict=True))
    preferred = {(c.better.candidate_id, c.worse.candidate_id) for c in contrasts if c.margin is None}
    contrasts_by_rank = list[Contrast]()
    for above, below in combinations(sorted(candidates, key=lambda name: -strength[name]), 2):
        lead = strength[above] - strength[below]
        margin = tanh(lead / 2) if lead > EQUAL_STRENGTHS else 0.0
        sides, standing = (candidates[above], candidates[below]), strength[above]
        contrasts_by_rank.append(Contrast(*sides, margin, standing=standing, compared=(above, below) in preferred))
    return contrasts_by_rank


@lru_cache(maxsize=10_000)
def cached_strengths(wins: tuple[tuple[float, ...], ...]) -> tuple[float, ...]:
    """Return the strengths of a table of wins: prompts with few candidates have the same few tables."""
    return tuple(strengths(np.array(wins)).tolist())


def strengths(win_counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log-strengths from how often row was preferred to column, by Hunter's iteration (2004, MM algorithms for
    generalized Bradley–Terry models, Annals of Statistics 32). Each counts as if it had won and lost once against
    another of strength 1, so that one that always won stays finite, and so does what nobody compared."""
    comparisons, total_wins = win_counts + win_counts.T, win_counts.sum(axis=1) + 1
    strength = np.ones(len(win_counts))
    for _ in range(ROUNDS):
        previous = strength
        strength = total_wins / ((comparisons / (previous[:, None] + previous)).sum(axis=1) + 2 / (previous + 1))
        if np.abs(np.log(strength / previous)).max() < TOLERANCE:
            break
    return np.log(strength)
