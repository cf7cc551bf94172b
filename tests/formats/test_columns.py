"""Columns that are read, named in a warning, refused, or mapped to a role by the user."""

import json
from pathlib import Path
from typing import Any

import pytest

from stages.config.errors import UserError
from stages.formats.column_mapping import Purpose
from tests.formats.reading import lines, read, summarize

ASK = {"role": "user", "content": "a"}
REPLY = {"role": "assistant", "content": "b"}
ALPACA = {"instruction": "a", "output": "b"}

CHANGING: list[tuple[dict[str, Any], str]] = [
    ({"prompt": "a", "completion": "b", "label": 0.5}, "label"),
    ({**ALPACA, "documents": ["c"]}, "documents"),
    ({"question": "a", "A": "1", "answer": "b"}, "A"),
    ({"prompt": "a", "completion": {**REPLY, "weight": 0}}, "completion.weight"),
    ({"messages": [{**ASK, "name": "Ada"}, REPLY]}, "messages.name"),
    ({"messages": [ASK, REPLY], "feedback": "poor"}, "feedback"),
    ({"prompt": "a", "completion": "b", "reasoning": "on"}, "reasoning"),
    (
        {"messages": [ASK, REPLY], "deepseek_thinking_trajectory": "so"},
        "deepseek_thinking_trajectory",
    ),
    ({"messages": [ASK, {**REPLY, "masked": False}]}, "messages.masked"),
]


@pytest.mark.parametrize(("row", "column"), CHANGING)
def test_a_column_that_changes_the_meaning_is_refused_by_name(
    row: dict, column: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"rows.jsonl: line 1: .*'{column}' ") as raised:
        read(lines(tmp_path, [row]))
    name = column.rpartition(".")[2]
    assert f"data.sources[0].columns={{{name}: null}}' to leave it out" in str(raised.value)
    assert summarize(read(lines(tmp_path, [row]), columns={name: None})) == [(["a"], ["b"], None)]


@pytest.mark.parametrize(
    ("row", "task"),
    [
        ({"text": "What a film.", "label": 0}, "sentiment"),
        ({"text": "Wake me at six.", "intent": "alarm"}, "intent"),
        ({"premise": "a", "hypothesis": "b", "label": "entailment"}, "nli"),
        ({"article": "a", "highlights": "b"}, "summarisation"),
    ],
)
def test_a_labelled_set_is_refused_with_the_tasks_that_fit(
    row: dict, task: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"labelled set.*data.sources\[0\].task={task}\b"):
        read(lines(tmp_path, [row]))


def test_a_column_of_later_rows_is_read_or_refused_too(tmp_path: Path) -> None:
    result = read(lines(tmp_path, [ALPACA, {**ALPACA, "system": "s", "id": 3}]))
    assert summarize(result) == [(["a"], ["b"], None), (["s", "a"], ["b"], None)]
    assert [*result.unused_columns] == ["id"]
    with pytest.raises(UserError, match="line 301: the column 'image'"):
        read(lines(tmp_path, [*[ALPACA] * 300, {**ALPACA, "image": "c"}]))


