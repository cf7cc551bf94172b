"""Is a policy worse than an earlier one, or than another model of its run? Each measure is a test of non-inferiority by
a paired interval.

A measure passes if it is not worse by `margin`. It is worse if it does not pass and is below zero at its level by
Holm's method over the measures. Otherwise the prompts are too few to tell. The mean answer's length may change by
LENGTH_DRIFT either way. A task counts as broken if it loses more than the margin by a one-sided sign test (McNemar's
exact test), which Holm's method corrects for the number of tasks: few prompts of one task move the mean of all tasks
too little."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from stages.config.exit_codes import GateCode
from stages.evaluation import claims
from stages.evaluation.claims import Claim
from stages.evaluation.distributions import binomial_at_most
from stages.evaluation.estimate import Means, correction, prompts_needed
from stages.evaluation.intervals import Interval
from stages.evaluation.measures import FAVOURED, FILE, LENGTH, PASSES, POLICY, Measure
from stages.evaluation.outcomes import LENGTH_DRIFT
from stages.store.records import load

Rows = Mapping[str, Measure]  # the rows of one measure, by unit
BROKEN = 0.001  # probability that noise alone fails a gate by one of its tasks


@dataclass(frozen=True)
class Line:
    """The comparison of one measure. `before`, `after`: the means of both policies; `difference`: after − before, of
    LENGTH as a share of `before`; `needed`: the prompts at which it passes in 9 of 10 runs that lost nothing more;
    `seeds`: the range of the difference over the new policy's seeds, if there are several."""

    measure: str
    prompts: int
    before: float
    after: float
    difference: Interval
    margin: float
    code: GateCode
    needed: int | None = None
    seeds: tuple[float, float] | None = None
    note: str = ""

    @property
    def claim(self) -> Claim:
        """What the comparison of the measure says; if it cannot tell, with the number of prompts that would."""
        figure = ""
        if self.code is GateCode.cannot_tell and not self.note:
            direction = "rose" if self.difference.mean > 0 else "fell"
            figure = decisive_number(self.needed) if self.needed else f"it rather {direction}"
        return claims.gate(self.code, figure, f"{self.prompts:,} prompts", self.note)


def decisive_number(prompts: int) -> str:
    return f"needs ~{prompts:,} prompts"


def read_measures(folder: Path, role: str = POLICY) -> dict[str, dict[str, Measure]]:
    """Read what an evaluation measured of one model, by measure and unit."""
    return by_measure(load(folder / FILE, Measure), role)


def by_measure(rows: Sequence[Measure], role: str = POLICY) -> dict[str, dict[str, Measure]]:
    """Return the rows of one model by measure and unit."""
    table = dict[str, dict[str, Measure]]()
    for row in rows:
        if row.role == role:
            table.setdefault(row.measure, {})[row.unit] = row
    return table


def mean_of_seeds(runs: Sequence[Mapping[str, Rows]]) -> dict[str, dict[str, Measure]]:
    """Return the mean value of each unit over several runs, for the measures with the same units in all of them."""
    return {
        name: {
            unit: replace(row, value=fmean(run[name][unit].value for run in runs))
            for unit, row in rows.items()
        }
        for name, rows in runs[0].items()
        if all(run.get(name, {}).keys() == rows.keys() for run in runs)
    }


def compare(
    old: Sequence[Mapping[str, Rows]],
    new: Sequence[Mapping[str, Rows]],
    margin: float,
    confidence: float,
    note: str = "",
) -> list[Line]:
    """Compare the measures of two policies, each a run or several seeds, and test the tasks of PASSES one by one.
    `note`: why nothing can be said, or ''; the lines then have their figures and no verdict."""
    before, after, lines = mean_of_seeds(old), mean_of_seeds(new), list[Line]()
    shared = [name for name in before if before[name].keys() == after.get(name, {}).keys()]
    compared = mark_worse(
        [compare_measure(name, before[name], after[name], margin, confidence) for name in shared],
        confidence,
    )
    by_name = dict(zip(shared, compared, strict=True))
    for name in old[0]:
        if name not in by_name:
            reason = "the new run does not measure this"
            if name in new[0]:
                reason = "the runs ask other prompts, check or judge them otherwise, or are judged against other answers"
            lines.append(
                Line(name, 0, 0, 0, Interval(0, 0, 0), margin, GateCode.other_prompts, note=reason)
            )
            continue
        line = by_name[name]
        if len(new) > 1:
            each = [
                compare_measure(name, before[name], run[name], margin, confidence)[
                    0
                ].difference.mean
                for run in new
            ]
            line = replace(line, seeds=(min(each), max(each)))
        lines.append(line)
        if name == PASSES and not note:
            lines += broken_tasks(before[name], after[name], margin, confidence)
    return without_verdicts(lines, note) if note else lines


def without_verdicts(lines: Sequence[Line], note: str) -> list[Line]:
    """Return the lines without what their tests came to. `note`: why nothing can be said; a line keeps its own."""
    return [
        replace(line, code=GateCode.cannot_tell, needed=None, note=line.note or note)
        for line in lines
    ]


