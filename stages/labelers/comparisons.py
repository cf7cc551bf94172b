"""Which of a prompt's candidates are shown together, to a judge or to a person."""

from collections.abc import Sequence

from stages.store.records import Candidate, content_id


def in_circle(candidates: Sequence[Candidate], seed: int) -> list[Candidate]:
    """The candidates in an order drawn by a hash: a subset of them comes in the same order."""
    return sorted(candidates, key=lambda c: content_id(seed, c.candidate_id))


def compared(candidates: Sequence[Candidate], most: int | None, seed: int) -> list[tuple[Candidate, Candidate]]:
    """Two candidates of a prompt at a time: all such pairs, or the first `most` of an order in which every candidate
    comes before any comes much more often: neighbours in a circle, then those two apart, and so on."""
    circle = in_circle(candidates, seed)
    n, pairs = len(circle), list[tuple[Candidate, Candidate]]()
    for apart in range(1, n // 2 + 1):
        starts = range(apart) if 2 * apart == n else [*range(0, n, 2), *range(1, n, 2)]
        pairs += [(circle[i], circle[(i + apart) % n]) for i in starts]
    return pairs[:most]


def grouped(
    candidates: Sequence[Candidate], size: int, most: int | None, seed: int
) -> Sequence[tuple[Candidate, ...]]:
    """Return `size` candidates at a time: of two, as `compared`; of more, neighbours in the circle. What fills up the
    last group is one candidate of each group before it, so that no two candidates are shown together twice."""
    if size == 2:
        return compared(candidates, most, seed)
    circle = in_circle(candidates, seed)
    *whole, last = [circle[start : start + size] for start in range(0, len(circle), size)]
    last += [group[0] for group in whole][: size - len(last)]
    return [tuple(group) for group in (*whole, last)][:most]
