"""`stage=gate`: policies whose answers are the reference answers of generated prompts, with known faults."""

import json
import random
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from stages.cli.explain import explained
from stages.commands import gate
from stages.config.errors import UserError
from stages.config.exit_codes import GateCode
from stages.evaluation.measures import (
    ENDINGS,
    FILE,
    LENGTH,
    LOOPLESS,
    PASSES,
    Measure,
    measure_answers,
)
from stages.evaluation.noninferiority import by_measure, compare, outcome
from stages.evaluation.outcomes import tabulate
from stages.hardware import process
from stages.store.records import Candidate, Example, save
from stages.store.store import Store
from stages.tasks.generator import generate
from tests.helpers import TINY, Chain, as_published, inside, settings

# the share of prompts that a policy passes, and of those that a seed answers otherwise
RIGHT = 0.6
NOISE = 0.05
WRONG = "I think that this is a good question."
MARGIN = 0.05
CONFIDENCE = 0.95
Fault = Callable[[Example, str], str]


@cache
def prompts() -> tuple[Example, ...]:
    return tuple(generate(7, {"test": 1120}, []))


def right_or_wrong(e: Example, text: str) -> str:
    return text


def broken(e: Example, text: str) -> str:
    """The answers of a policy that has unlearnt one task."""
    return WRONG if e.task == prompts()[0].task else text


def refuses(e: Example, text: str) -> str:
    return "I'm sorry, but I can't help with that."


@cache
def measured(seed: int, fault: Fault = right_or_wrong, ends: bool = True) -> list[Measure]:
    """Return the measures of a policy that answers a fixed part of the prompts rightly, but for the seed's noise."""
    answers = {}
    for e in prompts():
        knows = random.Random(e.id).random() < RIGHT
        differs = random.Random(f"{e.id}/{seed}").random() < NOISE
        answer = Candidate.from_text(
            e.id, fault(e, e.reference or "" if knows != differs else WRONG), "p", "hf", 12
        )
        answer.finish_reason = "stop" if ends else "length"
        answers[e.id] = answer
    table = tabulate([*prompts()], {"policy": answers})
    return measure_answers([table], {PASSES: table}, answers)


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


def published(built: Path, root: Path, rows: list[Measure], **results: object) -> Path:
    """Publish these measures as the latest evaluation of a store."""
    original = Chain(built).folder("eval")
    folder = root / "eval" / original.name
    shutil.copytree(original, folder)
    save(folder / FILE, rows, Measure)
    content = json.loads((folder / "results.json").read_text()) | results
    (folder / "results.json").write_text(json.dumps(content))
    as_published(folder, FILE)
    as_published(folder, "results.json")
    (root / "latest").mkdir()
    (root / "latest" / "eval").symlink_to(Path("..") / "eval" / folder.name)
    return folder


def test_the_command_ends_with_the_code_and_writes_the_reasons(built: Path, tmp_path: Path) -> None:
    old = published(built, tmp_path / "old", measured(100))
    published(built, tmp_path / "same", measured(1))
    published(built, tmp_path / "worse", measured(1, broken))
    published(built, tmp_path / "other", measured(1), decoding={"max_new_tokens": 64})
    for name, expected in (("same", 0), ("worse", 1), ("other", 2)):
        ran = inside("stage=gate", f"outputs={tmp_path / name}", f"gate.against={old}")
        assert ran.returncode == expected, ran.stdout + ran.stderr
        content = json.loads((tmp_path / name / "gate.json").read_text())
        assert content["code"] == expected
        assert bool(content["reasons"]) == bool(expected)
        assert all(line["measure"].split()[0] in ran.stdout for line in content["lines"])
    (old / FILE).write_bytes(b"another content")
    damaged = inside("stage=gate", f"outputs={tmp_path / 'same'}", f"gate.against={old}")
    assert (damaged.returncode, FILE in damaged.stderr) == (2, True)
    assert not [*(tmp_path / "same").glob("gate.*")], (
        "an earlier comparison is not taken for this one"
    )


def test_evaluations_of_two_versions_are_not_compared(built: Path, tmp_path: Path) -> None:
    old, _ = (published(built, tmp_path / name, measured(1)) for name in ("old", "new"))
    manifest = json.loads((old / "manifest.json").read_text())
    (old / "manifest.json").write_text(json.dumps(manifest | {"version": manifest["version"] - 1}))
    ran = inside("stage=gate", f"outputs={tmp_path / 'new'}", f"gate.against={old}")
    assert (
        ran.returncode == 2 and "rebuild=eval" in ran.stdout and str(tmp_path / "old") in ran.stdout
    )


@pytest.mark.extended
def test_a_run_is_compared_with_itself_and_an_error_has_the_code_of_no_comparison(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fingerprint = chain.manifest("eval")["fingerprint"]
    policy = chain.manifest("dpo")["fingerprint"]
    report = chain.manifest("report")["fingerprint"]
    named = [
        gate.earlier_evaluations(Store(chain.root), each) for each in (fingerprint, policy, report)
    ]
    assert named == [[chain.folder("eval")]] * 3
    monkeypatch.setenv("HOME", str(chain.root.parent))
    assert gate.earlier_evaluations(Store(chain.root), f"~/{chain.root.name}")
    ran = inside("stage=gate", f"outputs={chain.root}", f"gate.against={fingerprint}")
    assert ran.returncode == GateCode.cannot_tell, ran.stderr
    assert f"Both sides are the evaluation {chain.folder('eval')}" in ran.stdout + ran.stderr
    lines = json.loads((chain.root / "gate.json").read_text())["lines"]
    assert {line["difference"]["mean"] for line in lines} == {0.0}
    missing = inside("stage=gate", f"outputs={chain.root}", "gate.against=ffffffffffff")
    assert (missing.returncode, "gate.against=ffffffffffff" in missing.stderr) == (2, True)
    with pytest.raises(UserError, match="is no evaluation or report"):
        gate.earlier_evaluations(Store(chain.root), str(chain.folder("sft")))
    with pytest.raises(UserError, match=r"gate\.against"):
        gate.run(settings(*TINY), Store(tmp_path), {}, [])


def test_an_unexpected_error_is_not_the_code_of_a_worse_policy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(process, "read_typed_arguments", lambda: ["stage=gate"])
    with pytest.raises(SystemExit) as end, explained():
        raise ZeroDivisionError("planted")
    assert end.value.code == GateCode.other_prompts
    assert "Traceback" in capsys.readouterr().err
