"""One ranking of a prompt's candidates, and the pairs that it stands for.

A judge that is asked about two at a time may contradict itself, and may not have seen every two. The Plackett–Luce
model (of two at a time: Bradley–Terry's) gives each candidate a strength from all that was said; strengths rank them
all. A ranking is broken up into all its pairs, from which such strengths can be learnt without bias, as they cannot
from neighbours alone (full breaking: Azari Soufiani et al. 2013). DPO of pairs is that of rankings two at a time
(arXiv:2305.18290, appendix A.3). Lists that a file ranks or scores are rankings already.
"""

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from stages.pairing.contrasts import Contrast

ROUNDS, STILL = 500, 1e-6  # of the iteration at most, and the change of a log-strength at which it ends
EQUAL = 1e-3  # difference of log-strengths


def ranked(contrasts: list[Contrast]) -> list[Contrast]:
    """Every two of a prompt's candidates by their ranking, better first; those of equal strength with margin 0. The
    lead is the log-odds that the better one is preferred. Scores are a ranking as they are."""
    if len(contrasts) < 2 or any(c.score is not None for c in contrasts):
        return contrasts
    candidates = {side.candidate_id: side for c in contrasts for side in (c.better, c.worse)}
    place = {name: i for i, name in enumerate(candidates)}
    won = np.zeros((len(place), len(place)))
    for c in contrasts:
        better, worse = place[c.better.candidate_id], place[c.worse.candidate_id]
        share = 1.0 if c.margin is None else 0.5  # half a win each of a tie
        won[better, worse] += share
        won[worse, better] += 1 - share
    strength = dict(zip(candidates, strengths(won).tolist(), strict=True))
    found = list[Contrast]()
    for above, below in combinations(sorted(candidates, key=lambda name: -strength[name]), 2):
        lead = strength[above] - strength[below]
        margin = None if lead > EQUAL else 0.0
        found.append(Contrast(candidates[above], candidates[below], margin, lead=lead, standing=strength[above]))
    return found


def strengths(won: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-strengths from how often row was preferred to column, by Hunter's iteration (2004, MM algorithms for
    generalized Bradley–Terry models). As if each had won and lost once against another of strength 1, so that one that
    always won stays finite, and so does what nobody compared."""
    asked, wins = won + won.T, won.sum(axis=1) + 1
    strength = np.ones(len(won))
    for _ in range(ROUNDS):
        before = strength
        strength = wins / ((asked / (before[:, None] + before)).sum(axis=1) + 2 / (before + 1))
        if np.abs(np.log(strength / before)).max() < STILL:
            break
    return np.log(strength)
