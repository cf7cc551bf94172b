"""Seconds that a node takes, from finished nodes of the same kind: a fixed part, and a part that grows with tokens."""

from collections.abc import Sequence
from typing import NamedTuple

LATEST = 5  # nodes of a kind are compared: earlier ones ran older code
APART = 2.0  # times the tokens: two nodes this far apart separate the fixed seconds from those per token


class Kind(NamedTuple):
    """Attributes that two nodes must share for one's time to be scaled to the other."""

    stage: str
    precision: str
    way: str  # labeler, sampler, adapter and forward
    model: str | float | None  # number of parameters, or the path of a reward model
    from_base: bool  # the base model answers, whose answers seldom end by themselves
    reads_tokens: bool  # False where no tokens go through a model, so that nothing scales
    processor: str | None
    processes: int


class Ran(NamedTuple):
    """A finished node: `counted` tokens, and those that the lengths of its input's texts let expect."""

    kind: Kind
    expected: float
    counted: float
    seconds: float

    @property
    def rate(self) -> float:
        """Return seconds per token, or the seconds where no token counts."""
        return self.seconds / (self.counted or 1)


def seconds_of(tokens: float, ran: Sequence[Ran]) -> float:
    """Return the seconds of a node with so many tokens, from nodes of its kind, the oldest first. The fastest node
    counts: other work on a machine, or a kill, makes a node slower, never faster."""
    fastest = sorted(ran[-LATEST:], key=lambda r: r.rate)
    if line := line_through(fastest):
        fixed, per_token = line
        return fixed + per_token * tokens
    return fastest[0].rate * (tokens or 1)


def line_through(fastest: Sequence[Ran]) -> tuple[float, float] | None:
    """Return the fixed seconds and the seconds per token, by the fastest small and the fastest large node; None where
    they do not differ enough."""
    most = max(r.counted for r in fastest)
    large = next(r for r in fastest if r.counted * APART >= most)
    small = next((r for r in fastest if r.counted * APART < most), None)
    if small is None:
        return None
    per_token = (large.seconds - small.seconds) / (large.counted - small.counted)
    fixed = small.seconds - per_token * small.counted
    return (fixed, per_token) if per_token > 0 and fixed >= 0 else None
