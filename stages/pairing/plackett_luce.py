"""One ranking of a prompt's candidates from pairwise preferences, and all pairs of the ranking.

Pairwise preferences may contradict each other and may not cover all pairs. The Plackett–Luce model (Bradley–Terry, for
pairs) estimates a strength of each candidate from all preferences, and the strengths give a ranking. All pairs of the
ranking are used, because neighbours alone would give biased estimates of the strengths (full breaking: Azari Soufiani
et al. 2013). Pairwise DPO is DPO on rankings of two (arXiv:2305.18290, appendix A.3). Scores are rankings already.

The model prefers a candidate of strength s to one of strength t with probability s / (s + t). The margin of a pair is
the difference of the two probabilities, (s - t) / (s + t): from 0 to below 1, like a difference of scores."""

from functools import lru_cache
from itertools import combinations
from math import tanh

import numpy as np
from numpy.typing import NDArray

from stages.pairing.contrasts import Contrast

# limits of the iteration: their number, and the smallest change of a log-strength
ROUNDS, TOLERANCE = 500, 1e-6
EQUAL_STRENGTHS = 1e-3  # log-strengths that differ by less count as equal


def rank_contrasts(contrasts: list[Contrast]) -> list[Contrast]:
    """Return contrasts of all pairs of candidates by rank; equal ranks have margin 0. Scored ones return unchanged."""
    if not contrasts or any(c.score is not None for c in contrasts):
        return contrasts
    candidates = {side.candidate_id: side for c in contrasts for side in (c.better, c.worse)}
    index = {name: i for i, name in enumerate(candidates)}
    wins = np.zeros((len(index), len(index)))
    for c in contrasts:
        better, worse = index[c.better.candidate_id], index[c.worse.candidate_id]
        share = 1.0 if c.margin is None else 0.5  # a tie gives half a win to each
        wins[better, worse] += share
        wins[worse, better] += 1 - share
    strength = dict(
        zip(candidates, cached_strengths(tuple(map(tuple, wins.tolist()))), strict=True)
    )
    preferred = {
        (c.better.candidate_id, c.worse.candidate_id) for c in contrasts if c.margin is None
    }
    contrasts_by_rank = list[Contrast]()
    for above, below in combinations(sorted(candidates, key=lambda name: -strength[name]), 2):
        lead = strength[above] - strength[below]
        margin = tanh(lead / 2) if lead > EQUAL_STRENGTHS else 0.0
        sides, standing = (candidates[above], candidates[below]), strength[above]
        contrasts_by_rank.append(
            Contrast(*sides, margin, standing=standing, compared=(above, below) in preferred)
        )
    return contrasts_by_rank


@lru_cache(maxsize=10_000)
def cached_strengths(wins: tuple[tuple[float, ...], ...]) -> tuple[float, ...]:
    """Return `strengths` of a table of wins, cached because prompts with few candidates share a few tables."""
    return tuple(strengths(np.array(wins)).tolist())


def strengths(win_counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log-strengths from a table of how often the row was preferred to the column. Uses Hunter's iteration
    (2004, MM algorithms for generalized Bradley–Terry models, Annals of Statistics 32). Each candidate gets one more
    win and one more loss against strength 1, so that all strengths are finite."""
    comparisons, total_wins = win_counts + win_counts.T, win_counts.sum(axis=1) + 1
    strength = np.ones(len(win_counts))
    for _ in range(ROUNDS):
        previous = strength
        strength = total_wins / (
            (comparisons / (previous[:, None] + previous)).sum(axis=1) + 2 / (previous + 1)
        )
        if np.abs(np.log(strength / previous)).max() < TOLERANCE:
            break
    return np.log(strength)
