"""Groups of held-out pairs in the comparison of two policies, as `eval.by` asks for them.

Each group is shown. It makes the new policy worse only if it is reversed there, beyond chance over all groups, and was
not before: other differences of groups may be chance. A third by length never does: whoever learnt that a longer or a
shorter answer is the better one reverses it, whatever the labels."""

from dataclasses import dataclass

from stages.config.exit_codes import GateCode
from stages.evaluation.claims import HALF
from stages.evaluation.intervals import Interval
from stages.evaluation.noninferiority import Line
from stages.evaluation.pair_groups import LENGTH_COLUMNS
from stages.evaluation.results import Learnt, PairGroup

UNMOVED = Interval(HALF, HALF, HALF)  # the model before training gained on no answer


@dataclass(frozen=True)
class GroupLine:
    """A group of both policies. `before`, `after`: the shares of its pairs in order. `margin`: of the new policy, in nats a
    token. `is_worse`: it is reversed, and was not before."""

    group: str
    pairs: int
    prompts: int
    before: Interval
    after: Interval
    margin: Interval
    is_worse: bool

    def as_measure(self, margin: float) -> Line:
        """Return the group as a measure that decides the comparison. The bounds of the difference are those of two
        shares that are not paired, which are wide."""
        difference = Interval(
            self.after.mean - self.before.mean,
            self.after.low - self.before.high,
            self.after.high - self.before.low,
        )
        return Line(
            f"group {self.group}",
            self.prompts,
            self.before.mean,
            self.after.mean,
            difference,
            margin,
            GateCode.worse,
        )


def group_lines(old: Learnt | None, new: Learnt | None, note: str) -> list[GroupLine]:
    """Return the groups of the new policy. `old`: of the earlier policy; None if the model is the one before training.
    `note`: why nothing can be said, or ''; no group is then worse."""
    earlier = groups_by_name(old)
    lines = list[GroupLine]()
    for name, group in groups_by_name(new).items():
        before = earlier.get(name)
        if old is not None and before is None:  # the earlier run has no such group
            continue
        is_of_length = group.column in LENGTH_COLUMNS
        was_reversed = before is not None and before.is_reversed
        line = GroupLine(
            name,
            group.pairs,
            group.prompts,
            before.share if before else UNMOVED,
            group.share,
            group.margin,
            is_worse=group.is_reversed and not (note or is_of_length or was_reversed),
        )
        lines.append(line)
    return lines


def groups_by_name(learnt: Learnt | None) -> dict[str, PairGroup]:
    """Return the groups by column and value; {} if the evaluation has none."""
    if learnt is None or learnt.by is None:
        return {}
    return {group.name: group for group in learnt.by.groups}


def worse_groups(lines: list[GroupLine], margin: float) -> list[Line]:
    """Return the groups that make the new policy worse, as measures."""
    return [line.as_measure(margin) for line in lines if line.is_worse]
