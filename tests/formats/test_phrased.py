"""Labelled sets are written as instructions."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stages.config.errors import UserError
from stages.formats.phrased import MAX_OPTIONS, read_task
from stages.store import plugins
from tests.formats.reading import lines, read

# A row for each ready-made task, with the columns of widely used data sets. Its number stands in the place of #, and
# of a label's list each row has the next.
SHAPES: dict[str, dict[str, Any]] = {
    "classification": {"text": "text #", "label": ["sci_space", "rec_autos"]},
    "fact_check": {"claim": "claim #", "label": ["SUPPORTS", "REFUTES"], "explanation": "so #"},
    "intent": {"text": "text #", "intent": [f"intent_{letter}" for letter in "abcdefghijkl"]},
    "multiple_choice": {
        "question": "q #?",
        "choices": {"text": ["a #", "other"], "label": ["A", "B"]},
        "answerKey": ["A", "B"],
    },
    "nli": {
        "premise": "p #",
        "hypothesis": "h #",
        "label": ["entailment", "neutral", "contradiction"],
    },
    "paraphrase": {"sentence1": "a #", "sentence2": "b #", "label": [True, False]},
    "question_answering": {
        "context": "c #",
        "question": "q #?",
        "answers": {"text": ["a #", "other"], "answer_start": [0, 1]},
    },
    "sentiment": {"sentence": "text #", "label": ["neg", "pos"]},
    "subjectivity": {"text": "text #", "label": ["subj", "obj"]},
    "summarisation": {"article": "long #", "highlights": "short #"},
    "topic": {"title": "title #", "text": "text #", "label": ["Sports", "World"]},
}


def rows_of(task: str) -> list[dict[str, Any]]:
    rows = list[dict[str, Any]]()
    for i in range(40):
        row = json.loads(json.dumps(SHAPES[task]).replace("#", str(i)))
        for column in {"label", "intent", "answerKey"} & row.keys():
            row[column] = row[column][i % len(row[column])]
        rows.append(row)
    return rows


def test_every_ready_made_task_is_tried() -> None:
    assert sorted(SHAPES) == plugins.label_task_names()
    assert all(len(read_task(name)["phrasings"]) >= 5 for name in SHAPES)


@pytest.mark.parametrize("task", SHAPES)
def test_a_labelled_set_becomes_instructions(task: str, tmp_path: Path) -> None:
    result = read(lines(tmp_path, rows_of(task)), task=task)
    assert len(result.parsed) == 40
    texts = [f"{each.messages[0]['content']}\n{each.answers[0]}" for each in result.parsed]
    for i, text in enumerate(texts):
        assert re.search(rf"\b{i}\b", text), "the row's own text"
    assert len({text.split()[0] for text in texts}) > 2, "several phrasings are drawn"
    assert not any("{{" in text or "None" in text for text in texts)


def test_a_row_gets_the_same_phrasing_wherever_it_stands(tmp_path: Path) -> None:
    rows = rows_of("intent")
    once = {str(each) for each in read(lines(tmp_path, rows), task="intent").parsed}
    assert {str(each) for each in read(lines(tmp_path, rows[::-1]), task="intent").parsed} == once


def test_options_hold_the_answer_and_others_of_the_whole_set(tmp_path: Path) -> None:
    # A file that is sorted by label shows the others only at its end.
    rows = sorted(rows_of("intent") * 10, key=lambda row: row["intent"])
    seen = Counter[str]()
    for each in read(lines(tmp_path, rows), task="intent").parsed:
        options = [
            line[2:] for line in each.messages[0]["content"].splitlines() if line.startswith("- ")
        ]
        if options:
            assert each.answers[0] in options
            assert len(set(options)) == len(options) == MAX_OPTIONS
            seen.update(options)
    assert len(seen) == 12


def test_a_check_gets_no_inverted_phrasing(tmp_path: Path) -> None:
    file = lines(tmp_path, rows_of("sentiment"))
    plain, checked = (read(file, task="sentiment", check=check) for check in (None, "label"))
    assert {each.answers[0] for each in checked.parsed} == {"positive", "negative"}
    assert len({each.answers[0] for each in plain.parsed}) > 2


def test_labels_are_words_and_told(tmp_path: Path) -> None:
    file = lines(tmp_path, [{"text": f"text {i}", "label": i % 2} for i in range(20)])
    with pytest.raises(UserError, match=r"'[01]' .*data.sources\[0\].labels={0: .*, 1: "):
        read(file, task="sentiment")
    result = read(file, task="sentiment", labels={0: "very bad", 1: "very good"})
    assert "2 labels: very bad, very" in result.notes[1]
    assert "2 labels share their first" in result.notes[2]


def test_columns_that_are_missing_are_told(tmp_path: Path) -> None:
    file = lines(tmp_path, [{"satz": "a", "label": "pos"}])
    with pytest.raises(UserError, match=r"task sentiment .*columns={text: satz}"):
        read(file, task="sentiment")
    assert read(file, task="sentiment", columns={"text": "satz"}).parsed


CHOICES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"question": "q", "choices": ["x", "y", "z"], "answer": 1}, {}),  # MMLU
    ({"question": "q", "options": ["A) x", "B) y", "C) z"], "correct": "B"}, {}),  # AQuA
    # MedQA
    ({"question": "q", "options": {"A": "x", "B": "y"}, "answer": "y", "answer_idx": "B"}, {}),
    ({"question_stem": "q", "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}, "answerKey": "2"}, {}),
    ({"sentence": "q", "option1": "x", "option2": "y", "answer": "2"}, {"options": ["option1", "option2"]}),
    ({"question": "q", "distractor1": "x", "correct_answer": "y", "distractor2": "z"},
     {"options": ["distractor1", "distractor2", "correct_answer"]}),
]  # fmt: skip


@pytest.mark.parametrize(("row", "columns"), CHOICES)
def test_a_question_with_options_is_refused_with_the_line_that_reads_it(
    row: dict, columns: dict, tmp_path: Path
) -> None:
    rows = [row]
    first = {1: 0, "2": "1"}.get(row.get("answer", ""))
    if first is not None:  # another row tells which number the first has
        rows.append({**row, "answer": first})
    file = lines(tmp_path, rows)
    with pytest.raises(UserError, match=r"options .*task=multiple_choice"):
        read(file)
    if columns:
        question = "sentence" if "sentence" in row else "question"
        label = "answer" if "answer" in row else "correct_answer"
        columns = {"question": question, **columns, "label": label}
    parsed = read(file, task="multiple_choice", columns=columns).parsed[0]
    assert parsed.answers == ["y"]
    assert {"q", "x", "y"} <= {*re.findall(r"\w+", parsed.messages[0]["content"])}


def test_options_with_more_names_than_texts_are_a_bad_row(tmp_path: Path) -> None:
    good = {"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}
    short = good | {"choices": {"text": ["x"], "label": ["1", "2"]}}
    result = read(lines(tmp_path, [good, good, short]), task="multiple_choice")
    assert len(result.parsed) == 2
    [bad] = result.bad_rows
    assert "2 labels for 1 texts" in str(bad.error)


def test_labels_that_are_none_are_kept_apart_and_lists_of_them_are_refused(tmp_path: Path) -> None:
    rows = [{"premise": f"p {i}", "hypothesis": "h", "label": i % 4 - 1} for i in range(12)]
    labels = {0: "yes", 1: "no", 2: "maybe"}
    result = read(lines(tmp_path, rows), task="nli", labels=labels)
    assert [row.line for row in result.bad_rows] == [1, 5, 9]
    rows = [{"text": "t", "label": ["joy"]}, {"text": "u", "label": ["joy", "rage"]}]
    with pytest.raises(UserError, match=r"columns={label: label.0}"):
        read(lines(tmp_path, rows), task="sentiment")
