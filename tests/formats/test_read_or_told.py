"""Shapes of files that are read with a note, or after the one setting that their error names."""

from pathlib import Path
from typing import Any

import pytest

from stages.config.errors import UserError
from stages.formats.column_mapping import Purpose
from tests.formats.reading import lines, read, summarize

ASK = {"role": "user", "content": "a"}
REFUSAL = {"role": "assistant", "content": None, "refusal": "I cannot."}
PARTS = [{"type": "refusal", "refusal": "I cannot."}]


@pytest.mark.parametrize("turn", [REFUSAL, {"role": "assistant", "content": PARTS}])
def test_a_refusal_is_the_answer(turn: dict[str, Any], tmp_path: Path) -> None:
    result = read(lines(tmp_path, [{"messages": [ASK, turn]}]))
    assert summarize(result) == [(["a"], ["I cannot."], None)]


def test_refusals_are_counted(tmp_path: Path) -> None:
    result = read(lines(tmp_path, [{"messages": [ASK, REFUSAL]}] * 3))
    assert any("3 turns are refusals" in note for note in result.notes)


@pytest.mark.parametrize("kind", ["image_url", "input_image", "image"])
def test_pictures_are_left_out_by_a_key_and_counted(kind: str, tmp_path: Path) -> None:
    content = [{"type": kind, kind: "x"}, {"type": "text", "text": "See."}]
    row = {"messages": [ASK, {"role": "assistant", "content": content}]}
    file = lines(tmp_path, [row, {"messages": [ASK, {"role": "assistant", "content": "b"}]}])
    assert "columns={image: null}" in str(read(file).bad_rows[0].error)
    result = read(file, columns={"image": None})
    assert [answers for _, answers, _ in summarize(result)] == [["See."], ["b"]]
    assert any("1 rows had parts that are left out (image)" in note for note in result.notes)


@pytest.mark.parametrize("word", ["N/A", "unrated", "", None, "nan"])
def test_an_answer_with_a_word_for_its_score_is_left_out_and_counted(
    word: str | None, tmp_path: Path
) -> None:
    row = {"prompt": "a", "completions": ["b", "c", "d"], "scores": [4, word, "1"]}
    result = read(lines(tmp_path, [row]), Purpose.preferences)
    assert summarize(result) == [(["a"], ["b", "d"], [4, 1])]
    assert any("1 answers without a score" in note for note in result.notes)


def test_a_score_that_is_part_of_a_number_costs_the_row(tmp_path: Path) -> None:
    row = {"prompt": "a", "completions": ["b", "c", "d"], "scores": [4, "3/5", 1]}
    assert "'3/5'" in str(read(lines(tmp_path, [row]), Purpose.preferences).bad_rows[0].error)


@pytest.mark.parametrize(
    ("chosen", "rejected", "messages", "answers"),
    [
        ("The lamp is useful.", "The lamp is a song.", ["The lamp is"], ["useful.", "a song."]),
        ("Is it used?", "Is it useful?", ["Is it"], ["used?", "useful?"]),
        ("A\n\n  b", "A\n\n  c", ["A"], ["\n\n  b", "\n\n  c"]),
    ],
)
def test_the_words_that_both_begin_with_are_the_prompt_if_the_format_says_so(
    chosen: str, rejected: str, messages: list[str], answers: list[str], tmp_path: Path
) -> None:
    file = lines(tmp_path, [{"chosen": chosen, "rejected": rejected}])
    with pytest.raises(UserError, match="format=implicit") as raised:
        read(file, Purpose.preferences)
    assert repr(messages[0]) in str(raised.value)
    [row] = summarize(read(file, Purpose.preferences, format="implicit"))
    assert row == (messages, answers, [1.0, 0.0])


@pytest.mark.parametrize(("first", "second"), [("left", "right"), ("right", "left")])
def test_numbers_on_both_sides_of_a_border_are_preferences(
    first: str, second: str, tmp_path: Path
) -> None:
    values = [-1.5, 0, 0.25, 3]
    rows = [
        {"prompt": f"{v}", "response_a": "b", "response_b": "c", "preference": v} for v in values
    ]
    labels = {"below 0": first, "0": "tie", "above 0": second}
    result = read(lines(tmp_path, rows), Purpose.preferences, labels=labels)
    low = 1.0 if first == "left" else 0.0
    scores = [(each.scores or [])[0] for each in result.parsed]
    assert scores == [low, 0.5, 1 - low, 1 - low]


