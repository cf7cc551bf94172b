"""Candidates from a file (`sample.file`): every row is used, skipped and counted, or reported with its line."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stages.config.blocks.sampling import CandidateFile
from stages.config.errors import UserError
from stages.samplers.candidate_file import read_candidates
from stages.store.records import Candidate, Example, load
from stages.store.store import Store
from stages.store.workspace import StageDir
from tests.helpers import nodes

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def sampled_prompts(built: Path) -> list[Example]:
    return load(Store(built).folder(nodes(built)["sample"]) / "prompts.parquet", Example)


def read(
    folder: Path, data_prompts: list[Example], rows: Rows, **changes: Any
) -> tuple[list[Example], list[Candidate], StageDir]:
    """Read rows as a file of candidates. The last prompt of the data is of another round."""
    file = folder / "mine.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    cfg = replace(CandidateFile(file=str(file), own_prompts=False), **changes)
    out = StageDir(folder, lambda metrics, step: None)

    def select_round(prompts: Iterable[Example]) -> list[Example]:
        return [p for p in prompts if not data_prompts or p.id != data_prompts[-1].id]

    allowed = None if cfg.own_prompts else data_prompts
    prompts, candidates = read_candidates(cfg, allowed, select_round, out)
    assert {c.prompt_id for c in candidates} <= {p.id for p in prompts}
    return prompts, candidates, out


def request(prompt: Example) -> str:
    return prompt.messages[-1]["content"]


@pytest.mark.extended
def test_rows_in_every_form_become_candidates_and_what_is_left_out_is_told(
    sampled_prompts: list[Example], tmp_path: Path
) -> None:
    a, b, *_, later = sampled_prompts
    rows: Rows = [
        {"messages": a.messages, "completions": ["one", "two", "one"], "model": "x"},
        {"prompt": request(b).upper(), "completions": [{"text": "three"}]},
        {"prompt": request(a), "completions": ["two", "four"]},
        {"prompt": request(later), "completions": ["of another round"]},
    ]
    _, candidates, out = read(tmp_path, sampled_prompts, rows)
    texts = [(x.prompt_id, x.text) for x in candidates]
    assert texts == [(a.id, "one"), (a.id, "two"), (a.id, "four"), (b.id, "three")]
    assert {(x.policy, x.sampler, x.token_ids, x.n_tokens) for x in candidates} == {
        ("mine.jsonl", "file", None, 1)
    }
    assert sorted(out.warnings[1:]) == [
        "mine.jsonl: 1 rows were skipped: their prompts are not in this round",
        "mine.jsonl: 2 completions were skipped as copies",
        f"mine.jsonl: {len(sampled_prompts) - 3} prompts have no candidate in this file",
    ]
    assert out.warnings[0].endswith("columns model are not used")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"completions": ["a", " "]}, "completions: is empty"),
        (
            {"prompt": "nobody asks this", "completions": ["a"]},
            "prompt: is not a sampled prompt of the data: type sample.own_prompts=true",
        ),
    ],
)
def test_a_row_that_cannot_be_used_is_told_with_its_line_and_may_be_quarantined(
    row: dict[str, Any], message: str, sampled_prompts: list[Example], tmp_path: Path
) -> None:
    good = {"prompt": request(sampled_prompts[0]), "completions": ["a"]}
    rows = [good, {"prompt": request(sampled_prompts[1]), **row}]
    with pytest.raises(UserError) as error:
        read(tmp_path, sampled_prompts, rows)
    assert str(error.value).startswith(f"{tmp_path / 'mine.jsonl'}: line 2: {message}")
    _, candidates, _ = read(tmp_path, sampled_prompts, rows, max_failed=0.5)
    assert len(candidates) == 1
    [bad] = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert bad["line"] == 2 and f"{bad['field']}: {bad['reason']}".startswith(message)


def test_a_files_own_prompts_are_used_once_with_their_licence(tmp_path: Path) -> None:
    rows: Rows = [
        {"prompt": "Name a colour.", "completions": ["red", "blue"], "terms": "cc0"},
        {"prompt": "Say hello.", "completions": ["Hello there."], "terms": "mit"},
        {"prompt": "name a  COLOUR.", "completions": ["green"], "terms": "mit"},
    ]
    columns = {"licence": "terms"}
    prompts, candidates, out = read(tmp_path, [], rows, own_prompts=True, columns=columns)
    texts = sorted((c.text, c.n_tokens) for c in candidates)
    assert texts == [("Hello there.", 2), ("blue", 1), ("green", 1), ("red", 1)]
    assert {(request(p), p.licence, p.source, p.split) for p in prompts} == {
        ("Name a colour.", "cc0", "mine.jsonl", "preference"),
        ("Say hello.", "mit", "mine.jsonl", "preference"),
    }
    assert not out.warnings
