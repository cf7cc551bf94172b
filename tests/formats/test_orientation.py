"""The better of two answers in a file of preferences is read from its columns, or an error asks for `labels`."""

from pathlib import Path
from typing import Any

import pytest

from stages.config.errors import UserError
from stages.config.override_text import override
from stages.formats.column_mapping import Purpose
from stages.formats.detection import PEEKED
from tests.formats.reading import ReadResult, lines, read

A = [1.0, 0.0]
B = [0.0, 1.0]
TIE = [0.5, 0.5]
# Columns of two answers, values of the preference, and the scores of each value. A number means the answer whose
# column has that number.
READ: list[tuple[str, str, list[Any], list[list[float]]]] = [
    ("response_1", "response_2", [1, 2], [A, B]),
    ("response1", "response2", [1.0, 1.5, 2.0], [A, TIE, B]),
    ("response_0", "response_1", [0, 1], [A, B]),
    ("response_a", "response_b", ["A", "B", "tie"], [A, B, TIE]),
    ("answer_a", "answer_b", ["model_a", "model_b", "tie (bothbad)"], [A, B, TIE]),
    ("output_1", "output_2", ["output_1", "output_2", "both"], [A, B, TIE]),
]
# Ambiguous values: 0 is the first answer in some data sets, a tie in others, and a bad answer in yet others.
ASKED: list[tuple[str, str, list[Any]]] = [
    ("response_1", "response_2", [0, 1]),
    ("response_1", "response_2", [True, False]),
    ("response_0", "response_1", [1, 2]),
]


def compared(folder: Path, a: str, b: str, values: list[Any], **source: Any) -> ReadResult:
    rows = [{"prompt": f"{i}", a: "b", b: "c c", "label": value} for i, value in enumerate(values)]
    return read(lines(folder, rows), Purpose.preferences, **source)


@pytest.mark.parametrize(("a", "b", "values", "scores"), READ)
def test_a_preference_names_an_answer_by_its_column(
    a: str, b: str, values: list[Any], scores: list[list[float]], tmp_path: Path
) -> None:
    result = compared(tmp_path, a, b, values)
    assert [each.scores for each in result.parsed] == scores
    assert result.notes[0].endswith("For example: user: 0 | better: b | worse: c c")
    assert f" was read as {a} better (1 rows)" in result.notes[1]


@pytest.mark.parametrize(("a", "b", "values"), ASKED)
def test_numbers_that_name_no_column_are_asked_for(
    a: str, b: str, values: list[Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as raised:
        compared(tmp_path, a, b, values)
    shown = sorted({str(value).lower().removesuffix(".0") for value in values})
    assert f"label holds {', '.join(shown)}," in str(raised.value)
    for first, second in (("left", "right"), ("right", "left")):
        words = {shown[0]: first, shown[1]: second}
        assert override("data.sources[0].labels", words) in str(raised.value)


def test_a_number_that_comes_late_is_asked_for_too(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=rf"line {PEEKED + 1}: label holds 0, 1, 2, .*\.labels={{0: left, 1: tie, 2: right}}",
    ) as raised:
        compared(tmp_path, "response 1", "response 2", [1, 2] * (PEEKED // 2) + [0])
    assert "rows.jsonl: line" in str(raised.value)


def test_every_kind_of_preferences_shows_what_is_better(tmp_path: Path) -> None:
    rows: list[tuple[dict[str, Any], str, str]] = [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "better: b | worse: c", ""),
        (
            {"prompt": "a", "responses": ["b", "c", "d"], "scores": [1, 3, 2]},
            "better (score 3): c | worse (score 1): b",
            "",
        ),
        ({"prompt": "a", "completions": ["b", "c"], "ranks": [2, 1]}, "better: c | worse: b", ""),
        (
            {"prompt": "a", "response_a": "b", "response_b": "c", "score_a": 1, "score_b": 2},
            "better: c | worse: b",
            "the higher of score_a and score_b was read as better",
        ),
        (
            {"prompt": "a", "completion": "b", "label": True},
            "answer (score 1): b",
            "true was read as a good answer",
        ),
    ]
    for row, example, remark in rows:
        result = read(lines(tmp_path, [row]), Purpose.preferences)
        assert result.notes[0].endswith(example)
        assert remark in "".join(result.notes[1:])
