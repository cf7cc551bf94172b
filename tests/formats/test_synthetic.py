"""Folders as libraries of synthetic data write them: their rows keep their models, and failed requests their reason."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset

from stages.config.blocks.labels import PreferenceDataset
from stages.config.errors import UserError
from stages.formats.column_mapping import Purpose
from stages.labelers.dataset import PreferenceDatasetLabeler
from stages.samplers.candidate_file import read_candidates
from tests.formats.reading import ReadResult, lines, read
from tests.helpers import settings
from tests.rows import work
from tests.stages.reading import joined

ASKED = [{"instruction": f"ask {i}"} for i in range(4)]
# as distilabel's GroupColumns joins two text generations
GROUPED = [
    {
        **row,
        "generations": ["short", f"long {i}"],
        "generation_models": ["small", "large"],
        "distilabel_metadata": {"raw_output_text_generation_0": ["short", f"long {i}"]},
    }
    for i, row in enumerate(ASKED)
]
RATED = [
    {**row, "ratings": [2, 5], "rationales": ["ok", "good"], "model_name": "judge"}
    for row in GROUPED
]
API_ERROR = "API Error: 400 - content policy"


def distiset(folder: Path, card: str = "tags: [distilabel]", **steps: list[Any]) -> Path:
    """Write tables as distilabel's `Distiset.save_to_disk` does."""
    for name, rows in steps.items():
        Dataset.from_list(rows).save_to_disk(folder / name)
    (folder / "distiset_configs").mkdir(parents=True)
    (folder / "distiset_configs/README.md").write_text(f"---\n{card}\n---\n# Card\n")
    (folder / "distiset_configs/pipeline.yaml").write_text("pipeline: {}\n")
    return folder


def curated(folder: Path) -> Path:
    """Write a run as curator does: the first request failed, and the parse function refused the third's response."""
    run = folder / "41a4b147483e2521"
    run.mkdir()
    (folder / "metadata.db").write_bytes(b"SQLite format 3\0")
    requests = list[Any]()
    responses = list[Any]()
    for i in range(3):
        messages = [{"role": "user", "content": f"ask {i}"}]
        row = {"original_row": {"question": f"ask {i}"}, "original_row_idx": i}
        requests.append({"model": "teacher", "response_format": None, "messages": messages} | row)
        said = {"response_message": f"reply {i}", "response_errors": None, "raw_response": None}
        responses.append({"generic_request": requests[i]} | said)
    responses[0] |= {"response_message": None, "response_errors": [API_ERROR]}
    files = {"requests_0": requests, "responses_0": responses, "failed_requests": requests[::2]}
    for name, rows in files.items():
        lines(run, rows).rename(run / f"{name}.jsonl")
    (run / "metadata_0.json").write_text('{"num_jobs": 3}\n')
    (run / "response.json").write_text('{"model_name": "teacher"}')
    table = pa.table({"question": ["ask 1"], "answer": ["reply 1"], "__original_row_idx": [1]})
    with pa.ipc.new_stream(run / "fa877bd27e435bb7.arrow", table.schema) as stream:
        stream.write_table(table)
    return folder


def designed(folder: Path) -> Path:
    """Write a data set as Data Designer does: one model asks, the other answers."""
    (folder / "parquet-files").mkdir(parents=True)
    for i in range(2):
        rows = [{"topic": "tides", "question": f"ask {i}", "answer": f"reply {i}"}]
        Dataset.from_list(rows).to_parquet(folder / f"parquet-files/batch_0000{i}.parquet")
    columns = [
        {"name": "topic", "column_type": "sampler"},
        {"name": "question", "column_type": "llm-text", "model_alias": "asker"},
        {"name": "answer", "column_type": "llm-text", "model_alias": "writer"},
    ]
    models = [{"alias": "asker", "model": "small"}, {"alias": "writer", "model": "large"}]
    config = {"data_designer": {"columns": columns, "model_configs": models}}
    (folder / "builder_config.json").write_text(json.dumps(config))
    (folder / "metadata.json").write_text('{"actual_num_records": 2, "target_num_records": 2}')
    return folder


def contents(result: ReadResult) -> list[tuple[str, list[str], list[str | None] | None]]:
    return [(row.messages[-1]["content"], row.answers, row.models) for row in result.parsed]


def test_ratings_keep_the_models_and_not_the_judge(tmp_path: Path) -> None:
    unrated = {**RATED[3], "ratings": [None, None]}
    result = read(distiset(tmp_path, uf=[*RATED[:3], unrated]), Purpose.preferences)
    assert contents(result) == [
        (f"ask {i}", ["short", f"long {i}"], ["small", "large"]) for i in range(3)
    ]
    assert [row.scores for row in result.parsed] == [[2.0, 5.0]] * 3
    assert len(result.bad_rows) == 1
    judged = [
        {"instruction": "ask", "generation": "reply", "feedback": "good", "model_name": "judge"}
    ]
    assert [row.models for row in read(lines(tmp_path, judged)).parsed] == [None]


def test_steps_are_not_read_as_one(tmp_path: Path) -> None:
    folder = distiset(tmp_path, text_generation_0=GROUPED, ultrafeedback_0=RATED)
    with pytest.raises(UserError, match=r"text_generation_0' or .*ultrafeedback_0'"):
        read(folder, Purpose.preferences)
    assert len(read(folder / "ultrafeedback_0", Purpose.preferences).parsed) == 4


def test_parsed_responses_are_read_in_place_of_raw_ones(tmp_path: Path) -> None:
    result = read(curated(tmp_path))
    assert contents(result) == [("ask 1", ["reply 1"], ["teacher"])]
    assert not result.unused_columns
    reasons = [row.error and row.error.reason for row in result.bad_rows]
    assert reasons[0] == API_ERROR and len(reasons) == 2


@pytest.mark.extra("human")
def test_models_reach_examples_candidates_and_judged_pools(tmp_path: Path) -> None:
    out = work(tmp_path)
    folder = distiset(tmp_path / "rated", "license: mit", uf=RATED)
    labeler = PreferenceDatasetLabeler(PreferenceDataset(path=str(folder)), out)
    pool = labeler.pool({})
    assert {(c.text[:5], c.policy) for c in pool.candidates} == {
        ("short", "small"),
        ("long ", "large"),
    }
    assert {prompt.licence for prompt in pool.prompts} == {"mit"}

    grouped = distiset(tmp_path / "grouped", g=GROUPED)
    cfg = settings("recipe=tiny", "sample=file", "label=human", f"sample.file={grouped}")
    _, candidates = read_candidates(cfg.sample, None, list, out)
    assert {(c.text[:5], c.policy) for c in candidates} == {("short", "small"), ("long ", "large")}

    source = settings("recipe=tiny", "data=file", f"data.path={designed(tmp_path / 'd')}").data
    metrics = joined(source, out)
    assert metrics["origins"] == {"large": 2}
