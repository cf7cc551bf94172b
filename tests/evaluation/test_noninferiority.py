"""Measures of two policies: a fault is named, and neither noise nor the number of measures and tasks is one."""

from collections.abc import Sequence

import numpy as np
import pytest

from stages.config.exit_codes import GateCode
from stages.evaluation.measures import (
    ENDINGS,
    LENGTH,
    LOOPLESS,
    PASSES,
    Measure,
)
from stages.evaluation.noninferiority import by_measure, compare, outcome
from tests.evaluation.made_policies import (
    CONFIDENCE,
    MARGIN,
    NOISE,
    RIGHT,
    broken,
    measured,
    prompts,
    refuses,
)


def code(new: list[Measure], *seeds: list[Measure], old: Sequence[list[Measure]] = ()) -> GateCode:
    before = [by_measure(rows) for rows in old or [measured(100)]]
    return outcome(
        compare(before, [by_measure(rows) for rows in (new, *seeds)], MARGIN, CONFIDENCE)
    )


def test_another_seed_of_the_same_passes_and_a_fault_does_not() -> None:
    assert code(measured(0)) is GateCode.passes
    assert code(measured(0, broken)) is GateCode.worse
    assert code(measured(0, ends=False)) is GateCode.worse
    assert code(measured(0, refuses)) is GateCode.worse


def test_a_broken_task_is_named_although_the_mean_of_all_tasks_hardly_moves() -> None:
    old = by_measure(measured(100))
    new = by_measure(measured(100, broken))
    lines = {line.measure: line for line in compare([old], [new], MARGIN, CONFIDENCE)}
    assert lines[PASSES].code is GateCode.passes
    [task] = [name for name, line in lines.items() if line.code is GateCode.worse]
    assert task == f"task {prompts()[0].task}"
    assert lines[task].after < lines[task].before - 0.3


def test_many_measures_do_not_fail_an_equal_policy_more_often() -> None:
    draw = np.random.default_rng(0)
    ends = list[GateCode]()
    for _ in range(40):
        before = (draw.random((12, 100)) < RIGHT).astype(float)
        after = np.where(draw.random(before.shape) < NOISE, 1 - before, before)
        rows = [
            [
                Measure(str(i), str(j), "task", value)
                for i, line in enumerate(side.tolist())
                for j, value in enumerate(line)
            ]
            for side in (before, after)
        ]
        ends.append(
            outcome(compare([by_measure(rows[0])], [by_measure(rows[1])], MARGIN, CONFIDENCE))
        )
    assert ends.count(GateCode.worse) <= 3, "each measure by itself failed 11 of them"


def test_few_prompts_cannot_tell_and_enough_of_them_would() -> None:
    old = by_measure(measured(100))
    new = by_measure(measured(1))
    few = [*old[PASSES]][:60]
    before = {PASSES: {unit: old[PASSES][unit] for unit in few}}
    after = {PASSES: {unit: new[PASSES][unit] for unit in few}}
    [line] = compare([before], [after], MARGIN, CONFIDENCE)
    assert line.code is GateCode.cannot_tell
    assert line.needed is not None and len(few) < line.needed < len(prompts()), (
        "1,120 of them did tell"
    )


def test_a_length_may_drift_neither_up_nor_down() -> None:
    old = by_measure(measured(100))
    for factor, expected in (
        (1.0, GateCode.passes),
        (1.2, GateCode.passes),
        (1.5, GateCode.worse),
        (0.5, GateCode.worse),
    ):
        rows = [Measure(LENGTH, m.unit, m.group, m.value * factor) for m in old[LENGTH].values()]
        assert (
            outcome(compare([{LENGTH: old[LENGTH]}], [by_measure(rows)], MARGIN, CONFIDENCE))
            is expected
        )


def test_seeds_are_averaged_and_their_range_is_told() -> None:
    seeds = [by_measure(measured(seed)) for seed in range(3)]
    lines = compare([by_measure(measured(100))], seeds, MARGIN, CONFIDENCE)
    line = next(line for line in lines if line.measure == PASSES)
    assert line.seeds is not None
    assert line.seeds[0] < line.difference.mean < line.seeds[1]
    assert line.difference.mean == pytest.approx(line.after - line.before)


def test_other_prompts_or_a_measure_less_cannot_be_compared() -> None:
    rows = measured(0)
    fewer = [m for m in rows if m.unit != rows[0].unit]
    assert code(fewer) is GateCode.other_prompts
    assert code([m for m in rows if m.measure != LOOPLESS]) is GateCode.other_prompts
    assert (
        code(rows, old=[[m for m in measured(100) if m.measure != ENDINGS]]) is GateCode.passes
    ), "a new one is welcome"


def lost(n_lost: int, n_tasks: int) -> list[str]:
    """Return what is worse where the first of several tasks of 40 prompts has lost some, and nothing else changed."""
    rows = {"before": list[Measure](), "after": list[Measure]()}
    for task in range(n_tasks):
        for i in range(40):
            unit = f"{task}/{i}"
            after = 0.0 if task == 0 and i < n_lost else 1.0
            rows["before"].append(Measure(PASSES, unit, f"{task}", 1.0))
            rows["after"].append(Measure(PASSES, unit, f"{task}", after))
    old, new = by_measure(rows["before"]), by_measure(rows["after"])
    lines = compare([old], [new], MARGIN, CONFIDENCE)
    return [line.measure for line in lines if line.code is GateCode.worse]


def test_a_loss_that_one_task_alone_would_show_may_be_chance_among_many() -> None:
    """Noise alone may fail one gate in 1,000 by any of its tasks. The losses have p = 1.6%, 0.05% and 0.002%."""
    assert lost(6, 50) == []
    assert "task 0" in lost(11, 1)
    assert lost(11, 50) == []
    assert lost(16, 50) == ["task 0"]
