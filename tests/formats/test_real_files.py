"""Files of the shared data are read correctly by their paths, or refused with the setting that reads them."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from stages.config.errors import UserError
from stages.formats.column_mapping import Purpose
from stages.formats.readers import files
from tests.formats.reading import read
from tests.helpers import DATA

pytestmark = pytest.mark.skipif(not DATA.exists(), reason="the shared data is not here")
FIRST = 200  # rows of a file

# The columns of the last request and of the answer in the first row.
ALPACA = "instruction input -> output"
A = Purpose.answers
P = Purpose.preferences
Q = Purpose.prompts
BY_PATH: dict[str, str] = {
    "benchmarks/gsm8k_train.jsonl.gz": "question -> answer",
    "dirty/alpaca_dirty_classes.jsonl.gz": ALPACA,
    "dirty/malformed/bom_crlf.jsonl": ALPACA,
    "dirty/malformed/broken_lines.jsonl": ALPACA,
    "dirty/malformed/cp1252.jsonl": ALPACA,
    "dirty/malformed/jsonl_named_json.json": ALPACA,
    "dirty/malformed/odd_unicode.jsonl": ALPACA,
    "dirty/malformed/quoted.csv": ALPACA,
    "dirty/malformed/wrong_types.jsonl": ALPACA,
    "formats/lf_alpaca_en_demo.json.gz": ALPACA,
    "formats/lf_glaive_toolcall_en_demo.json.gz": "conversations",
    "formats/lf_reason_tool_use_50.jsonl.gz": "messages",
    "formats/lf_v1_sft_demo.jsonl.gz": "messages",
    "preferences/gsm8k_model_solutions_200.jsonl.gz": "question -> ground_truth",
    "pretrain/c4_demo.jsonl.gz": "-> text",
    "sft/alpaca_8k.jsonl.gz": ALPACA,
    "sft/dolly_filtered_3k.jsonl.gz": ALPACA,
}
# Files that are refused by their path alone, with a pattern of the setting in the message.
REFUSED: dict[str, str] = {
    "benchmarks/mt_bench_question.jsonl": r"columns=\{prompt: COLUMN",
    "classic/banking77_train.csv.gz": r"task=TASK .*\bintent",
    "classic/rotten_tomatoes_polarity.jsonl.gz": r"task=TASK .*\bsentiment",
    "dirty/malformed/empty.jsonl": "holds no rows",
    "dirty/malformed/trailing_comma_array.json": "Mend the array",
    "preferences/hh_helpful_base_test.jsonl.gz": r"label=dataset.*columns=\{messages: chosen, rejected: null\}",
    "pretrain/state_union.txt.gz": "documents",
    "sft/self_instruct_seed_tasks.jsonl": r"columns=\{completion: COLUMN\}",
}
# Lines of the malformed files that cannot be used, from KEY.json beside them.
BAD_LINES = {
    "broken_lines.jsonl": [31, 50, 51, 56, 73, 81],
    "cp1252.jsonl": [4, 18],
    "odd_unicode.jsonl": [21],
    "wrong_types.jsonl": [4, 6, 8, 10, 12, 16, 18, 20, 24, 26, 28, 30],
}


@pytest.fixture(autouse=True)
def first_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read only the first rows of each file."""
    whole = files.rows_of
    monkeypatch.setattr(
        files, "rows_of", lambda *args, **limits: islice(whole(*args, **limits), FIRST)
    )


def first(path: Path) -> dict[str, Any]:
    return next(row.value for row in files.rows_of(path, "file") if not row.error)


def spoken(value: Any) -> str:
    """Return the text of a column, or of its last turn."""
    if isinstance(value, list):
        return spoken(value[-1])
    if isinstance(value, dict):
        return spoken(value.get("value") or value.get("content"))
    return str(value).split("\n\nAssistant: ")[-1].strip()


@pytest.mark.parametrize("name", BY_PATH)
def test_a_file_is_read_rightly_by_its_path_alone(name: str) -> None:
    result = read(DATA / name)
    row = first(DATA / name)
    request, _, answered = BY_PATH[name].partition("->")
    each = result.parsed[0]
    if answered:
        assert each.answers[0].strip() == row[answered.strip()].strip()
        asked = [row[column] for column in request.split() if row.get(column)]
        assert [turn["content"] for turn in each.messages[-1:]] == ["\n\n".join(asked)] * bool(
            asked
        )
    else:
        turns = [turn for turn in row[request] if turn.get("role") != "system"]
        here = [turn for turn in each.messages if turn["role"] != "system"]
        assert len(here) + 1 == len(turns)
        assert spoken(turns) in each.answers[0]
    assert len(result.bad_rows) <= 0.01 * result.rows or "dirty" in name


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused_with_a_way_out(name: str) -> None:
    with pytest.raises(UserError, match=REFUSED[name]):
        read(DATA / name)


@pytest.mark.parametrize("name", BAD_LINES)
def test_damaged_rows_are_found_and_no_others(name: str) -> None:
    result = read(DATA / "dirty/malformed" / name)
    assert [row.line for row in result.bad_rows] == BAD_LINES[name]
    assert result.rows == len(result.parsed) + len(result.bad_rows)