def compare_measure(
    name: str, old: Rows, new: Rows, margin: float, confidence: float
) -> tuple[Line, float]:
    """Compare the values of the same units before and after: return whether the measure passes, with the p-value of the
    claim that it is worse."""
    # a judge may leave some out
    units = [unit for unit in old if math.isfinite(old[unit].value + new[unit].value)]
    if not units:
        return Line(name, 0, 0, 0, Interval(0, -1, 1), margin, GateCode.cannot_tell), 1.0
    values = pairs_of(old, new, units)
    before, after = map(float, values.mean(0))
    either_way = name == LENGTH  # a rise by the margin is as bad as a fall
    if either_way:
        margin, values = LENGTH_DRIFT, values / max(before, 1.0)
    shares = not either_way and bool(values.min() >= 0 and values.max() <= 1)
    drawn = name == FAVOURED  # its groups are prompts, of which one may have several pairs
    means = Means(values, [old[unit].group for unit in units], drawn, shares)
    change, alpha = means.difference(1, 0, confidence), (1 - confidence) / 2
    p_passes, p_worse = means.not_worse(1, 0, margin), means.not_worse(0, 1, 0.0, lowest=None)
    if either_way:
        p_passes = max(p_passes, means.not_worse(0, 1, margin))
        p_worse = min(means.not_worse(0, 1, -margin), means.not_worse(1, 0, -margin))
    if p_passes <= alpha:
        return Line(name, len(values), before, after, change, margin, GateCode.passes), p_worse
    room = margin + (-abs(change.mean) if either_way else change.mean)
    needed = prompts_needed(float(np.diff(values).var()), room, alpha, fall=float(shares))
    code = GateCode.cannot_tell
    return Line(name, len(values), before, after, change, margin, code, needed), p_worse


def mark_worse(tests: Sequence[tuple[Line, float]], confidence: float) -> list[Line]:
    """Return the lines: one that does not pass is worse if its p-value is at most its level among all."""
    levels = correction([p for _, p in tests], (1 - confidence) / 2)
    return [
        replace(line, code=GateCode.worse, needed=None)
        if line.code is GateCode.cannot_tell and p <= level
        else line
        for (line, p), level in zip(tests, levels, strict=True)
    ]


def broken_tasks(old: Rows, new: Rows, margin: float, confidence: float) -> list[Line]:
    """Return a line for each task that got worse by more than the margin, beyond chance."""
    tasks = dict[str, list[str]]()
    for unit, row in old.items():
        tasks.setdefault(row.group, []).append(unit)
    p_values = list[float]()
    for units in tasks.values():
        change = np.diff(pairs_of(old, new, units))
        gained, lost = int((change > 0).sum()), int((change < 0).sum())
        p_values.append(binomial_at_most(gained, gained + lost, 0.5) if lost > gained else 1.0)
    lines = list[Line]()
    tested = zip(p_values, correction(p_values, BROKEN), tasks.items(), strict=True)
    for p, level, (task, units) in sorted(tested):
        if p > level:
            continue
        before = {unit: old[unit] for unit in units}
        line, _ = compare_measure(f"task {task}", before, new, margin, confidence)
        if line.difference.mean < -margin:
            lines.append(replace(line, code=GateCode.worse, needed=None))
    return lines


def pairs_of(old: Rows, new: Rows, units: Sequence[str]) -> NDArray[np.float64]:
    return np.array([[old[unit].value, new[unit].value] for unit in units])


def outcome(lines: Sequence[Line]) -> GateCode:
    """Return the exit code: 2 if any measure cannot be compared, or there is none, else 1 if any is worse, else 3 if any
    is unclear."""
    codes = {line.code for line in lines} or {GateCode.other_prompts}
    return next(
        (
            code
            for code in (GateCode.other_prompts, GateCode.worse, GateCode.cannot_tell)
            if code in codes
        ),
        GateCode.passes,
    )


def needed(lines: Sequence[Line]) -> int | None:
    """Return the number of prompts at which no measure is unclear; None if none is, or if no number decides one."""
    numbers = [line.needed for line in lines if line.code is GateCode.cannot_tell]
    known = [number for number in numbers if number]
    return max(known) if numbers and len(known) == len(numbers) else None


def claim_of_all(lines: Sequence[Line], note: str = "") -> Claim:
    """Return the claim of a comparison: of all measures, those that decide it, or the number of prompts that would.
    `note`: why nothing can be said, or ''."""
    code = outcome(lines)
    figure = "" if note else figure_of_all(lines, code)
    return claims.gate(code, figure, f"{len(lines)} measures", note)


def figure_of_all(lines: Sequence[Line], code: GateCode) -> str:
    """Return the measures that decide a comparison, or the number of prompts that would. `code`: its outcome."""
    if code is GateCode.passes:
        return f"in {len(lines)} measures"
    number = needed(lines)
    if code is GateCode.cannot_tell and number:
        return decisive_number(number)
    return "; ".join(line.measure for line in lines if line.code is code)
