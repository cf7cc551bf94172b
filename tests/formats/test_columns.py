"""Columns that are read, named in a warning, refused, or mapped to a role by the user."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from stages.config.errors import UserError
from stages.formats.column_mapping import Purpose
from stages.formats.detection import PEEKED
from stages.store.digests import files_of
from tests.formats.reading import lines, read, summarize

ASK, REPLY = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
ALPACA = {"instruction": "a", "output": "b"}

CHANGING: list[tuple[dict[str, Any], str]] = [
    ({"prompt": "a", "completion": "b", "label": 0.5}, "label"),
    ({**ALPACA, "documents": ["c"]}, "documents"),
    ({**ALPACA, "Images": ["c.png"]}, "Images"),
    ({"question": "a", "A": "1", "answer": "b"}, "A"),
    ({"question": "a", "option_1": "1", "answer": "b"}, "option_1"),
    ({"messages": [{**ASK, "train": True}, REPLY]}, "messages.train"),
    ({"prompt": "a", "completion": {**REPLY, "weight": 0}}, "completion.weight"),
    ({"messages": [{**ASK, "name": "Ada"}, REPLY]}, "messages.name"),
    ({"messages": [ASK, REPLY], "feedback": "poor"}, "feedback"),
    ({"prompt": "a", "completion": "b", "chat_template_kwargs": {"x": 1}}, "chat_template_kwargs"),
]


@pytest.mark.parametrize(("row", "column"), CHANGING)
def test_a_column_that_changes_the_meaning_is_refused_by_name(
    row: dict, column: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"rows.jsonl: line 1: .* '{column}' changes") as raised:
        read(lines(tmp_path, [row]))
    name = column.rpartition(".")[2]
    assert f"data.sources[0].columns={{{name}: null}} to leave it out" in str(raised.value)
    assert summarize(read(lines(tmp_path, [row]), columns={name: None})) == [(["a"], ["b"], None)]


@pytest.mark.parametrize(
    ("row", "task"),
    [
        ({"text": "What a film.", "label": 0}, "sentiment"),
        ({"text": "Where is my card?", "category": "card_arrival"}, "intent"),
        ({"text": "Wake me at six.", "intent": "alarm"}, "intent"),
        ({"text": "It is so.", "label_text": "objective"}, "subjectivity"),
        ({"sentence": "It is so.", "label": "true"}, "fact_check"),
        ({"premise": "a", "hypothesis": "b", "label": "entailment"}, "nli"),
        ({"question1": "a", "question2": "b", "is_duplicate": 1}, "paraphrase"),
        ({"article": "a", "highlights": "b"}, "summarisation"),
    ],
)
def test_a_labelled_set_is_refused_with_the_tasks_that_fit(
    row: dict, task: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"labelled set. data.sources\[0\].task=TASK .*\b{task}\b"):
        read(lines(tmp_path, [row]))


@pytest.mark.parametrize(
    "other_columns", [{"code": "x"}, {"stars": 5}, {"parent_id": "1", "role": "prompter"}]
)
def test_text_of_some_task_is_no_running_text(other_columns: dict, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"no known columns among text, {', '.join(other_columns)}"):
        read(lines(tmp_path, [{"text": "a", **other_columns}]))
    assert read(
        lines(tmp_path, [{"text": "a", "url": "u", "token_count": 3, "meta": {"x": 1}}])
    ).parsed


def test_a_column_of_later_rows_is_read_or_refused_too(tmp_path: Path) -> None:
    result = read(lines(tmp_path, [ALPACA, {**ALPACA, "system": "s", "id": 3}]))
    assert summarize(result) == [(["a"], ["b"], None), (["s", "a"], ["b"], None)]
    assert [*result.unused_columns] == ["id"]
    with pytest.raises(UserError, match="line 301: the column 'image'"):
        read(lines(tmp_path, [*[ALPACA] * 300, {**ALPACA, "image": "c"}]))


def test_any_column_can_be_given_a_role(tmp_path: Path) -> None:
    rows = [
        {
            "frage": "a",
            "antworten": [{"text": "b"}, {"text": "c"}],
            "gut": {"x": [2, 1]},
            "input": "not this",
        }
    ]
    file = lines(tmp_path, rows)
    answer = {"prompt": "frage", "completion": "antworten.0.text", "input": None}
    assert summarize(read(file, columns=answer)) == [(["a"], ["b"], None)]
    several = {"prompt": "frage", "completions": "antworten.text", "scores": "gut.x", "input": None}
    assert summarize(read(file, Purpose.preferences, columns=several)) == [
        (["a"], ["b", "c"], [2, 1])
    ]
    listed = {**several, "scores": ["gut.x.1", "gut.x.0"]}
    assert summarize(read(file, Purpose.preferences, columns=listed)) == [
        (["a"], ["b", "c"], [1, 2])
    ]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"promt": "frage"}, "columns: 'promt' .* Did you mean 'prompt'"),
        ({"prompt": "fragen"}, r"prompt: fragen.*rows.jsonl has no such column.*: frage, antwort"),
        (
            None,
            r"no known columns among frage, antwort.*columns={prompt: COLUMN, completion: COLUMN}",
        ),
    ],
)
def test_unknown_columns_are_told_with_those_that_there_are(
    columns: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        read(lines(tmp_path, [{"frage": "a", "antwort": "b"}]), columns=columns)


def test_an_optional_column_that_no_row_has_is_refused_and_one_that_some_have_is_not(
    tmp_path: Path,
) -> None:
    """A column may first occur far below the rows from which a format is detected, or in one file of a folder."""
    named, rows = {"input": "kontext"}, [ALPACA] * (PEEKED + 1)
    with pytest.raises(
        UserError, match=r"sources\[0\].columns={input: kontext}: .*: instruction, output"
    ):
        read(lines(tmp_path, rows), columns=named)
    last = (["a\n\nc"], ["b"], None)
    assert (
        summarize(read(lines(tmp_path, [*rows, {**ALPACA, "kontext": "c"}]), columns=named))[-1]
        == last
    )
    (tmp_path / "rows.jsonl").rename(tmp_path / "other.jsonl")
    lines(tmp_path, rows)
    assert last in summarize(read(tmp_path, columns=named))


def test_requests_without_answers_are_refused_where_answers_are_needed(tmp_path: Path) -> None:
    file = lines(tmp_path, [{"prompt": "a", "reply": "b"}])
    with pytest.raises(UserError, match=r"columns are prompt, reply") as raised:
        read(file)
    assert "columns={completion: COLUMN}" in str(raised.value)
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
    (note := tmp_path / ".cache" / "huggingface" / "two.jsonl.metadata").parent.mkdir(parents=True)
    note.write_text("of the hub's client")
    assert summarize(read(tmp_path)) == [(["a"], ["b"], None)] * 2
    assert note not in files_of(tmp_path), "nor does it change the folder's digest"
    assert summarize(read(tmp_path / "t*.jsonl")) == [(["a"], ["b"], None)]


JUDGED: list[tuple[str, list[Any], str]] = [
    ("quality", ["good", "bad"], "quality"),
    ("helpfulness", [4, 1], "helpfulness"),
    ("helpfulness", [4.0, 1.0], "helpfulness"),
    ("scores", [{"helpfulness": 4}, {"helpfulness": 1}], "scores.helpfulness"),
    ("scores", ['{"gpt": 4, "n": 2}', '{"gpt": 1, "n": 2}'], "scores.gpt"),
    ("meta", [{"quality": "good"}, {"quality": "bad"}], "meta.quality"),
]


@pytest.mark.parametrize(("column", "values", "path"), JUDGED)
def test_what_says_how_good_an_answer_is_is_asked_about(
    column: str, values: list[Any], path: str, tmp_path: Path
) -> None:
    file = lines(
        tmp_path,
        [
            {"prompt": "a", "response": text, column: v}
            for text, v in zip("bc", values, strict=True)
        ],
    )
    with pytest.raises(UserError) as raised:
        read(file)
    message = str(raised.value)
    assert f".columns={{{column}: null}}" in message and f".columns={{label: {path}}}" in message
    words = re.search(r"\.labels={(.*?)}", message)
    assert words is not None
    first, second = (pair.removesuffix(": WORD") for pair in sorted(words[1].split(", ")))
    bad, good = (first, second)  # 1 and 4, or bad and good
    assert [each.answers for each in read(file, columns={column: None}).parsed] == [["b"], ["c"]]
    result = read(file, columns={"label": path}, labels={good: "true", bad: "false"})
    assert [each.scores for each in result.parsed] == [[1], [0]]


def test_a_score_that_never_varies_says_nothing(tmp_path: Path) -> None:
    file = lines(tmp_path, [{"prompt": "a", "response": "b", "score": 5}] * 2)
    assert [*read(file).unused_columns] == ["score"]
    assert read(lines(tmp_path, [{"text": t, "score": n} for n, t in enumerate("ab")])).parsed, (
        "of running text"
    )
    assert read(
        lines(tmp_path, [{"prompt": t, "score": n} for n, t in enumerate("ab")]), Purpose.prompts
    ).parsed


def test_a_bad_answer_that_comes_late_is_found(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "response": "b", "quality": "good"}] * PEEKED
    with pytest.raises(
        UserError,
        match=rf"line {PEEKED + 1}: the column 'quality' is 'bad'.*columns={{label: quality}}",
    ):
        read(lines(tmp_path, [*rows, {**rows[0], "quality": "bad"}]))


@pytest.mark.parametrize("values", [[0, 1], [-1, 1], ["no", "yes"]])
def test_labels_of_single_answers_that_nobody_knows_are_asked_for(
    values: list[Any], tmp_path: Path
) -> None:
    file = lines(tmp_path, [{"prompt": "a", "completion": "b", "label": value} for value in values])
    bad, good = map(str, values)
    with pytest.raises(
        UserError, match=rf"label holds {bad}, {good}, .*\.labels={{{bad}: WORD, {good}: WORD}}"
    ):
        read(file, Purpose.preferences)
    result = read(file, Purpose.preferences, labels={good: "true", bad: "false"})
    assert [each.scores for each in result.parsed] == [[0], [1]]


BAD_ANSWERS: list[tuple[dict[str, Any], str]] = [
    ({**ALPACA, "deleted": True}, "deleted"),
    ({**ALPACA, "status": "rejected"}, "status"),
    ({"prompt": "a", "response": "b", "is_safe": False}, "is_safe"),
    ({"messages": [ASK, REPLY], "is_correct": 0}, "is_correct"),
    ({"messages": [ASK, REPLY], "is_correct": 0.0}, "is_correct"),
    ({**ALPACA, "is_harmful": True}, "is_harmful"),
    ({**ALPACA, "passed": False}, "passed"),
]


@pytest.mark.parametrize(("row", "column"), BAD_ANSWERS)
def test_a_column_that_calls_an_answer_a_bad_one_is_refused(
    row: dict, column: str, tmp_path: Path
) -> None:
    good = {**row, column: not row[column]}
    file = lines(tmp_path, [good, row])
    with pytest.raises(UserError, match=rf"line 2: the column '{column}' is ") as raised:
        read(file)
    assert f"columns={{{column}: null}} to leave it out" in str(raised.value)
    assert len(read(file, columns={column: None}).parsed) == 2
    if not row[column]:
        assert f"columns={{label: {column}}} to read it" in str(raised.value)
        labels = {1: "true", 0: "false"} if isinstance(row[column], int | float) else {}
        result = read(file, columns={"label": column}, labels=labels)
        assert [each.scores for each in result.parsed] == [[1], [0]]


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"prompt": "a", "completion": "b", "reasoning": "on"}, "reasoning"),
        (
            {"messages": [ASK, REPLY], "deepseek_thinking_trajectory": "so"},
            "deepseek_thinking_trajectory",
        ),
        ({"dialogue": ["a", "b"], "speakers": ["Ada", "Bob"]}, "speakers"),
    ],
)
def test_a_switch_thoughts_of_another_name_and_speakers_are_refused(
    row: dict, column: str, tmp_path: Path
) -> None:
    file = lines(tmp_path, [row])
    with pytest.raises(
        UserError, match=rf"the column '{column}' .*columns={{{column}: null}} to leave it out"
    ):
        read(file)
    assert summarize(read(file, columns={column: None})) == [(["a"], ["b"], None)]


RIVALS: list[tuple[dict[str, Any], str, str]] = [
    ({"problem": "a", "solution": "so: b", "answer": "b"}, "answer", "solution"),
    ({"instruction": "Answer.", "question": "a", "output": "b"}, "instruction", "question"),
]


@pytest.mark.parametrize(("row", "one", "other"), RIVALS)
def test_two_columns_that_may_be_the_same_are_refused(
    row: dict, one: str, other: str, tmp_path: Path
) -> None:
    file = lines(tmp_path, [row])
    role = "completion" if "problem" in row else "prompt"
    with pytest.raises(UserError, match=f"both {one} and {other} may be the {role}") as raised:
        read(file)
    for column in (one, other):
        assert f"data.sources[0].columns={{{role}: {column}}}" in str(raised.value)
        [(messages, answers, _)] = summarize(read(file, columns={role: column}))
        assert row[column] == (answers if role == "completion" else messages)[0]
    assert read(lines(tmp_path, [{**row, other: row[one]}])).parsed


def test_two_of_several_answers_are_no_preference(tmp_path: Path) -> None:
    row = {"prompt": "a", "answer_1": "b", "answer_2": "c", "preference": 2}
    assert summarize(read(lines(tmp_path, [row]), Purpose.preferences)) == [
        (["a"], ["b", "c"], [0, 1])
    ]
    with pytest.raises(UserError, match="no known columns"):
        read(lines(tmp_path, [{**row, "answer_3": "d"}]), Purpose.preferences)


def test_a_negative_preference_is_nobodys(tmp_path: Path) -> None:
    file = lines(
        tmp_path,
        [{"prompt": "a", "response_1": "b", "response_2": "c", "preference": n} for n in (-1, 1)],
    )
    with pytest.raises(UserError, match=r" -1, 1, .*\.labels={-1: WORD, 1: WORD}"):
        read(file, Purpose.preferences)
    result = read(file, Purpose.preferences, labels={-1: "response_1", 1: "response_2"})
    assert [each.scores for each in result.parsed] == [[1, 0], [0, 1]]


def test_a_number_is_an_answer_where_numbers_are_checked(tmp_path: Path) -> None:
    file = lines(tmp_path, [{"question": "a", "answer": value} for value in (7, -0.5, True)])
    result = read(file, check="number")
    assert [each.answers for each in result.parsed] == [["7"], ["-0.5"]]
    assert "must be text, is bool" in str(result.bad_rows[0].error)
    assert len(read(file).bad_rows) == 3, "as they may be the names of classes"


def test_an_answer_that_is_a_flag_has_a_word(tmp_path: Path) -> None:
    file = lines(tmp_path, [{"question": "a", "answer": value} for value in (True, False)])
    result = read(file, labels={True: "yes", "false": "no"})
    assert [each.answers for each in result.parsed] == [["yes"], ["no"]]


def test_the_name_of_a_column_that_a_row_lacks_is_no_answer(tmp_path: Path) -> None:
    named = {"prompt": "q", "chosen": "answer_b", "rejected": "answer_a"}
    whole = {**named, "answer_a": "bad one", "answer_b": "good one"}
    result = read(lines(tmp_path, [whole, named, whole]), Purpose.preferences)
    assert [answers for _, answers, _ in summarize(result)] == [["good one", "bad one"]] * 2
    assert len(result.bad_rows) == 1