def test_roles_of_another_language_are_read_once_labels_name_them(tmp_path: Path) -> None:
    turns = [{"role": "Nutzer", "content": "a"}, {"role": "Assistent", "content": "b"}]
    file = lines(tmp_path, [{"messages": turns}])
    assert "labels={Nutzer: user}" in str(read(file).bad_rows[0].error)
    result = read(file, labels={"Nutzer": "user", "Assistent": "assistant"})
    assert summarize(result) == [(["a"], ["b"], None)]


def test_roles_that_labels_name_decide_where_a_request_ends(tmp_path: Path) -> None:
    labels = {"Kunde": "user", "Berater": "assistant"}
    talk = [{"role": "Kunde", "content": "Hello?"}]
    file = lines(tmp_path, [{"messages": talk, "completion": "Hi."}] * 3)
    assert summarize(read(file, labels=labels)) == [(["Hello?"], ["Hi."], None)] * 3
    thought = {"role": "Berater", "channel": "analysis", "content": "so"}
    file = lines(tmp_path, [{"messages": [*talk, thought, {"role": "Berater", "content": "Hi."}]}])
    [(messages, answers, _)] = summarize(read(file, labels=labels))
    assert messages == ["Hello?"]
    assert answers == ["<think>\nso\n</think>\n\nHi."]


def test_near_names_are_never_read_on_a_guess(tmp_path: Path) -> None:
    file = lines(tmp_path, [{"customer_message": "a", "chosen": "b", "rejected": "c"}])
    with pytest.raises(UserError, match=r"columns={prompt: customer_message}"):
        read(file, Purpose.preferences)
    columns = {"prompt": "customer_message"}
    result = read(file, Purpose.preferences, columns=columns)
    assert summarize(result) == [(["a"], ["b", "c"], [1.0, 0.0])]


def test_names_that_no_list_has_are_guessed_in_their_order(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"質問": f"{n}?", "回答": f"{n}.", "分類": "x"} for n in range(4)]
    with pytest.raises(UserError, match=r'columns={prompt: "質問", completion: "回答"}'):
        read(lines(tmp_path, rows))
    pairs = [{"вопрос": f"{n}?", "это": f"{n}.", "иное": "Нет."} for n in range(5)]
    names = 'prompt: "вопрос", chosen: "это", rejected: "иное"'
    with pytest.raises(UserError, match=rf"columns={{{names}}}"):
        read(lines(tmp_path, pairs), Purpose.preferences)


SCORES: list[tuple[dict[str, Any], str]] = [
    ({"completions": ["b", "c"], "elo": [1300, 900]}, "elo"),
    ({"completions": ["b", "c"], "tokens": [3, 4], "meta": {"votes": ["7", "N/A"]}}, "meta.votes"),
    (
        {
            "completions": [
                {"response": text, "annotations": {"honesty": {"Rating": rating}}}
                for text, rating in (("b", "5"), ("c", "1"))
            ]
        },
        "completions.annotations.honesty.Rating",
    ),
]


@pytest.mark.parametrize(("row", "path"), SCORES)
def test_numbers_that_may_be_the_scores_of_answers_are_offered(
    row: dict[str, Any], path: str, tmp_path: Path
) -> None:
    file = lines(tmp_path, [{"prompt": f"a{n}", **row} for n in range(3)])
    with pytest.raises(UserError) as refusal:
        read(file, Purpose.preferences)
    assert f"columns={{scores: {path}}}" in str(refusal.value)
    assert f"columns={{ranks: {path}}}" in str(refusal.value)
    assert read(file, Purpose.preferences, columns={"ranks": path}).rows == 3


def test_several_rejected_columns_are_as_many_pairs(tmp_path: Path) -> None:
    row = {"prompt": "a", "chosen": "b", "rejected_1": "c", "rejected_2": "d"}
    with pytest.raises(UserError, match=r"columns={rejected: \[rejected_1, rejected_2\]}"):
        read(lines(tmp_path, [row]), Purpose.preferences)
    columns = {"rejected": ["rejected_1", "rejected_2"]}
    result = read(lines(tmp_path, [row]), Purpose.preferences, columns=columns)
    assert summarize(result) == [(["a"], ["b", "c", "d"], [1.0, 0.0, 0.0])]
