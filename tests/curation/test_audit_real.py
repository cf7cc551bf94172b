"""Audit results on real files: evaluation prompts in a training set, and no false alarm."""

import gzip
import json

import pytest

from stages.config.blocks.data import Audit, Source
from stages.curation.audit.auditor import held_out
from stages.formats.column_mapping import Purpose
from stages.formats.format import ParsedRow
from stages.formats.source_reading import ReadReport, convert
from tests.helpers import DATA

pytestmark = pytest.mark.skipif(not DATA.exists(), reason="the shared data is not here")

FILE = "preferences/alpaca_eval_candidates_shared.jsonl.gz"
EVALUATION = Source(str(DATA / FILE))


def rows(name: str, purpose: Purpose) -> list[ParsedRow]:
    return list(
        convert(
            Source(str(DATA / name)), "data.sources[0].path", lambda row: row, purpose, ReadReport()
        )
    )


def contaminated(name: str, purpose: Purpose, *evaluation: Source) -> set[str]:
    """Return the places of the evaluation prompts that a file contains."""
    prompts = held_out(Audit(against=[*evaluation]))
    matches = [
        prompts.find_in(turn["content"]) for row in rows(name, purpose) for turn in row.messages
    ]
    return {match.name for match in matches if match}


@pytest.mark.extended
def test_evaluation_prompts_are_found_in_what_they_were_taken_from() -> None:
    """Find the prompts of set `helpful_base`, which come from these dialogues, and no other prompt verbatim."""
    lines = [f"{DATA / FILE}:{i}" for i, _ in enumerate(rows(FILE, Purpose.prompts), 1)]
    assert contaminated(FILE, Purpose.prompts, EVALUATION) == {*lines}
    with gzip.open(DATA / FILE, "rt", encoding="utf-8") as file:
        sets = [json.loads(line)["dataset"] for line in file]
    expected = {line for line, name in zip(lines, sets, strict=True) if name == "helpful_base"}
    assert (
        contaminated("preferences/hh_helpful_base_test.jsonl.gz", Purpose.preferences, EVALUATION)
        >= expected
    )


def test_no_false_alarm_on_training_problems() -> None:
    tested = Source(str(DATA / "preferences/gsm8k_model_solutions_200.jsonl.gz"))
    turns = Source(str(DATA / "benchmarks/mt_bench_question.jsonl"), columns={"prompt": "turns.0"})
    assert not contaminated(
        "benchmarks/gsm8k_train.jsonl.gz", Purpose.answers, EVALUATION, tested, turns
    )
