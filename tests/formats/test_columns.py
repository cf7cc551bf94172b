"""Columns that are read, named once, refused, or given a role by the user."""

import json
from pathlib import Path
from typing import Any

import pytest

from stages.config.blocks.data import Source
from stages.config.errors import UserError
from stages.formats.choosing import PEEKED
from stages.formats.layout import Wanted
from stages.formats.sources import Found, convert
from tests.formats.reading import lines, read, said
from tests.helpers import refused

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
    ({"messages": [ASK, REPLY], "feedback": "bad"}, "feedback"),
    ({"prompt": "a", "completion": "b", "chat_template_kwargs": {"x": 1}}, "chat_template_kwargs"),
]


@pytest.mark.parametrize(("row", "column"), CHANGING)
def test_a_column_that_changes_the_meaning_is_refused_by_name(row: dict, column: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"rows.jsonl: line 1: the column '{column}' changes") as raised:
        read(lines(tmp_path, [row]))
    name = column.rpartition(".")[2]
    assert f"data.sources[0].columns={{{name}: null}} leaves it out" in str(raised.value)
    assert said(read(lines(tmp_path, [row]), columns={name: None})) == [(["a"], ["b"], None)]


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
def test_a_labelled_set_is_refused_with_the_tasks_that_fit(row: dict, task: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"labelled set. data.sources\[0\].task=TASK .*\b{task}\b"):
        read(lines(tmp_path, [row]))


@pytest.mark.parametrize("beside", [{"code": "x"}, {"stars": 5}, {"parent_id": "1", "role": "prompter"}])
def test_text_of_some_task_is_no_running_text(beside: dict, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"no known columns among text, {', '.join(beside)}"):
        read(lines(tmp_path, [{"text": "a", **beside}]))
    assert read(lines(tmp_path, [{"text": "a", "url": "u", "token_count": 3, "meta": {"x": 1}}])).made


def test_a_set_with_questions_about_texts_may_be_phrased(tmp_path: Path) -> None:
    row = {"title": "t", "context": "c", "question": "q", "answers": {"text": ["a"], "answer_start": [0]}}
    with pytest.raises(UserError, match=r"requests without answers.*data.sources\[0\].task=question_answering"):
        read(lines(tmp_path, [row]))
    assert read(lines(tmp_path, [row]), task="question_answering").made


def test_a_column_of_later_rows_is_read_or_refused_too(tmp_path: Path) -> None:
    found = read(lines(tmp_path, [ALPACA, {**ALPACA, "system": "s", "id": 3}]))
    assert said(found) == [(["a"], ["b"], None), (["s", "a"], ["b"], None)]
    assert [*found.unused] == ["id"]
    with pytest.raises(UserError, match="line 301: the column 'image'"):
        read(lines(tmp_path, [*[ALPACA] * 300, {**ALPACA, "image": "c"}]))


