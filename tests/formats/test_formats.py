"""Each format is detected from the columns of its rows."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.config.errors import UserError
from stages.formats.column_mapping import Purpose
from stages.formats.readers.row import BadRow
from stages.formats.turns import TOOLS, TurnReader
from tests.formats.reading import lines, read, summarize

ASK, REPLY = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
THINKING = {**REPLY, "content": "<think>\nso\n</think>\n\nb"}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
CALLED = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
TOOL = {"type": "function", "function": {"name": "f"}}
TOLD = TOOLS.format('{"type": "function", "function": {"name": "f"}}')
PARTS = [
    {"type": "reasoning", "value": "so"},
    {"type": "tool_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
]

# A row, the contents of its messages, the answer.
EXAMPLES: list[tuple[dict[str, Any], list[str], str]] = [
    # Alpaca, Dolly
    ({"instruction": "Add.", "input": "1 2", "output": "3"}, ["Add.\n\n1 2"], "3"),
    (
        {"instruction": "c", "output": "d", "system": "s", "history": [["a", "b"]]},
        ["s", "a", "b", "c"],
        "d",
    ),
    (
        {"instruction": "c", "output": "d", "system": " ", "history": None, "tools": "[]"},
        ["c"],
        "d",
    ),
    ({"instruction": "c", "context": "e", "response": "d"}, ["c\n\ne"], "d"),
    # prompt and completion, question and answer, and how others call them
    ({"prompt": "a", "completion": "b"}, ["a"], "b"),
    ({"prompt": [ASK], "completion": [REPLY]}, ["a"], "b"),
    ({"question": "a", "answer": "b"}, ["a"], "b"),
    ({"context": "e", "question": "a", "answer": "b"}, ["a\n\ne"], "b"),
    ({"system_prompt": "s", "question": "a", "response": "b"}, ["s", "a"], "b"),
    ({"Prompt": "a", "Response": "b"}, ["a"], "b"),
    ({"query": "a", "response": "b"}, ["a"], "b"),
    ({"inputs": "a", "targets": "b"}, ["a"], "b"),
    ({"problem": "a", "solution": "b"}, ["a"], "b"),
    (
        {"prompt": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:", "response": "d"},
        ["a", "b", "c"],
        "d",
    ),
    ({"prompt": "a", "completion": "b", "reasoning": "so"}, ["a"], "<think>\nso\n</think>\n\nb"),
    (
        {
            "prompt": "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n",
            "completion": "b<|im_end|>\n",
        },
        ["a"],
        "b",
    ),
    ({"prompt": "a", "completion": "b</s>"}, ["a"], "b"),
    (
        {"prompt": "How does an s element end?", "completion": "</s>"},
        ["How does an s element end?"],
        "</s>",
    ),
    ({"prompt": "System: a", "completion": "b"}, ["System: a"], "b"),
    # messages, ShareGPT, transcripts
    ({"messages": [ASK, REPLY]}, ["a"], "b"),
    (
        {"messages": '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]'},
        ["a"],
        "b",
    ),
    ({"messages": [ASK, REPLY], "system": "s"}, ["s", "a"], "b"),
    (
        {"messages": [{**ASK, "loss_weight": 0.0, "tool_calls": None}, {**REPLY, "train": True}]},
        ["a"],
        "b",
    ),
    (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        ["a"],
        "b",
    ),
    ({"text": "### Human: a\n### Assistant: b"}, ["a"], "b"),
    ({"text": "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"}, ["a"], "b"),
    ({"messages": "\n\nHuman: a\n\nAssistant: b"}, ["a"], "b"),
    # tools and reasoning
    (
        {"messages": [ASK, {**REPLY, "reasoning_content": "so"}]},
        ["a"],
        "<think>\nso\n</think>\n\nb",
    ),
    ({"messages": [ASK, {**THINKING, "reasoning_content": "so"}]}, ["a"], THINKING["content"]),
    ({"messages": "USER: a ASSISTANT: b</s>USER: c ASSISTANT: d</s>"}, ["a", "b", "c"], "d"),
    (
        {
            "messages": [
                ASK,
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "1", "name": "f", "content": "2"},
                REPLY,
            ],
            "tools": [TOOL],
        },
        [TOLD, "a", CALLED, "2"],
        "b",
    ),
    (
        {"messages": [ASK, {"role": "assistant", "content": PARTS}]},
        ["a"],
        f"<think>\nso\n</think>\n\n{CALLED}",
    ),
    (
        {
            "conversations": [
                {"from": "human", "value": "a"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                {"from": "observation", "value": "2"},
                {"from": "gpt", "value": "b"},
            ],
            "tools": '[{"type": "function", "function": {"name": "f"}}]',
            "system": "s",
        },
        [f"s\n\n{TOLD}", "a", CALLED, "2"],
        "b",
    ),
    ({"conversations": ["a", "b", "c", "d"]}, ["a", "b", "c"], "d"),
    (
        {"conversation": [{"input": "a", "output": "b"}, {"input": "c", "output": "d"}]},
        ["a", "b", "c"],
        "d",
    ),
    # turns in other notations
    ({"messages": [json.dumps(ASK), json.dumps(REPLY)]}, ["a"], "b"),
    ({"messages": [str(ASK), str(REPLY)]}, ["a"], "b"),
    ({"messages": {"role": ["user", "assistant"], "content": ["a", "b"]}}, ["a"], "b"),
    ({"messages": ["user: a", "assistant: b: c"]}, ["a"], "b: c"),
    ({"messages": [{"system": "s"}, {"user": "a"}, {"assistant": "b"}]}, ["s", "a"], "b"),
    ({"messages": ["{a", "{b"]}, ["{a"], "{b"),
    # a thought and calls in turns of their own
    (
        {"messages": [ASK, {**REPLY, "content": "so", "channel": "analysis"}, REPLY]},
        ["a"],
        "<think>\nso\n</think>\n\nb",
    ),
    (
        {
            "conversations": [
                {"from": "human", "value": "a"},
                {"from": "gpt", "value": "b"},
                *[{"from": "function_call", "value": json.dumps(CALL["function"])}] * 2,
                *[{"from": "observation", "value": each} for each in "cd"],
                {"from": "gpt", "value": "e"},
            ]
        },
        ["a", f"b\n{CALLED}\n{CALLED}", "c", "d"],
        "e",
    ),
    (
        {"messages": [{"role": "system", "content": "<tools>"}, ASK, REPLY], "tools": [TOOL]},
        ["<tools>", "a"],
        "b",
    ),
    # running text
    ({"text": "b"}, [], "b"),
]


@pytest.mark.parametrize(("row", "messages", "answer"), EXAMPLES)
def test_a_row_is_told_by_its_columns(
    row: dict, messages: list[str], answer: str, tmp_path: Path
) -> None:
    result = read(lines(tmp_path, [row]))
    assert summarize(result) == [(messages, [answer], None)]
    assert not result.unused_columns


WHOLE = [[ASK, REPLY], [ASK, {"role": "assistant", "content": "c"}]]
HH = ["\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant: c"]
RATED = [
    {"model": "m", "response": "b", "overall_score": 7.5},
    {"model": "n", "response": "c", "overall_score": 2},
]

# A row, and the scores of its answers b and c to a.
PREFERENCES: list[tuple[dict[str, Any], list[float]]] = [
    # a chosen and a rejected one: TRL's columns, ShareGPT's, Alpaca's, LLaMA-Factory's, HH
    ({"prompt": "a", "chosen": "b", "rejected": "c"}, [1, 0]),
    ({"prompt": [ASK], "chosen": [REPLY], "rejected": [{**REPLY, "content": "c"}]}, [1, 0]),
    ({"prompt": "a", "chosen": WHOLE[0], "rejected": WHOLE[1], "messages": WHOLE[0]}, [1, 0]),
    ({"chosen": WHOLE[0], "rejected": WHOLE[1]}, [1, 0]),
    ({"chosen_messages": WHOLE[0], "rejected_messages": WHOLE[1]}, [1, 0]),
    ({"conversations": [ASK], "chosen": REPLY, "rejected": {"from": "gpt", "value": "c"}}, [1, 0]),
    ({"instruction": "a", "chosen_response": "b", "rejected_response": "c"}, [1, 0]),
    ({"chosen": HH[0], "rejected": HH[1]}, [1, 0]),
    (
        {
            "prompt": "a",
            "answer_a": "c",
            "answer_b": "b",
            "chosen": "answer_b",
            "rejected": "answer_a",
        },
        [1, 0],
    ),
    ({"prompt": "a", "responses": ["c", "b"], "chosen": 1, "rejected": 0}, [1, 0]),
    ({"prompt": "a", "responses": ["c", "b"], "chosen": "1", "rejected": "0"}, [1, 0]),
    ({"messages": [ASK, REPLY], "rejected_response": "c"}, [1, 0]),
    ({"messages": [ASK, REPLY], "rejected_messages": WHOLE[1]}, [1, 0]),
    # two, and which is preferred
    ({"instruction": "a", "output_1": "b", "output_2": "c", "preference": 2}, [0, 1]),
    ({"input": "a", "output_1": "b", "output_2": "c", "label": "1"}, [1, 0]),
    (
        {"prompt": "a", "response_1": "b", "response_2": "c", "preference": 1.5, "model_1": "m"},
        [0.5, 0.5],
    ),
    ({"prompt": "a", "response_a": "b", "response_b": "c", "winner": "model_b"}, [0, 1]),
    ({"prompt": "a", "response_0": "b", "response_1": "c", "better_response_id": 0}, [1, 0]),
    ({"question": "a", "answer_a": "b", "answer_b": "c", "winner": "tie"}, [0.5, 0.5]),
    (
        {
            "prompt": "a",
            "response_a": "b",
            "response_b": "c",
            "model_a": "m",
            "model_b": "n",
            "winner": "n",
        },
        [0, 1],
    ),
    ({"prompt": "a", "response_a": "b", "response_b": "c", "chosen": "c"}, [0, 1]),
    ({"conversation_a": WHOLE[0], "conversation_b": WHOLE[1], "winner": "model_a"}, [1, 0]),
    # several, with scores or ranks
    ({"instruction": "a", "completions": RATED}, [7.5, 2]),
    ({"prompt": "a", "responses": ["b", "c"], "scores": ["0.5", 0.75]}, [0.5, 0.75]),
    (
        {
            "prompt": "\n\nHuman: a\n\nAssistant:",
            "answers": [{"answer": t, "rank": r} for t, r in ("b1", "c2")],
        },
        [1, 0],
    ),
    ({"prompt": "a", "completions": ["b", "c"], "ranks": [2, 1]}, [0, 1]),
]


@pytest.mark.parametrize(("row", "scores"), PREFERENCES)
def test_a_preference_is_told_by_its_columns(
    row: dict, scores: list[float], tmp_path: Path
) -> None:
    file = lines(tmp_path, [row])
    assert summarize(read(file, Purpose.preferences))[0] == (["a"], ["b", "c"], scores)
    assert summarize(read(file, Purpose.prompts))[0][0] == ["a"]


def test_a_name_of_a_column_is_no_answer(tmp_path: Path) -> None:
    names = {"chosen": "response_a", "rejected": "response_b"}
    row = {"prompt": "a", "response_a": "b", "response_b": "c", **names}
    rows = [row, row | {"response_b": None}, row | {"rejected": "response_c"}]
    result = read(lines(tmp_path, rows), Purpose.preferences)
    assert summarize(result) == [(["a"], ["b", "c"], [1, 0])]
    assert all("both must name a text" in str(bad.error) for bad in result.bad_rows)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "chosen": "b", "rejected": ["c", "d"]},
        {"messages": [ASK, REPLY], "rejected_response": ["c", "d"]},
        {"prompt": "a", "chosen": "b", "rejected": '["c", "d"]'},
    ],
)
def test_several_rejected_answers_are_several_pairs(row: dict, tmp_path: Path) -> None:
    result = read(lines(tmp_path, [row]), Purpose.preferences)
    assert summarize(result) == [(["a"], ["b", "c", "d"], [1, 0, 0])]


def test_an_answer_without_a_score_costs_itself_alone(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "completions": ["b", "c", "d"], "scores": scores}
        for scores in ([4, None, 1], [4, None, None])
    ]
    result = read(lines(tmp_path, rows), Purpose.preferences)
    assert summarize(result) == [(["a"], ["b", "d"], [4, 1])]
    assert "1 of 3 answers have a score" in str(result.bad_rows[0].error)
    assert any("1 answers without a score" in note for note in result.notes)


def test_answers_of_many_numbers_are_no_labels(tmp_path: Path) -> None:
    rows = [{"question": "a", "answer": number} for number in range(20)]
    assert [row.answers for row in read(lines(tmp_path, rows)).parsed[-2:]] == [["18"], ["19"]]
    few = read(lines(tmp_path, [{"question": "a", "answer": "b"}, *rows[:3]]))
    assert "must be text, is int" in str(few.bad_rows[0].error)


@pytest.mark.parametrize(("row", "scores"), PREFERENCES)
def test_preferences_are_no_examples(row: dict, scores: list[float], tmp_path: Path) -> None:
    if "messages" in row:
        return  # which are an example
    with pytest.raises(UserError, match=r"preferences.*label=dataset label.path"):
        read(lines(tmp_path, [row]))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "completion": "b", "label": True},
        {"prompt": [ASK], "completion": [REPLY], "label": "True"},
        {"messages": [ASK, REPLY], "label": True},
        {"messages": [ASK], "completion": "b", "label": True},
        {"instruction": "a", "output": "b", "kto_tag": True},
    ],
)
def test_an_answer_may_be_called_good_or_bad(row: dict, tmp_path: Path) -> None:
    bad = {k: False if v in (True, "True") else v for k, v in row.items()}
    for purpose in set(Purpose) - {Purpose.candidates}:  # which nobody judged
        assert summarize(read(lines(tmp_path, [row, bad]), purpose)) == [
            (["a"], ["b"], [1]),
            (["a"], ["b"], [0]),
        ]


@pytest.mark.parametrize(
    ("column", "good", "bad"),
    [
        ("label", "up", "down"),
        ("feedback", "Thumbs up", "thumbs_down"),
        ("rating", "good answer", "bad answer"),
        ("thumbs", "👍", "👎"),
    ],
)
def test_thumbs_are_labels_in_words(column: str, good: str, bad: str, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "response": "b", column: word} for word in (good, bad)]
    parsed = read(lines(tmp_path, rows), Purpose.preferences).parsed
    assert [each.scores for each in parsed] == [[1], [0]]


def test_numbers_are_classes_unless_they_are_said_to_be_flags(tmp_path: Path) -> None:
    file = lines(tmp_path, [{"prompt": "a", "completion": "b", "label": n} for n in (0, 1)])
    with pytest.raises(UserError, match="the column 'label' changes"):
        read(file)
    assert [each.scores for each in read(file, labels={0: "false", 1: "true"}).parsed] == [[0], [1]]


@pytest.mark.parametrize(
    ("row", "labels"),
    [
        ({"prompt": "a", "completion": 1, "label": 1}, {1: "true", 0: "false"}),
        (
            {"prompt": "a", "response_1": 0, "response_2": "c", "preference": 1},
            {0: "tie", 1: "left"},
        ),
    ],
)
def test_words_for_labels_are_no_answers(row: dict, labels: dict, tmp_path: Path) -> None:
    texts = {key: str(value) for key, value in row.items() if key != "preference"}
    file = lines(tmp_path, [row | texts, row])
    [bad] = read(file, Purpose.preferences, labels=labels).bad_rows
    assert bad.line == 2 and "must be text, is int" in str(bad.error)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [json.dumps([ASK, REPLY])]},
        {"messages": [json.dumps(json.dumps(ASK)), json.dumps(json.dumps(REPLY))]},
        {"messages": [json.dumps(ASK), "b"]},
        {"prompt": "a", "completion": json.dumps([[REPLY]])},
        {"prompt": json.dumps(json.dumps([ASK])), "completion": "b"},
    ],
)
def test_turns_in_the_text_of_json_are_trained_by_no_row(row: dict, tmp_path: Path) -> None:
    good = {"messages": [ASK, REPLY]} if "messages" in row else {"prompt": "a", "completion": "b"}
    result = read(lines(tmp_path, [good, row]))
    assert [row.line for row in result.bad_rows] == [2]


def test_words_for_preferences_may_name_the_columns(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "output_1": "b", "output_2": "c", "label": n} for n in (0, 1)]
    result = read(lines(tmp_path, rows), Purpose.preferences, labels={0: "output_1", 1: "output_2"})
    assert [each.scores for each in result.parsed] == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"instruction": "a", "output": None}, "output: is empty"),
        ({"instruction": "a", "output": 7}, "output: must be text, is int"),
        ({"instruction": "a", "output": ["b", "c"]}, "output: holds 2 answers"),
        ({"instruction": " ", "output": "b"}, "instruction: is empty"),
        ({"Instruction": "a", "output": "b"}, "instruction: the column is missing"),
        ({"instruction": "a", "output": "\ud800"}, "half a surrogate pair"),
        (
            {"instruction": "\n\nHuman: \ud800\n\nAssistant:", "output": "b"},
            "half a surrogate pair",
        ),
        ({"instruction": "\n\nHuman: \n\nAssistant:", "output": "b"}, "is empty"),
        ({"instruction": "a", "history": "b", "output": "c"}, "history: must be a list"),
        ([1], "a row must be an object"),
    ],
)
def test_a_row_unlike_the_others_says_why(row: object, reason: str, tmp_path: Path) -> None:
    result = read(
        lines(
            tmp_path,
            [{"instruction": "a", "output": "b"}, {"instruction": "a", "output": "b"}, row],
        )
    )
    assert reason in str(result.bad_rows[0].error)


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([{"role": "narrator", "content": "a"}, REPLY], "messages: unknown role 'narrator'"),
        ([{"role": ["user"], "content": "a"}, REPLY], "messages: unknown role"),
        ([REPLY], "no user turn"),
        ([ASK, ASK, REPLY], "do not alternate: user, user, assistant"),
        (
            [ASK, REPLY, {"role": "system", "content": "s"}, REPLY],
            "a system message is not the first message",
        ),
        ([ASK, {"role": "assistant", "content": [{"type": "text", "text": None}]}], "must be text"),
        (
            [ASK, {"role": "assistant", "content": [{"type": "image", "url": "b"}]}],
            "a part of type 'image'",
        ),
        (
            [ASK, {"role": "assistant", "tool_calls": [{"id": 1}]}],
            "a tool call must have a name and arguments",
        ),
        ([ASK, {"role": "assistant", "content": " "}], "messages"),
    ],
)
def test_turns_that_are_no_conversation_say_why(
    turns: list[Any], reason: str, tmp_path: Path
) -> None:
    good = {"messages": [ASK, REPLY]}
    result = read(lines(tmp_path, [good, good, {"messages": turns}]))
    assert reason in str(result.bad_rows[0].error)


SAY = {"role": "user", "content": "c"}
LATER = {"role": "system", "content": "s"}


@pytest.mark.parametrize(
    ("turns", "merged", "cut"),
    [
        ([ASK, REPLY, LATER, SAY, REPLY], (["a", "b", "s\n\nc"], ["b"]), (["a"], ["b"])),
        ([ASK, SAY, REPLY, REPLY], (["a\n\nc"], ["b\n\nb"]), None),
        ([LATER, REPLY, ASK, REPLY, ASK], None, (["s", "a"], ["b"])),
        ([ASK, REPLY, SAY], (["a", "b", "c"], []), (["a"], ["b"])),
        ([ASK, {**REPLY, "weight": 0}, REPLY], (["a"], ["b\n\nb"]), (["a"], ["b"])),
    ],
)
def test_turns_out_of_order_are_reshaped_as_the_key_says(
    turns: list[Any], merged: Any, cut: Any, tmp_path: Path
) -> None:
    file = lines(tmp_path, [{"messages": [ASK, REPLY]}, {"messages": turns}])
    for shape, expected in (("merge", merged), ("cut", cut)):
        result = read(file, turns=shape)
        read_as = [(request, answers) for request, answers, _ in summarize(result)[1:]]
        assert read_as == ([expected] if expected else [])
    [bad] = read(file).bad_rows or [None]
    assert bad is None or f"data.form.turns={'merge' if merged else 'cut'}" in str(bad.error)


def test_turns_that_are_joined_are_trained_if_each_of_them_is(tmp_path: Path) -> None:
    file = lines(tmp_path, [{"messages": [ASK, {**REPLY, "loss": False}, REPLY]}])
    assert read(file, turns="merge").parsed[0].trained == [False]


def test_a_map_may_be_a_turn(tmp_path: Path) -> None:
    turns = pa.array(
        [[[*ASK.items()], [*REPLY.items()]]], pa.list_(pa.map_(pa.string(), pa.string()))
    )
    pq.write_table(pa.table({"messages": turns}), tmp_path / "rows.parquet")
    assert summarize(read(tmp_path / "rows.parquet")) == [(["a"], ["b"], None)]


def test_reasoning_is_kept_or_stripped(tmp_path: Path) -> None:
    rows = [
        {"messages": [ASK, {**REPLY, "reasoning_content": "so"}]},
        {"messages": [ASK, THINKING]},
    ]
    transcript = [
        {
            "text": f"<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n{THINKING['content']}<|im_end|>"
        }
    ]
    assert [
        each.answers[0] for each in read(lines(tmp_path, transcript), reasoning="strip").parsed
    ] == ["b"]
    assert [each.answers[0] for each in read(lines(tmp_path, rows)).parsed] == [
        "<think>\nso\n</think>\n\nb"
    ] * 2
    assert [each.answers[0] for each in read(lines(tmp_path, rows), reasoning="strip").parsed] == [
        "b",
        "b",
    ]


def test_an_answer_that_is_a_json_array_stays_text(tmp_path: Path) -> None:
    answers = ['[{"name": "Ada"}]', '[{"name": "Bo"}, {"age": 3}]']
    rows = [dict(zip(("prompt", "chosen", "rejected"), ("List two users.", *answers), strict=True))]
    assert [*read(lines(tmp_path, rows), Purpose.preferences).parsed[0].answers] == answers
    turns = [
        {
            "prompt": "a",
            "chosen": '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]',
        }
    ]
    turns[0]["rejected"] = "[{'from': 'human', 'value': 'a'}, {'from': 'gpt', 'value': 'c'}]"
    assert [*read(lines(tmp_path, turns), Purpose.preferences).parsed[0].answers] == ["b", "c"]


def test_an_empty_list_may_be_the_words_of_a_request_or_an_answer(tmp_path: Path) -> None:
    rows = [
        {"instruction": "How many items?", "input": "[]", "output": "0"},
        {"instruction": "An empty JSON object.", "input": "", "output": "{}"},
    ]
    first, second = summarize(read(lines(tmp_path, rows)))
    assert first[:2] == (["How many items?\n\n[]"], ["0"])
    assert second[:2] == (["An empty JSON object."], ["{}"])


SYSTEM, QUESTION = (
    {"role": "system", "content": "Answer in French."},
    {"role": "user", "content": "q"},
)
SIDES = {
    name: [QUESTION, {"role": "assistant", "content": name}] for name in ("chosen", "rejected")
}


def test_a_system_message_of_the_prompt_stands_before_sides_without_one(tmp_path: Path) -> None:
    result = read(lines(tmp_path, [{"prompt": [SYSTEM, QUESTION], **SIDES}]), Purpose.preferences)
    assert [row.messages for row in result.parsed] == [[SYSTEM, QUESTION]]
    other = {"chosen": [SYSTEM, *SIDES["chosen"]], "rejected": SIDES["rejected"]}
    (bad,) = read(lines(tmp_path, [other]), Purpose.preferences).bad_rows
    assert "the system message differs" in str(bad.error)
    contradicting = {"prompt": [QUESTION | {"content": "other"}], **SIDES}
    result = read(lines(tmp_path, [contradicting]), Purpose.preferences)
    assert [row.error.field for row in result.bad_rows if row.error] == ["prompt"]


@pytest.mark.parametrize(
    "mark",
    ["[INST]", "<｜User｜>", "<|start_of_role|>", "<|header_start|>", "<|start|>user<|message|>"],
)
def test_text_that_was_rendered_for_a_model_is_no_running_text(mark: str, tmp_path: Path) -> None:
    result = read(lines(tmp_path, [{"text": "b"}, {"text": "b"}, {"text": f"{mark} a"}]))
    assert f"text: holds '{mark}'" in str(result.bad_rows[0].error)


def with_arguments(arguments: str) -> dict[str, Any]:
    call = {**CALL, "function": {"name": "f", "arguments": arguments}}
    return {"role": "assistant", "tool_calls": [call]}


def test_a_call_whose_arguments_are_no_json_is_told() -> None:
    reader = TurnReader()
    with pytest.raises(BadRow, match="a tool call is not JSON"):
        reader.read([with_arguments("{x")], "messages")
    [turn] = reader.read([with_arguments(" ")], "messages")
    assert '"arguments": {}' in turn.content
    with pytest.raises(BadRow, match="must be one JSON value"):
        reader.read([with_arguments('{"a": 1}, {"b": 2}')], "messages")
    with pytest.raises(BadRow, match="must have a name and arguments"):
        reader.read([{"role": "assistant", "tool_calls": [{"function": []}]}], "messages")


def called(arguments: dict[str, Any]) -> list[dict[str, Any]]:
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    return [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]


def test_a_tables_tool_calls_have_the_arguments_that_were_written(tmp_path: Path) -> None:
    """Arrow gives each call the arguments of all others, as null."""
    rows = [
        {"messages": called(arguments)}
        for arguments in ({"city": "Paris"}, {"x": 1, "y": [{"z": 2}]})
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    by_table, by_lines = (
        summarize(read(file)) for file in (tmp_path / "rows.parquet", lines(tmp_path, rows))
    )
    assert by_table == by_lines and len(by_table) == 2


def test_a_date_among_a_calls_arguments_is_a_bad_row(tmp_path: Path) -> None:
    rows = [{"messages": called({"day": day})} for day in (datetime(2024, 5, 1), None)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    [bad] = read(tmp_path / "rows.parquet").bad_rows
    assert "datetime is not JSON" in str(bad.error)
