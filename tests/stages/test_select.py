"""Judged candidates become examples."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stages import select
from stages.config.blocks.pairs import Select
from stages.config.errors import UserError
from stages.labelers.labeler import Pool
from stages.labelers.verifier import VerifierLabeler
from stages.store.records import Candidate, Check, Example, Judgement, load, save
from tests import rows
from tests.helpers import TINY, refused, settings

GOOD = "Tides rise and fall because the moon pulls on the water of the sea."
LIKELIER = "The moon pulls on the sea, and so the tides rise and fall in it."


def prompt(name: str, task: str = "no_commas", reference: str | None = None) -> Example:
    request = f"Explain how the tides work, number {name}. Use no commas."
    checks = [Check("no_commas"), Check("on_topic", {"topics": [["tides"]]})]
    of_task = {"source": "open", "task": task, "split": "sft", "checks": checks}
    return rows.prompt(name, request, reference=reference, **of_task)


def answer(name: str, text: str, logprob: float = -20.0, finish_reason: str = "stop") -> Candidate:
    drawn = {"logprob": logprob, "finish_reason": finish_reason, "token_ids": None}
    return rows.candidate(name, text, 20, candidate_id=f"{name}/{text}/{logprob}", **drawn)


def judged(folder: Path, prompts: list[Example], candidates: list[Candidate]) -> dict[str, Path]:
    """A pool that the verifier has judged, and the data it comes from."""
    judgements = VerifierLabeler().judge_all(Pool(prompts, candidates))
    rows.save_pool(folder, prompts, candidates, [*judgements])
    answered = prompt("with", reference="Given.")
    tested = replace(prompt("test"), split="test")
    save(folder / "examples.parquet", [*prompts, answered, tested], Example)
    return {"judged": folder, "data": folder}


def run_select(
    folder: Path, inputs: dict[str, Path], **changes: Any
) -> tuple[dict[str, Example], dict[str, Any]]:
    cfg: Select = replace(settings(*TINY).select, validation_fraction=0.0, **changes)
    metrics = select.run(cfg, inputs, rows.work(folder))
    return {e.id: e for e in load(folder / "examples.parquet", Example)}, metrics


def test_the_likeliest_answer_that_passes_is_the_demonstration(tmp_path: Path) -> None:
    without_commas = LIKELIER.replace(",", "")
    pool = [
        answer("a", GOOD, -24.0),
        answer("a", without_commas, -22.0),
        answer("a", LIKELIER, -10.0),  # has a comma
        answer("a", GOOD + " It does", -9.0, "length"),
        answer("b", "Yes, no.", -20.0),
    ]
    inputs = judged(tmp_path / "pool", [prompt("a"), prompt("b")], pool)
    selected, metrics = run_select(tmp_path / "out", inputs)
    assert {name: e.reference for name, e in selected.items() if e.reference} == {
        "a": without_commas,
        "with": "Given.",
    }
    assert selected["a"].source == "selected"
    assert "test" in selected
    assert metrics["refused"] == {"scores below select.min_score": 2, "is not finished": 1}
    assert metrics["selected"] == 1


def test_an_answer_without_checks_is_not_mended(tmp_path: Path) -> None:
    """Nothing tells whether the mended answer is good: neither one that is truncated, nor one with a low score."""
    prompts = [replace(prompt(name), checks=[]) for name in "abc"]
    truncated = answer("a", GOOD + " It does", -20.0, "length")
    low = answer("b", GOOD)
    good = answer("c", GOOD)
    candidates = [truncated, low, good]
    judgements = [
        Judgement(each.prompt_id, "own", each.candidate_id, score)
        for each, score in zip(candidates, (0.9, 0.1, 0.9), strict=True)
    ]
    rows.save_pool(tmp_path / "pool", prompts, candidates, judgements)
    save(tmp_path / "pool" / "examples.parquet", prompts, Example)
    inputs = {"judged": tmp_path / "pool", "data": tmp_path / "pool"}
    selected, metrics = run_select(tmp_path / "out", inputs, min_score=0.5)
    assert {name: e.reference for name, e in selected.items()} == {"c": GOOD}
    assert metrics["mended"] == 0
    assert metrics["refused"].keys() == {"is not finished", "scores below select.min_score"}


def test_a_task_gets_as_many_as_it_may_and_none_is_an_error(tmp_path: Path) -> None:
    prompts = [prompt(f"p{i}") for i in range(4)]
    prompts += [prompt("other", task="other"), prompt("both", task="no_commas + bold_parts")]
    inputs = judged(tmp_path / "pool", prompts, [answer(p.id, GOOD) for p in prompts])
    selected, metrics = run_select(tmp_path / "out", inputs, max_per_task=2)
    tasks = [e.task for e in selected.values() if e.source == "selected"]
    assert sum("no_commas" in task for task in tasks) == 2, "a kind counts wherever it is asked for"
    assert "other" in tasks
    assert metrics["refused"] == {"is of a task that has enough": 3}
    none = judged(tmp_path / "none", [prompt("a")], [answer("a", "No, never.")])
    with pytest.raises(UserError, match=r"select.min_score"):
        run_select(tmp_path / "nothing", none)


@pytest.mark.parametrize(
    ("overrides", "pattern"),
    [
        (
            ["data.tasks.open_sft=40", "sft.demonstrations=given"],
            "open requests have no reference answers",
        ),
        (["sft.demonstrations=selected", "sft=none"], "Add sft=default"),
        (
            ["control=true", "sft.adapter=lora", "dpo.adapter=continued"],
            "control=true needs another dpo.adapter",
        ),
    ],
)
def test_what_cannot_be_selected_is_refused(overrides: list[str], pattern: str) -> None:
    assert pattern in refused(*TINY, *overrides)


def test_where_nothing_passes_form_is_mended_and_marked(tmp_path: Path) -> None:
    """What is right and ran out of tokens ends with its last whole sentence."""
    pool = [
        answer("a", LIKELIER),
        answer("b", "Nobody knows, really."),
        answer("c", GOOD + " It does", -9.0, "length"),
    ]
    inputs = judged(tmp_path / "pool", [prompt(name) for name in "abc"], pool)
    selected, metrics = run_select(tmp_path / "out", inputs, max_mended=4)
    mended = {name: e.reference for name, e in selected.items() if e.source == "mended"}
    assert mended == {"a": LIKELIER.replace(",", ""), "c": GOOD}
    assert metrics["mended"] == 2
