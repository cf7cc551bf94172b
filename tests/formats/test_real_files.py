"""Each file of the shared data is read correctly by its path, or with one more setting that its error names."""

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
A, P, Q = Purpose.answers, Purpose.preferences, Purpose.prompts
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
# The columns of the answers, the better first, and further settings.
PREFERENCES: dict[str, tuple[str, dict[str, Any]]] = {
    "formats/lf_dpo_en_demo.json.gz": ("chosen rejected", {}),
    "formats/lf_v1_dpo_demo.jsonl": ("chosen_messages rejected_messages", {}),
    "preferences/hh_helpful_base_test.jsonl.gz": ("chosen rejected", {}),
    "preferences/llmbar_natural_neighbor.jsonl.gz": ("output_1 output_2", {}),
    "preferences/pandalm_human_pairs_shared.jsonl.gz": ("response_2 response_1", {}),
    "preferences/rasbt_instruction_preference.json.gz": ("chosen rejected", {}),
    "dirty/alpaca_dirty_pairs.jsonl.gz": (
        "output_cleaned output_original",
        {"columns": {"chosen": "output_cleaned", "rejected": "output_original"}},
    ),
}
# A file that needs one more setting, and the beginnings of the last request and the answer in its first row.
WITH_A_LINE: list[tuple[str, Purpose, dict[str, Any], str, str]] = [
    (
        "benchmarks/mt_bench_question.jsonl",
        Q,
        {"columns": {"prompt": "turns.0"}},
        "Compose an engaging travel",
        "",
    ),
    (
        "preferences/hh_helpful_base_test.jsonl.gz",
        A,
        {"columns": {"messages": "chosen", "rejected": None}},
        "Do you know why turkeys",
        "To be honest",
    ),
    (
        "sft/self_instruct_seed_tasks.jsonl",
        A,
        {"columns": {"input": "instances.0.input", "completion": "instances.0.output"}},
        "Is there anything I can eat for a breakfast",
        "Yes, you can have 1 oatmeal",
    ),
    (
        "pretrain/state_union.txt.gz",
        A,
        {"documents": "sections"},
        "",
        "PRESIDENT HARRY S. TRUMAN'S",
    ),
]
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
    result, row = read(DATA / name), first(DATA / name)
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


@pytest.mark.parametrize("name", PREFERENCES)
def test_preferences_are_read_rightly(name: str) -> None:
    columns, more = PREFERENCES[name]
    result, row = read(DATA / name, P, **more), first(DATA / name)
    each = result.parsed[0]
    best_first = sorted(zip(each.scores or [], each.answers, strict=True), reverse=True)
    assert [answer.strip() for _, answer in best_first] == [
        spoken(row[column]) for column in columns.split()
    ]
    assert len(result.bad_rows) <= 0.1 * result.rows


@pytest.mark.parametrize(("name", "purpose", "more", "prompt", "answer"), WITH_A_LINE)
def test_one_line_more_is_enough(
    name: str, purpose: Purpose, more: dict, prompt: str, answer: str
) -> None:
    result = read(DATA / name, purpose, **more)
    first_row = result.parsed[0]
    assert prompt in " ".join(turn["content"] for turn in first_row.messages)
    assert "".join(first_row.answers).startswith(answer)
    assert len(result.bad_rows) <= 0.01 * result.rows


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused_with_a_way_out(name: str) -> None:
    with pytest.raises(UserError, match=REFUSED[name]):
        read(DATA / name)


@pytest.mark.parametrize("name", BAD_LINES)
def test_damaged_rows_are_found_and_no_others(name: str) -> None:
    result = read(DATA / "dirty/malformed" / name)
    assert [row.line for row in result.bad_rows] == BAD_LINES[name]
    assert result.rows == len(result.parsed) + len(result.bad_rows)


def test_a_bad_answer_is_nothing_to_learn_from() -> None:
    scores = [each.scores for each in read(DATA / "formats/lf_kto_en_demo.json.gz").parsed]
    labels = [row.value["label"] for row in files.rows_of(DATA / "formats/lf_kto_en_demo.json.gz")]
    assert scores == [[float(label)] for label in labels]