def test_any_column_can_be_given_a_role(tmp_path: Path) -> None:
    rows = [{"frage": "a", "antworten": [{"text": "b"}, {"text": "c"}], "gut": {"x": [2, 1]}, "input": "not this"}]
    file = lines(tmp_path, rows)
    answer = {"prompt": "frage", "completion": "antworten.0.text", "input": None}
    assert said(read(file, columns=answer)) == [(["a"], ["b"], None)]
    several = {"prompt": "frage", "completions": "antworten.text", "scores": "gut.x", "input": None}
    assert said(read(file, Wanted.preferences, columns=several)) == [(["a"], ["b", "c"], [2, 1])]
    listed = {**several, "scores": ["gut.x.1", "gut.x.0"]}
    assert said(read(file, Wanted.preferences, columns=listed)) == [(["a"], ["b", "c"], [1, 2])]


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"promt": "frage"}, "'promt' is no role here. Did you mean 'prompt'"),
        ({"prompt": "fragen"}, r"prompt: fragen.*rows.jsonl has no such column. There are: frage, antwort"),
        (None, r"no known columns among frage, antwort.*columns={prompt: COLUMN, completion: COLUMN} names them"),
    ],
)
def test_unknown_columns_are_told_with_those_that_there_are(columns: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        read(lines(tmp_path, [{"frage": "a", "antwort": "b"}]), columns=columns)


def test_an_optional_column_that_no_row_has_is_refused_and_one_that_some_have_is_not(tmp_path: Path) -> None:
    """JSON lines may first have it far below the rows that a format is told by, and a folder in one file alone."""
    named, rows = {"input": "kontext"}, [ALPACA] * (PEEKED + 1)
    with pytest.raises(UserError, match=r"sources\[0\].columns={input: kontext}: .* There are: instruction, output"):
        read(lines(tmp_path, rows), columns=named)
    last = (["a\n\nc"], ["b"], None)
    assert said(read(lines(tmp_path, [*rows, {**ALPACA, "kontext": "c"}]), columns=named))[-1] == last
    (tmp_path / "rows.jsonl").rename(tmp_path / "other.jsonl")
    lines(tmp_path, rows)
    assert last in said(read(tmp_path, columns=named))


def test_requests_without_answers_are_refused_where_answers_are_needed(tmp_path: Path) -> None:
    file = lines(tmp_path, [{"prompt": "a", "reply": "b"}])
    with pytest.raises(UserError, match=r"requests without answers. The columns are prompt, reply") as raised:
        read(file)
    assert "columns={completion: COLUMN}" in str(raised.value)
    assert "splits={preference: 1.0}" in str(raised.value)
    assert said(read(file, Wanted.prompts)) == [(["a"], [], None)]
    assert said(read(file, columns={"completion": "reply"})) == [(["a"], ["b"], None)]


def test_a_format_can_be_chosen(tmp_path: Path) -> None:
    file = lines(tmp_path, [{**ALPACA, "chosen": "b", "rejected": "c"}])
    assert said(read(file)) == [(["a"], ["b"], None)]
    with pytest.raises(UserError, match="are preferences"):
        read(file, format="chosen_rejected")


def test_the_way_out_is_one_that_the_source_has(tmp_path: Path) -> None:
    """An evaluation's set has no splits, and no pairs are trained on."""
    file = lines(tmp_path, [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    chosen = "columns={completion: chosen, rejected: null} takes the chosen ones"
    with pytest.raises(UserError) as raised:
        read(tmp_path)
    assert f"label=dataset label.path={tmp_path} trains on them; data.sources[0].{chosen}" in str(raised.value)
    with pytest.raises(UserError) as raised:
        list(convert(Source(str(file)), "outside[0].path", lambda said: said, Wanted.answers, Found()))
    assert str(raised.value).endswith(f"answer to each request is wanted: outside[0].{chosen}.")


def test_a_format_that_cannot_be_is_refused_with_those_that_can(tmp_path: Path) -> None:
    file = lines(tmp_path, [ALPACA])
    with pytest.raises(UserError, match=r"sources\[0\].format=several: .*the formats of that are kto, chat, answered"):
        read(file, format="several")
    told = refused("stage=data", f"data.sources=[{{path: {file}, format: phrased}}]", f"outputs={tmp_path}")
    assert "data.sources[0].format=phrased: by which task? data.sources[0].task=TASK says it" in told
    assert "sentiment" in told


def test_the_door_says_what_was_read_as_what(tmp_path: Path) -> None:
    found = read(lines(tmp_path, [{**ALPACA, "input": "c"}, ALPACA]))
    assert found.told == [
        f"{tmp_path / 'rows.jsonl'}: 2 rows, read as {{prompt: instruction, input: input, completion: output}}. "
        "First row: user: a c | answer: b"
    ]


def test_rows_of_every_file_have_a_layout_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text(json.dumps(ALPACA))
    (tmp_path / "two.jsonl").write_text(json.dumps({"messages": [ASK, REPLY]}))
    (tmp_path / "README.md").write_text("# What stands beside data is none")
    (tmp_path / "dataset_info.json").write_text("{}")
    assert said(read(tmp_path)) == [(["a"], ["b"], None)] * 2
    assert said(read(tmp_path / "t*.jsonl")) == [(["a"], ["b"], None)]
