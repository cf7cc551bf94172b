"""Many prompts: twice as many judgements take twice as long."""

import time
from pathlib import Path

import pytest

from stages import label
from stages.store.records import Judgement
from tests.rows import pool


@pytest.mark.extended
def test_judgements_are_admitted_in_linear_time(tmp_path: Path) -> None:
    """0.1 CPU-seconds; four where every candidate is looked for among all."""
    many = pool(*([f"{i} 1", "no"] for i in range(8000)))
    first, *others = many.candidates
    started = time.process_time()
    judgements = (Judgement(c.prompt_id, "l", c.candidate_id, score=1.0) for c in reversed(others))
    judged = [*label.complete_judgements(judgements, many, "l", tmp_path)]
    assert time.process_time() - started < 2.0
    failed = [j.candidate_id for _, group in judged for j in group if j.error]
    assert failed == [first.candidate_id]
