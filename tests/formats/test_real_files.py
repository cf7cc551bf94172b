"""Each file of the shared data is read correctly by its path, or with one more setting that its error names."""

import re
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
    "dirty/malformed/array_named_jsonl.jsonl": ALPACA,
    "dirty/malformed/bom_crlf.jsonl": ALPACA,
    "dirty/malformed/broken_lines.jsonl": ALPACA,
    "dirty/malformed/cp1252.jsonl": ALPACA,
    "dirty/malformed/duplicates.jsonl": ALPACA,
    "dirty/malformed/jsonl_named_json.json": ALPACA,
    "dirty/malformed/odd_unicode.jsonl": ALPACA,
    "dirty/malformed/quoted.csv": ALPACA,
    "dirty/malformed/wrong_types.jsonl": ALPACA,
    "formats/fastchat_dummy_conversation.json.gz": "conversations",
    "formats/lf_alpaca_en_demo.json.gz": ALPACA,
    "formats/lf_glaive_toolcall_en_demo.json.gz": "conversations",
    "formats/lf_identity.json": ALPACA,
    "formats/lf_kto_en_demo.json.gz": "messages",
    "formats/lf_reason_tool_use_50.jsonl.gz": "messages",
    "formats/lf_v1_sft_demo.jsonl.gz": "messages",
    "preferences/gsm8k_model_solutions_200.jsonl.gz": "question -> ground_truth",
    "preferences/rasbt_instruction_preference.json.gz": ALPACA,
    "pretrain/c4_demo.jsonl.gz": "-> text",
    "sft/alpaca_8k.jsonl.gz": ALPACA,
    "sft/alpaca_cleaned_first1000.jsonl.gz": ALPACA,
    "sft/code_alpaca_2k.jsonl.gz": ALPACA,
    "sft/dolly_filtered_3k.jsonl.gz": ALPACA,
    "sft/rasbt_instruction_data.json.gz": ALPACA,
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
        "dirty/alpaca_dirty_pairs.jsonl.gz",
        A,
        {
            "columns": {
                "prompt": "instruction_cleaned",
                "input": "input_cleaned",
                "completion": "output_cleaned",
            }
        },
        "Select two of the given topics",
        "Here is a paragraph",
    ),
    (
        "formats/alpaca_farm_multisamples_sft.json",
        A,
        {"columns": {"completion": "output.0"}},
        "Describe a",
        "I had to",
    ),
    (
        "formats/lf_dpo_en_demo.json.gz",
        A,
        {"columns": {"prompt": "conversations", "completion": "chosen", "rejected": None}},
        "Hi! I'd like to create a new language game",
        "That sounds like a fun",
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
        "pretrain/inaugural.txt.gz",
        A,
        {"documents": "sections"},
        "",
        "Fellow-Citizens of the Senate",
    ),
    (
        "pretrain/state_union.txt.gz",
        A,
        {"documents": "sections"},
        "",
        "PRESIDENT HARRY S. TRUMAN'S",
    ),
    ("pretrain/the_verdict.txt.gz", A, {"documents": "file"}, "", "I HAD always thought Jack"),
    ("pretrain/tinyshakespeare.txt.gz", A, {"documents": "paragraphs"}, "", "First Citizen:"),
    ("pretrain/wiki_demo.txt.gz", A, {"documents": "lines"}, "", "Anarchism is a political"),
    (
        "classic/banking77_train.csv.gz",
        A,
        {"task": "intent"},
        "I am still waiting on my card?",
        "card arrival",
    ),
    ("classic/creak_train.jsonl.gz", A, {"task": "fact_check"}, "Only people named Floyd", "false"),
    (
        "classic/rotten_tomatoes_polarity.jsonl.gz",
        A,
        {"task": "sentiment"},
        "the rock is destined",
        "positive",
    ),
]
# Files that are refused by their path alone, with a pattern of the setting in the message.
REFUSED: dict[str, str] = {
    "benchmarks/mt_bench_question.jsonl": r"columns=\{prompt: COLUMN",
    "benchmarks/mt_bench_reference_gpt4.jsonl": r"columns=\{prompt: COLUMN",
    "classic/banking77_train.csv.gz": r"task=TASK .*\bintent",
    "classic/creak_train.jsonl.gz": r"task=TASK .*\bfact_check",
    "classic/rotten_tomatoes_polarity.jsonl.gz": r"task=TASK .*\bsentiment",
    "dirty/alpaca_dirty_pairs.jsonl.gz": r"requests without answers.*columns=\{completion: COLUMN\}",
    "dirty/malformed/KEY.json": "one JSON object without rows.*an object with its texts",
    "dirty/malformed/empty.jsonl": "holds no rows",
    "dirty/malformed/only_blank_lines.jsonl": "holds no rows",
    "dirty/malformed/trailing_comma_array.json": "Mend the array",
    "formats/lf_dpo_en_demo.json.gz": r"label=dataset.*columns=\{completion: chosen, rejected: null\}",
    "formats/lf_v1_dpo_demo.jsonl": r"label=dataset.*columns=\{messages: chosen_messages, rejected: null\}",
    "preferences/alpaca_eval_candidates_shared.jsonl.gz": "label=dataset",
    "preferences/hh_helpful_base_test.jsonl.gz": r"label=dataset.*columns=\{messages: chosen, rejected: null\}",
    "preferences/llmbar_natural_neighbor.jsonl.gz": "label=dataset",
    "preferences/pandalm_human_pairs_shared.jsonl.gz": "label=dataset",
    "pretrain/inaugural.txt.gz": "documents",
    "pretrain/state_union.txt.gz": "documents",
    "pretrain/the_verdict.txt.gz": "documents",
    "pretrain/tinyshakespeare.txt.gz": "documents",
    "pretrain/wiki_demo.txt.gz": "documents",
    "sft/self_instruct_seed_tasks.jsonl": r"columns=\{completion: COLUMN\}",
}
NO_ROW = {  # all rows are unusable
    "classic/banking77_categories.json": "a row must be an object",
    "formats/alpaca_farm_multisamples_sft.json": r"holds 4 answers: type `columns: \{completion: output.0\}`",
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


def test_every_file_is_here() -> None:
    listed = {*BY_PATH, *PREFERENCES, *REFUSED, *NO_ROW, *(each[0] for each in WITH_A_LINE)}
    files_here = {str(path.relative_to(DATA)) for path in DATA.rglob("*") if path.is_file()}
    # Files in pains/ are read wrongly today.
    judged_here = {name for name in files_here if not name.startswith("pains/")}
    assert judged_here - {"MANIFEST.md"} == listed


@pytest.mark.parametrize("name", BY_PATH)
def test_a_file_is_read_rightly_by_its_path_alone(name: str) -> None:
    result, row = read(DATA / name), first(DATA / name)
    request, _, answered = BY_PATH[name].partition("->")
    each = result.parsed[0]
    if answered:
        assert each.answers[0].strip() == row[answered.strip()].strip()
        parts = [row[column] for column in request.split() if row.get(column)]
        assert each.messages[-1:] == (
            [{"role": "user", "content": "\n\n".join(parts)}] if parts else []
        )
    else:
        turns = [turn for turn in row[request] if turn.get("role") != "system"]
        here = [turn for turn in each.messages if turn["role"] != "system"]
        assert len(here) + 1 == len(turns)
        assert [
            spoken(turn)[:20] in message["content"]
            for turn, message in zip(turns, here, strict=False)
        ]
        assert spoken(turns) in each.answers[0]
    assert len(result.bad_rows) <= 0.01 * result.rows or "dirty" in name
    assert result.notes


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


def test_several_answers_with_scores_are_read_rightly() -> None:
    name = DATA / "preferences/alpaca_eval_candidates_shared.jsonl.gz"
    with pytest.raises(UserError, match=r"`columns: {scores: candidates.KEY}`"):
        read(name, P)
    each = read(name, P, columns={"scores": "candidates.gpt4turbo_winprob_vs_gpt4"}).parsed[0]
    row = first(name)["candidates"]
    assert each.answers == [candidate["output"] for candidate in row]
    assert each.scores == [candidate["gpt4turbo_winprob_vs_gpt4"] for candidate in row]
    models = [
        f"{size}_{kind}" for size in ("6b", "175b") for kind in ("finetuning", "verification")
    ]
    columns = {
        role: [f"{m}.{key}" for m in models]
        for role, key in (("completions", "solution"), ("scores", "is_correct"))
    }
    result = read(
        DATA / "preferences/gsm8k_model_solutions_200.jsonl.gz",
        P,
        columns={"prompt": "question", **columns},
    )
    assert (result.parsed[0].scores, len(result.bad_rows)) == ([0, 0, 0, 1], 0)


@pytest.mark.parametrize(("name", "purpose", "more", "prompt", "answer"), WITH_A_LINE)
def test_one_line_more_is_enough(
    name: str, purpose: Purpose, more: dict, prompt: str, answer: str
) -> None:
    result = read(DATA / name, purpose, **more)
    request, reply = (
        " ".join(turn["content"] for turn in result.parsed[0].messages),
        [*result.parsed[0].answers, ""][0],
    )
    if "task" in more:  # whose phrasing may ask for the text
        assert prompt in request + reply
        assert answer in request + reply
    else:
        assert prompt in request
        assert reply.startswith(answer)
    assert len(result.bad_rows) <= 0.01 * result.rows


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused_with_a_way_out(name: str) -> None:
    with pytest.raises(UserError, match=REFUSED[name]):
        read(DATA / name)


@pytest.mark.parametrize("name", NO_ROW)
def test_a_file_without_a_usable_row_says_why(name: str) -> None:
    result = read(DATA / name)
    assert not result.parsed
    assert all(re.search(NO_ROW[name], str(row.error)) for row in result.bad_rows)


@pytest.mark.parametrize("name", BAD_LINES)
def test_damaged_rows_are_found_and_no_others(name: str) -> None:
    result = read(DATA / "dirty/malformed" / name)
    assert [row.line for row in result.bad_rows] == BAD_LINES[name]
    assert result.rows == len(result.parsed) + len(result.bad_rows)


def test_a_bad_answer_is_nothing_to_learn_from() -> None:
    scores = [each.scores for each in read(DATA / "formats/lf_kto_en_demo.json.gz").parsed]
    labels = [row.value["label"] for row in files.rows_of(DATA / "formats/lf_kto_en_demo.json.gz")]
    assert scores == [[float(label)] for label in labels]
