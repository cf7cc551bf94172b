"""Many prompts: labels, pairs and selected demonstrations hold no candidates, and twice as many take twice as long."""

import time
import tracemalloc
from pathlib import Path

import pytest

from stages import label, pairs, select
from stages.labelers.labeler import Pool
from stages.store.records import Candidate, Check, Example, Judgement, content_id, save
from tests.helpers import settings
from tests.stages.reading import work

TOKENS = 250
CFG = settings("recipe=tiny")


def prompt(i: int) -> Example:
    messages, checks = [{"role": "user", "content": f"ask {i}"}], [Check("contains", {"text": "1"})]
    return Example(content_id(i), messages, None, "s", "t", "preference", checks=checks)


def candidates(i: int) -> list[Candidate]:
    ids = [*range(2000, 2000 + TOKENS)]
    drawn = (
        ("p", "hf", 1.0, 0, f"{i} 1", ids, "stop", -9.0, TOKENS),
        ("p", "hf", 1.0, 0, "no", ids, "stop", -9.0, 9),
    )
    return [Candidate(content_id(i), content_id(i, j), *each) for j, each in enumerate(drawn)]


def peaks(folder: Path, count: int) -> list[int]:
    """The most that Python's objects take in each stage."""
    (folder / "data").mkdir(parents=True)
    save(folder / "data" / "examples.parquet", [], Example)
    save(folder / "prompts.parquet", map(prompt, range(count)), Example)
    save(folder / "candidates.parquet", (c for i in range(count) for c in candidates(i)), Candidate)
    highest, judged = list[int](), {"judged": folder / "label"}
    stages = {
        "label": (label.run, CFG.label, {"pool": folder}),
        "pairs": (pairs.run, CFG.pairs, judged),
        "select": (select.run, CFG.select, judged | {"data": folder / "data"}),
    }
    for name, (run, block, inputs) in stages.items():
        out = work(folder / name)
        tracemalloc.start()
        run(block, inputs, out)
        highest.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return highest


@pytest.mark.slow
def test_memory_grows_by_a_small_part_of_the_candidates(tmp_path: Path) -> None:
    """Hold token ids of a few hundred prompts at a time: Python integers take 72 bytes a token."""
    few, many = peaks(tmp_path / "few", 500), peaks(tmp_path / "many", 800)
    assert all((b - a) / 300 < 72 * TOKENS / 4 for a, b in zip(few, many, strict=True))


@pytest.mark.extended
def test_judgements_are_admitted_in_linear_time(tmp_path: Path) -> None:
    """0.1 CPU-seconds; four where every candidate is looked for among all."""
    all_candidates = [c for i in range(8000) for c in candidates(i)]
    pool = Pool([prompt(i) for i in range(8000)], all_candidates)
    started = time.process_time()
    judgements = (
        Judgement(c.prompt_id, "l", c.candidate_id, score=1.0) for c in reversed(all_candidates[1:])
    )
    judged = [*label.complete_judgements(judgements, pool, "l", tmp_path)]
    assert time.process_time() - started < 2.0
    assert [j.candidate_id for _, group in judged for j in group if j.error] == [
        all_candidates[0].candidate_id
    ]