def test_any_column_can_be_given_a_role(tmp_path: Path) -> None:
    row = {"frage": "a", "antworten": [{"text": "b"}, {"text": "c"}], "gut": {"x": [2, 1]}}
    file = lines(tmp_path, [row])
    answer = {"prompt": "frage", "completion": "antworten.0.text"}
    assert summarize(read(file, columns=answer)) == [(["a"], ["b"], None)]
    several = {"prompt": "frage", "completions": "antworten.text", "scores": "gut.x"}
    result = read(file, Purpose.preferences, columns=several)
    assert summarize(result) == [(["a"], ["b", "c"], [2, 1])]
    listed = {**several, "scores": ["gut.x.1", "gut.x.0"]}
    assert read(file, Purpose.preferences, columns=listed).parsed[0].scores == [1, 2]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"promt": "frage"}, "columns: 'promt' .* Did you mean 'prompt'"),
        (
            {"prompt": "fragen"},
            r"prompt: fragen.*rows.jsonl has no such column.*columns={prompt: frage}",
        ),
        (
            None,
            r"no known columns among frage, antwort.*columns={prompt: frage, completion: antwort}",
        ),
    ],
)
def test_unknown_columns_are_told_with_those_that_there_are(
    columns: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        read(lines(tmp_path, [{"frage": "a", "antwort": "b"}]), columns=columns)


def test_requests_without_answers_are_refused_where_answers_are_needed(tmp_path: Path) -> None:
    file = lines(tmp_path, [{"prompt": "a", "reply": "b"}])
    with pytest.raises(UserError, match=r"columns are prompt, reply") as raised:
        read(file)
    assert "columns={completion: reply}" in str(raised.value)
    assert "splits={preference: 1.0}" in str(raised.value)
    assert summarize(read(file, Purpose.prompts)) == [(["a"], [], None)]
    assert summarize(read(file, columns={"completion": "reply"})) == [(["a"], ["b"], None)]


def test_a_format_can_be_chosen(tmp_path: Path) -> None:
    file = lines(tmp_path, [{**ALPACA, "chosen": "b", "rejected": "c"}])
    assert summarize(read(file)) == [(["a"], ["b"], None)]
    with pytest.raises(UserError, match="are preferences"):
        read(file, format="chosen_rejected")


def test_the_door_says_what_was_read_as_what(tmp_path: Path) -> None:
    result = read(lines(tmp_path, [{**ALPACA, "input": "c"}, ALPACA]))
    assert result.notes == [
        f"{tmp_path / 'rows.jsonl'}: 2 rows, read as {{prompt: instruction, input: input, completion: output}}. "
        "First row: user: a c | answer: b"
    ]


def test_rows_of_every_file_have_a_layout_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text(json.dumps(ALPACA))
    (tmp_path / "two.jsonl").write_text(json.dumps({"messages": [ASK, REPLY]}))
    (tmp_path / "README.md").write_text("# Files that are not data")
    (tmp_path / "dataset_info.json").write_text("{}")
    assert summarize(read(tmp_path)) == [(["a"], ["b"], None)] * 2
    assert summarize(read(tmp_path / "t*.jsonl")) == [(["a"], ["b"], None)]


JUDGED: list[tuple[str, list[Any], str]] = [
    ("quality", ["good", "bad"], "quality"),
    ("helpfulness", [4, 1], "helpfulness"),
    ("scores", [{"helpfulness": 4}, {"helpfulness": 1}], "scores.helpfulness"),
]


@pytest.mark.parametrize(("column", "values", "path"), JUDGED)
def test_what_says_how_good_an_answer_is_is_asked_about(
    column: str, values: list[Any], path: str, tmp_path: Path
) -> None:
    file = lines(tmp_path, [{"prompt": "a", "response": "b", column: value} for value in values])
    with pytest.raises(UserError, match=rf"\.columns={{label: {path}}}") as raised:
        read(file)
    assert f".columns={{{column}: null}}" in str(raised.value)
    assert len(read(file, columns={column: None}).parsed) == 2
    good, bad = ("good", "bad") if column == "quality" else ("4", "1")
    result = read(file, columns={"label": path}, labels={good: "true", bad: "false"})
    assert [each.scores for each in result.parsed] == [[1], [0]]


BAD_ANSWERS: list[tuple[dict[str, Any], str]] = [
    ({**ALPACA, "status": "rejected"}, "status"),
    ({"prompt": "a", "response": "b", "is_safe": False}, "is_safe"),
    ({"messages": [ASK, REPLY], "is_correct": 0}, "is_correct"),
    ({**ALPACA, "is_harmful": True}, "is_harmful"),
]


@pytest.mark.parametrize(("row", "column"), BAD_ANSWERS)
def test_a_column_that_calls_an_answer_a_bad_one_is_refused(
    row: dict, column: str, tmp_path: Path
) -> None:
    good = {**row, column: not row[column]}
    file = lines(tmp_path, [good, row])
    with pytest.raises(UserError, match=rf"line 2: the column '{column}' is ") as raised:
        read(file)
    assert f"columns={{{column}: null}}' to leave it out" in str(raised.value)
    assert len(read(file, columns={column: None}).parsed) == 2


RIVALS: list[tuple[dict[str, Any], str, str]] = [
    ({"problem": "a", "solution": "so: b", "answer": "b"}, "answer", "solution"),
    ({"instruction": "Answer.", "question": "a", "output": "b"}, "instruction", "question"),
]


@pytest.mark.parametrize(("row", "one", "other"), RIVALS)
def test_two_columns_that_may_be_the_same_are_refused(
    row: dict, one: str, other: str, tmp_path: Path
) -> None:
    role = "completion" if "problem" in row else "prompt"
    with pytest.raises(UserError, match=f"both {one} and {other} may be the {role}"):
        read(lines(tmp_path, [row]))
    for column in (one, other):
        [parsed] = read(lines(tmp_path, [row]), columns={role: column}).parsed
        assert row[column] in [parsed.messages[0]["content"], *parsed.answers]
    assert read(lines(tmp_path, [{**row, other: row[one]}])).parsed
