"""The audit's figures on real files: planted copies in full, evaluation prompts in a training set, no false alarm."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from stages.config.blocks.data import Audit, Source
from stages.curation.audit.contamination import HeldOut
from stages.curation.audit.gate import Auditor, held_out
from stages.formats.column_mapping import Wanted
from stages.formats.format import ParsedRow
from stages.formats.source_reading import ReadReport, convert
from tests.helpers import DATA

pytestmark = pytest.mark.skipif(not DATA.exists(), reason="the shared data is not here")

FILE = "preferences/alpaca_eval_candidates_shared.jsonl.gz"
EVALUATION = Source(str(DATA / FILE))


def rows(name: str, wanted: Wanted) -> list[ParsedRow]:
    return list(convert(Source(str(DATA / name)), "data.sources[0].path", lambda said: said, wanted, ReadReport()))


def contaminated(name: str, wanted: Wanted, *evaluation: Source) -> set[str]:
    """The evaluation prompts that stand in a file, by their places."""
    prompts = held_out(Audit(against=[*evaluation]))
    found = [prompts.found_in(turn["content"]) for said in rows(name, wanted) for turn in said.messages]
    return {match.name for match in found if match}


def test_copies_are_told_as_the_key_has_them() -> None:
    key = json.loads(Path(DATA / "dirty/malformed/KEY.json").read_text())["duplicates.jsonl"]
    auditor, codes = Auditor(["duplicate", "near_duplicate", "other_answer"], HeldOut()), Counter[str]()
    for i, said in enumerate(rows("dirty/malformed/duplicates.jsonl", Wanted.answers)):
        codes.update(auditor.findings(said, "sft").keys() or ["unique"])
        auditor.remember(said, "sft", str(i))
    assert codes == {
        "unique": key["unique"],
        "duplicate": key["exact_dup"],
        "near_duplicate": key["near_dup"],
        "other_answer": key["conflicting_output"],
    }


def test_evaluation_prompts_are_found_in_what_they_were_taken_from() -> None:
    """Prompts of the set `helpful_base` were taken from those dialogues; no other came from there as it is."""
    lines = [f"{DATA / FILE}:{i}" for i, _ in enumerate(rows(FILE, Wanted.prompts), 1)]
    assert contaminated(FILE, Wanted.prompts, EVALUATION) == {*lines}
    with gzip.open(DATA / FILE, "rt", encoding="utf-8") as file:
        sets = [json.loads(line)["dataset"] for line in file]
    taken = {line for line, name in zip(lines, sets, strict=True) if name == "helpful_base"}
    assert contaminated("preferences/hh_helpful_base_test.jsonl.gz", Wanted.preferences, EVALUATION) >= taken


def test_no_false_alarm_on_training_problems() -> None:
    tested = Source(str(DATA / "preferences/gsm8k_model_solutions_200.jsonl.gz"))
    turns = Source(str(DATA / "benchmarks/mt_bench_question.jsonl"), columns={"prompt": "turns.0"})
    assert not contaminated("benchmarks/gsm8k_train.jsonl.gz", Wanted.answers, EVALUATION, tested, turns)
