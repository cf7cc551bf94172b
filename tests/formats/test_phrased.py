"""Labelled sets are written as instructions."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stages.config.errors import UserError
from stages.formats.phrased import MAX_OPTIONS, read_task
from stages.store import plugins
from tests.formats.reading import lines, read

# Rows for each ready-made task, with the columns of widely used data sets.
ROWS: dict[str, list[dict[str, Any]]] = {
    "classification": [
        {"text": f"text {i}", "label": ("sci_space", "rec_autos")[i % 2]} for i in range(40)
    ],
    "fact_check": [
        {
            "claim": f"claim {i}",
            "label": ("SUPPORTS", "REFUTES")[i % 2],
            "explanation": f"because {i}",
        }
        for i in range(40)
    ],
    "intent": [
        {"text": f"text {i}", "intent": f"intent_{'abcdefghijkl'[i % 12]}"} for i in range(40)
    ],
    "multiple_choice": [
        {
            "question": f"q {i}?",
            "choices": {"text": [f"a {i}", "other"], "label": ["A", "B"]},
            "answerKey": "AB"[i % 2],
        }
        for i in range(40)
    ],
    "nli": [
        {
            "premise": f"p {i}",
            "hypothesis": f"h {i}",
            "label": ("entailment", "neutral", "contradiction")[i % 3],
        }
        for i in range(40)
    ],
    "paraphrase": [
        {"sentence1": f"a {i}", "sentence2": f"b {i}", "label": i % 2 == 0} for i in range(40)
    ],
    "question_answering": [
        {
            "context": f"c {i}",
            "question": f"q {i}?",
            "answers": {"text": [f"a {i}", "other"], "answer_start": [0, 1]},
        }
        for i in range(40)
    ],
    "sentiment": [{"sentence": f"text {i}", "label": ("neg", "pos")[i % 2]} for i in range(40)],
    "subjectivity": [{"text": f"text {i}", "label": ("subj", "obj")[i % 2]} for i in range(40)],
    "summarisation": [{"article": f"long {i}", "highlights": f"short {i}"} for i in range(40)],
    "topic": [
        {"title": f"title {i}", "text": f"text {i}", "label": ("Sports", "World")[i % 2]}
        for i in range(40)
    ],
}


def test_every_ready_made_task_is_tried() -> None:
    assert sorted(ROWS) == plugins.label_task_names()
    assert len(ROWS) >= 8
    assert all(len(read_task(name)["phrasings"]) >= 5 for name in ROWS)


@pytest.mark.parametrize("task", ROWS)
def test_a_labelled_set_becomes_instructions(task: str, tmp_path: Path) -> None:
    result = read(lines(tmp_path, ROWS[task]), task=task)
    assert len(result.parsed) == 40
    texts = [f"{each.messages[0]['content']}\n{each.answers[0]}" for each in result.parsed]
    for row, text in zip(ROWS[task], texts, strict=True):
        numbers = {word.strip('".,?') for word in text.split() if word.strip('".,?').isdigit()}
        assert numbers <= {str(value).split()[-1].strip("?") for value in row.values()} | {
            "1",
            "2",
            "0",
        }
    # Several phrasings are drawn, and no template variable is left.
    assert len({text.split()[0] for text in texts}) > 2
    assert not any("{{" in text or "None" in text for text in texts)


def test_a_row_gets_the_same_phrasing_wherever_it_stands(tmp_path: Path) -> None:
    rows = ROWS["intent"]
    once = {str(each) for each in read(lines(tmp_path, rows), task="intent").parsed}
    assert {str(each) for each in read(lines(tmp_path, rows[::-1]), task="intent").parsed} == once


def test_options_hold_the_answer_and_others_of_the_whole_set(tmp_path: Path) -> None:
    # A file that is sorted by label shows the others only at its end.
    rows = sorted(ROWS["intent"] * 10, key=lambda row: row["intent"])
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
    file = lines(tmp_path, ROWS["sentiment"])
    plain, checked = (read(file, task="sentiment", check=check) for check in (None, "label"))
    assert {each.answers[0] for each in checked.parsed} == {"positive", "negative"}
    assert len({each.answers[0] for each in plain.parsed}) > 2


def test_labels_are_words_and_told(tmp_path: Path) -> None:
    file = lines(tmp_path, [{"text": f"text {i}", "label": i % 2} for i in range(20)])
    with pytest.raises(UserError, match=r"'[01]' .* data.sources\[0\].labels="):
        read(file, task="sentiment")
    decimals = lines(tmp_path, [{"text": f"text {i}", "label": float(i % 2)} for i in range(20)])
    result = read(decimals, task="sentiment", labels={0: "very bad", 1: "very good"})
    assert {each.answers[0] for each in result.parsed} >= {"very bad"} and not result.bad_rows
    result = read(file, task="sentiment", labels={0: "very bad", 1: "very good"})
    assert "2 labels: very bad, very" in result.notes[1]
    assert "2 labels share their first" in result.notes[2]


def test_columns_that_are_missing_are_told(tmp_path: Path) -> None:
    file = lines(tmp_path, [{"satz": "a", "label": "pos"}])
    with pytest.raises(UserError, match=r"task=sentiment .*columns={ROLE: COLUMN}"):
        read(file, task="sentiment")
    assert read(file, task="sentiment", columns={"text": "satz"}).parsed


CHOICES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"question": "q", "choices": ["x", "y", "z"], "answer": 1}, {}),  # MMLU
    ({"question": "q", "options": ["A) x", "B) y", "C) z"], "correct": "B"}, {}),  # AQuA
    # MedQA
    ({"question": "q", "options": {"A": "x", "B": "y"}, "answer": "y", "answer_idx": "B"}, {}),
    ({"article": "about", "question": "q", "options": ["x", "y"], "answer": "B"}, {}),  # RACE
    ({"question": "q", "context": "about", "answerA": "x", "answerB": "y", "answerC": "z", "label": "2"},
     {"options": ["answerA", "answerB", "answerC"]}),
    ({"question_stem": "q", "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}, "answerKey": "2"}, {}),
    ({"ctx": "q", "endings": ["x", "y", "z"], "label": "1"}, {}),  # HellaSwag
    ({"goal": "q", "sol1": "x", "sol2": "y", "label": 1}, {"options": ["sol1", "sol2"]}),
    ({"sentence": "q", "option1": "x", "option2": "y", "answer": "2"}, {"options": ["option1", "option2"]}),
    ({"question": "q", "distractor1": "x", "correct_answer": "y", "distractor2": "z"},
     {"options": ["distractor1", "distractor2", "correct_answer"]}),
]  # fmt: skip


@pytest.mark.parametrize(("row", "columns"), CHOICES)
def test_a_question_with_options_is_refused_with_the_line_that_reads_it(
    row: dict, columns: dict, tmp_path: Path
) -> None:
    rows = [row]
    key = "answer" if "answer" in row else "label"
    if str(row.get(key)).isdecimal():  # another row tells which number the first has
        options = columns.get("options", [])
        least = {"option1": 1, "answerA": 3}.get(options[0] if options else "", 0)
        rows = [row, {**row, key: type(row[key])(least)}]
    file = lines(tmp_path, rows)
    with pytest.raises(UserError, match=r"options .*task=multiple_choice") as raised:
        read(file)
    if columns:
        label = next(key for key in ("label", "answer", "correct_answer") if key in row)
        question = next(key for key in row if row[key] == "q")
        columns = {"question": question, **columns, "label": label}
        assert f"question: {question}" in str(raised.value)
    result = read(file, task="multiple_choice", columns=columns).parsed[0]
    assert result.answers == ["y"]
    assert all(
        word in result.messages[0]["content"]
        for word in ["q", "x", "y", *["about"] * ("about" in row.values())]
    )


@pytest.mark.parametrize(
    ("choices", "answer", "right"),
    [
        (["8", "2", "24", "120"], 2, "24"),
        (["1", "3", "5", "7"], 3, "7"),
        (["A", "B", "AB", "O"], "B", "B"),
        (["3", "5"], "5", "5"),
        (["3", "5"], 5, "5"),
    ],
)
def test_a_number_is_the_place_of_an_option_before_its_text(
    choices: list[str], answer: int | str, right: str, tmp_path: Path
) -> None:
    rows = [{"question": f"q{i}", "choices": choices, "answer": answer} for i in range(8)]
    first = {"question": "r", "choices": ["x", "y"], "answer": 0}
    parsed = read(lines(tmp_path, [first, *rows]), task="multiple_choice").parsed[1:]
    assert [row.answers[0] for row in parsed] == [right] * 8


def test_labels_that_are_none_are_kept_apart_and_lists_of_them_are_refused(tmp_path: Path) -> None:
    rows = [{"premise": f"p {i}", "hypothesis": "h", "label": i % 4 - 1} for i in range(12)]
    result = read(lines(tmp_path, rows), task="nli", labels={0: "yes", 1: "no", 2: "maybe"})
    assert [str(row.error) for row in result.bad_rows] == ["label: is -1: the row has no label"] * 3
    assert "3 labels: maybe, no, yes" in result.notes[1]
    file = lines(
        tmp_path, [{"text": "t", "label": ["joy"]}, {"text": "u", "label": ["joy", "rage"]}]
    )
    with pytest.raises(UserError, match=r"columns: {label: label.0}"):
        read(file, task="sentiment")
    assert "joy" in str(read(file, task="sentiment", columns={"label": "label.0"}).parsed[0])


def test_a_label_of_minus_one_with_a_word_is_an_option(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": i % 3 - 1} for i in range(60)]
    labels = {"-1": "negative", "0": "neutral", "1": "positive"}
    result = read(lines(tmp_path, rows), task="sentiment", labels=labels)
    assert "3 labels: negative, neutral, positive" in result.notes[1]


def test_options_in_a_cell_tell_the_number_of_the_first(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(
        "question,options,label\n"
        + "".join(f'q {i}?,"[""a{i}"", ""b{i}""]",{i % 2}\n' for i in range(4))
    )
    assert [row.answers[0][-2] for row in read(file, task="multiple_choice").parsed] == [
        "a",
        "b",
        "a",
        "b",
    ]


def test_what_an_annotator_rejected_is_no_label(tmp_path: Path) -> None:
    file = lines(
        tmp_path,
        [{"text": "t", "label": "POSITIVE", "answer": word} for word in ("accept", "reject")],
    )
    with pytest.raises(UserError, match=r"line 2: .*'answer' is 'reject'"):
        read(file, task="sentiment")


def test_as_many_labels_as_options(tmp_path: Path) -> None:
    options = {"text": ["x", "y"], "label": ["A", "B"]}
    rows = [{"question": f"q {i}?", "choices": options, "answerKey": "B"} for i in range(4)]
    rows[3]["choices"] = options | {"label": ["A", "B", "C"]}
    [bad] = read(lines(tmp_path, rows), task="multiple_choice").bad_rows
    assert "3 labels for 2 texts" in str(bad.error)
