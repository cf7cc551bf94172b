"""Candidates from a file (`sample.file`): every row is used, skipped and counted, or reported with its line."""

import json
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
    folder: Path, prompts: list[Example], rows: Rows, **changes: Any
) -> tuple[list[Candidate], StageDir]:
    _, candidates, out = read_both(folder, prompts, rows, **changes)
    return candidates, out


def read_both(
    folder: Path, data_prompts: list[Example], rows: Rows, **changes: Any
) -> tuple[list[Example], list[Candidate], StageDir]:
    file = folder / "mine.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    cfg = replace(CandidateFile(file=str(file), own_prompts=False), **changes)
    out = StageDir(folder, lambda metrics, step: None)
    allowed, later = (None, None) if cfg.own_prompts else (data_prompts, data_prompts[-1].id)
    prompts, candidates = read_candidates(
        cfg, allowed, lambda items: [p for p in items if p.id != later], out
    )
    assert {c.prompt_id for c in candidates} <= {p.id for p in prompts}
    return prompts, candidates, out


def request(prompt: Example) -> str:
    return prompt.messages[-1]["content"]


@pytest.mark.extended
def test_rows_in_every_form_become_candidates_and_what_is_left_out_is_told(
    sampled_prompts: list[Example], tmp_path: Path
) -> None:
    prompts = sampled_prompts
    a, b, c, *_, later = prompts
    rows: Rows = [
        {"messages": a.messages, "completions": ["one", "two", "one"], "model": "x"},
        {"prompt": request(b).upper(), "completions": [{"text": "three"}]},
        {"prompt": request(a), "completions": ["two", "four"]},
        {"prompt": request(later), "completions": ["of another round"]},
    ]
    candidates, out = read(tmp_path, sampled_prompts, rows)
    assert [(x.prompt_id, x.text) for x in candidates] == [
        (a.id, t) for t in ("one", "two", "four")
    ] + [(b.id, "three")]
    assert {(x.policy, x.sampler, x.token_ids, x.finish_reason) for x in candidates} == {
        ("mine.jsonl", "file", None, "stop")
    }
    assert [x.n_tokens for x in candidates] == [len(x.text.split()) for x in candidates], (
        "words are counted without a tokenizer"
    )
    assert sorted(out.warnings[1:]) == [
        "mine.jsonl: 1 rows were skipped: their prompts are not in this round",
        "mine.jsonl: 2 completions were skipped as copies",
        f"mine.jsonl: {len(prompts) - 3} prompts have no candidate in this file",
    ]
    assert out.warnings[0].endswith("columns model are not used")
    (tmp_path / "one").mkdir()
    single, _ = read(
        tmp_path / "one",
        sampled_prompts,
        [{"q": request(c), "completion": "x"}],
        columns={"prompt": "q"},
    )
    assert [(x.prompt_id, x.text) for x in single] == [(c.id, "x")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"completions": []}, "completions: is empty"),
        ({"completions": ["a", " "]}, "completions: is empty"),
        (
            {"completions": ["a", 7]},
            "completions: must be text, is int: type `labels: {7: WORD, …}` with the text of each answer",
        ),
        (
            {"prompt": "nobody asks this", "completions": ["a"]},
            "prompt: is not a sampled prompt of the data. Type sample=file sample.own_prompts=true to use the "
            "file's own prompts",
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
    assert str(error.value).startswith(f"{tmp_path / 'mine.jsonl'}: line 2: {message}. 1 of 2 rows")
    candidates, _ = read(tmp_path, sampled_prompts, rows, max_failed=0.5)
    assert len(candidates) == 1
    [bad] = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert bad["line"] == 2 and message == f"{bad['field']}: {bad['reason']}"


def test_a_files_own_prompts_are_used_once_with_their_licence(tmp_path: Path) -> None:
    rows: Rows = [
        {"prompt": "Name a colour.", "completions": ["red", "blue"], "terms": "cc0"},
        {"prompt": "Say hello.", "completions": ["Hello there."], "terms": "mit"},
        {"prompt": "name a  COLOUR.", "completions": ["green"], "terms": "mit"},
    ]
    changes = {"own_prompts": True, "columns": {"licence": "terms"}}
    prompts, candidates, out = read_both(tmp_path, [], rows, **changes)
    assert sorted((c.text, c.n_tokens, c.policy) for c in candidates) == [
        ("Hello there.", 2, "mine.jsonl"),
        *((colour, 1, "mine.jsonl") for colour in ("blue", "green", "red")),
    ]
    assert {(p.messages[-1]["content"], p.licence, p.source, p.split) for p in prompts} == {
        ("Name a colour.", "cc0", "mine.jsonl", "preference"),
        ("Say hello.", "mit", "mine.jsonl", "preference"),
    }
    assert not out.warnings


def test_a_file_without_candidates_is_reported(
    sampled_prompts: list[Example], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"question_id, text.*sample.columns=\{prompt: COLUMN"):
        read(tmp_path, sampled_prompts, [{"question_id": 1, "text": "a"}])
    with pytest.raises(
        UserError, match=r"sample\.file=.*no row answers a prompt of this round\..*sample\.columns"
    ):
        read(
            tmp_path, sampled_prompts, [{"prompt": request(sampled_prompts[-1]), "completion": "a"}]
        )
