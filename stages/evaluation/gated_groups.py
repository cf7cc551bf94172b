"""Groups of held-out pairs in the comparison of two policies, as `eval.by` asks for them.

Each group is shown. It makes the new policy worse only if it is reversed there, beyond chance over all groups, and was
not before: other differences of groups may be chance. If the earlier run does not have a reversed group, nobody knows
whether it was, and the policies are not comparable. A third by length decides nothing: whoever learnt that a longer or
a shorter answer is the better one reverses it, whatever the labels."""

from dataclasses import dataclass

from stages.config.exit_codes import GateCode
from stages.evaluation.claims import HALF
from stages.evaluation.intervals import Interval
from stages.evaluation.noninferiority import Line
from stages.evaluation.pair_groups import LENGTH_COLUMNS
from stages.evaluation.results import Learnt, PairGroup

UNMOVED = Interval(HALF, HALF, HALF)  # the model before training gained on no answer
NOT_BEFORE = "it is reversed now, and the earlier run does not have this group. Evaluate both with one eval.by"


@dataclass(frozen=True)
class GroupLine:
    """A group of the new policy. `before`, `after`: the shares of its pairs in order; `before` is None if the earlier run
    does not have the group. `margin`: of the new policy, in nats a token. `is_worse`: it is reversed, and was not before.
    `is_unknown`: it is reversed, and the earlier run does not say whether it was before."""

    group: str
    pairs: int
    prompts: int
    before: Interval | None
    after: Interval
    margin: Interval
    is_worse: bool
    is_unknown: bool

    def as_measure(self, margin: float) -> Line:
        """Return the group as a measure that decides the comparison. The bounds of the difference are those of two
        shares that are not paired, which are wide."""
        name = f"group {self.group}"
        if self.before is None:
            nothing = Interval(0, 0, 0)
            code = GateCode.other_prompts
            return Line(name, 0, 0, 0, nothing, margin, code, note=NOT_BEFORE)
        difference = Interval(
            self.after.mean - self.before.mean,
            self.after.low - self.before.high,
            self.after.high - self.before.low,
        )
        return Line(
            name,
            self.prompts,
            self.before.mean,
            self.after.mean,
            difference,
            margin,
            GateCode.worse,
        )


def group_lines(
    earlier: dict[str, PairGroup] | None, new: Learnt | None, note: str
) -> list[GroupLine]:
    """Return the groups of the new policy. `earlier`: the groups of the earlier policy by name; None if the other model is
    the one before training. `note`: why nothing can be said, or ''; no group then decides anything."""
    lines = list[GroupLine]()
    for name, group in groups_by_name(new).items():
        old = earlier.get(name) if earlier else None
        before = old.share if old else None
        if earlier is None:
            before = UNMOVED
        was_reversed = old is not None and old.is_reversed
        is_of_length = group.column in LENGTH_COLUMNS
        is_alarm = group.is_reversed and not (note or is_of_length or was_reversed)
        line = GroupLine(
            name,
            group.pairs,
            group.prompts,
            before,
            group.share,
            group.margin,
            is_worse=is_alarm and before is not None,
            is_unknown=is_alarm and before is None,
        )
        lines.append(line)
    return lines


def groups_by_name(learnt: Learnt | None) -> dict[str, PairGroup]:
    """Return the groups by column and value; {} if the evaluation has none."""
    if learnt is None or learnt.by is None:
        return {}
    return {group.name: group for group in learnt.by.groups}


def deciding_groups(lines: list[GroupLine], margin: float) -> list[Line]:
    """Return the groups that make the new policy worse or not comparable, as measures."""
    return [line.as_measure(margin) for line in lines if line.is_worse or line.is_unknown]
