"""Each format is detected from the columns of its rows."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.config.errors import UserError
from stages.formats.column_mapping import Purpose
from stages.formats.format import ParsedRow
from stages.formats.source_reading import is_tie
from stages.formats.turns import TOOLS
from tests.formats.reading import lines, read, summarize

ASK = {"role": "user", "content": "a"}
REPLY = {"role": "assistant", "content": "b"}
SAY = {"role": "user", "content": "c"}
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
    ({"instruction": "c", "context": "e", "response": "d"}, ["c\n\ne"], "d"),
    # prompt and completion, question and answer, and how others call them
    ({"prompt": "a", "completion": "b"}, ["a"], "b"),
    ({"question": "a", "answer": "b"}, ["a"], "b"),
    ({"system_prompt": "s", "question": "a", "response": "b"}, ["s", "a"], "b"),
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
    # messages, ShareGPT, transcripts
    ({"messages": [ASK, REPLY]}, ["a"], "b"),
    (
        {"messages": '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]'},
        ["a"],
        "b",
    ),
    (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        ["a"],
        "b",
    ),
    ({"text": "### Human: a\n### Assistant: b"}, ["a"], "b"),
    # tools and reasoning
    (
        {"messages": [ASK, {**REPLY, "reasoning_content": "so"}]},
        ["a"],
        "<think>\nso\n</think>\n\nb",
    ),
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
    ({"conversations": ["a", "b", "c", "d"]}, ["a", "b", "c"], "d"),
    (
        {"conversation": [{"input": "a", "output": "b"}, {"input": "c", "output": "d"}]},
        ["a", "b", "c"],
        "d",
    ),
    # turns in other notations
    ({"messages": [json.dumps(ASK), json.dumps(REPLY)]}, ["a"], "b"),
    ({"messages": {"role": ["user", "assistant"], "content": ["a", "b"]}}, ["a"], "b"),
    ({"messages": [{"system": "s"}, {"user": "a"}, {"assistant": "b"}]}, ["s", "a"], "b"),
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
    ({"conversations": [ASK], "chosen": REPLY, "rejected": {"from": "gpt", "value": "c"}}, [1, 0]),
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
    ({"messages": [ASK, REPLY], "rejected_response": "c"}, [1, 0]),
    # two, and which is preferred
    ({"instruction": "a", "output_1": "b", "output_2": "c", "preference": 2}, [0, 1]),
    (
        {"prompt": "a", "response_1": "b", "response_2": "c", "preference": 1.5, "model_1": "m"},
        [0.5, 0.5],
    ),
    ({"prompt": "a", "response_a": "b", "response_b": "c", "winner": "model_b"}, [0, 1]),
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


def test_an_answer_without_a_score_costs_itself_alone(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "completions": ["b", "c", "d"], "scores": scores}
        for scores in ([4, None, 1], [4, None, None])
    ]
    result = read(lines(tmp_path, rows), Purpose.preferences)
    assert summarize(result) == [(["a"], ["b", "d"], [4, 1])]
    assert "1 of 3 answers have a score" in str(result.bad_rows[0].error)
    assert any("1 answers without a score" in note for note in result.notes)


@pytest.mark.parametrize(("row", "scores"), PREFERENCES)
def test_preferences_are_no_examples(row: dict, scores: list[float], tmp_path: Path) -> None:
    if "messages" in row:
        return  # which are an example
    with pytest.raises(UserError, match=r"preferences.*label=dataset label.path"):
        read(lines(tmp_path, [row]))


@pytest.mark.parametrize(
    ("row", "column", "words"),
    [
        ({"prompt": "a", "completion": "b"}, "label", (True, False)),
        ({"messages": [ASK, REPLY]}, "label", (True, False)),
        ({"prompt": "a", "response": "b"}, "label", ("up", "down")),
        ({"prompt": "a", "response": "b"}, "thumbs", ("👍", "👎")),
    ],
)
def test_an_answer_may_be_called_good_or_bad(
    row: dict, column: str, words: tuple[Any, Any], tmp_path: Path
) -> None:
    file = lines(tmp_path, [{**row, column: word} for word in words])
    for purpose in (Purpose.answers, Purpose.preferences, Purpose.prompts):
        assert summarize(read(file, purpose)) == [(["a"], ["b"], [1]), (["a"], ["b"], [0])]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"instruction": "a", "output": None}, "output: is empty"),
        ({"instruction": "a", "output": 7}, "output: must be text, is int"),
        ({"instruction": "a", "output": ["b", "c"]}, "output: holds 2 answers"),
        ({"Instruction": "a", "output": "b"}, "instruction: the column is missing"),
        ([1], "a row must be an object"),
        ({"instruction": "a", "output": [ASK]}, "output: must be one assistant turn"),
        ({"instruction": "a", "output": [SAY, REPLY]}, "output: must be one assistant turn"),
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
        ([REPLY], "no user turn"),
        ([ASK, ASK, REPLY], "do not alternate: user, user, assistant"),
        (
            [ASK, REPLY, {"role": "system", "content": "s"}, REPLY],
            "a system message is not the first message",
        ),
        (
            [ASK, {"role": "assistant", "content": [{"type": "image", "url": "b"}]}],
            "a part of type 'image'",
        ),
        (
            [ASK, {"role": "assistant", "tool_calls": [{"id": 1}]}],
            "a tool call must have a name and arguments",
        ),
        (
            [ASK, {"role": "assistant", "content": [{"type": "tool_result", "content": "b"}]}],
            "an assistant turn contains a tool's result",
        ),
    ],
)
def test_turns_that_are_no_conversation_say_why(
    turns: list[Any], reason: str, tmp_path: Path
) -> None:
    good = {"messages": [ASK, REPLY]}
    result = read(lines(tmp_path, [good, good, {"messages": turns}]))
    assert reason in str(result.bad_rows[0].error)


LATER = {"role": "system", "content": "s"}


@pytest.mark.parametrize(
    ("turns", "merged", "cut"),
    [
        ([ASK, REPLY, LATER, SAY, REPLY], (["a", "b", "s\n\nc"], ["b"]), (["a"], ["b"])),
        ([ASK, SAY, REPLY, REPLY], (["a\n\nc"], ["b\n\nb"]), None),
        ([LATER, REPLY, ASK, REPLY, ASK], None, (["s", "a"], ["b"])),
    ],
)
def test_turns_out_of_order_are_reshaped_as_the_key_says(
    turns: list[Any], merged: Any, cut: Any, tmp_path: Path
) -> None:
    file = lines(tmp_path, [{"messages": [ASK, REPLY]}, {"messages": turns}])
    for shape, expected in (("merge", merged), ("cut", cut)):
        [_, *read_as] = summarize(read(file, turns=shape))
        assert read_as == ([(*expected, None)] if expected else [])
    [bad] = read(file).bad_rows
    assert f"data.form.turns={'merge' if merged else 'cut'}" in str(bad.error)


def test_reasoning_is_kept_or_stripped(tmp_path: Path) -> None:
    rows = [
        {"messages": [ASK, {**REPLY, "reasoning_content": "so"}]},
        {"messages": [ASK, THINKING]},
    ]
    file = lines(tmp_path, rows)
    kept = read(file).parsed
    stripped = read(file, reasoning="strip").parsed
    assert [each.answers for each in kept] == [[THINKING["content"]]] * 2
    assert [each.answers for each in stripped] == [["b"]] * 2


def test_an_answer_that_is_a_json_array_stays_text(tmp_path: Path) -> None:
    answers = {"chosen": '[{"name": "Ada"}]', "rejected": '[{"name": "Bo"}, {"age": 3}]'}
    file = lines(tmp_path, [{"prompt": "List two users."} | answers])
    assert read(file, Purpose.preferences).parsed[0].answers == [*answers.values()]
    turns = {
        "chosen": '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]',
        "rejected": "[{'from': 'human', 'value': 'a'}, {'from': 'gpt', 'value': 'c'}]",
    }
    file = lines(tmp_path, [{"prompt": "a"} | turns])
    assert read(file, Purpose.preferences).parsed[0].answers == ["b", "c"]


SYSTEM = {"role": "system", "content": "Answer in French."}
QUESTION = {"role": "user", "content": "q"}
SIDES = {
    name: [QUESTION, {"role": "assistant", "content": name}] for name in ("chosen", "rejected")
}


def test_a_system_message_of_the_prompt_stands_before_sides_without_one(tmp_path: Path) -> None:
    result = read(lines(tmp_path, [{"prompt": [SYSTEM, QUESTION], **SIDES}]), Purpose.preferences)
    assert [row.messages for row in result.parsed] == [[SYSTEM, QUESTION]]
    other = {"chosen": [SYSTEM, *SIDES["chosen"]], "rejected": SIDES["rejected"]}
    (bad,) = read(lines(tmp_path, [other]), Purpose.preferences).bad_rows
    assert "the system message differs" in str(bad.error)


def called(arguments: Any) -> list[dict[str, Any]]:
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    return [ASK, {"role": "assistant", "content": "", "tool_calls": [call]}]


def test_a_call_whose_arguments_are_no_json_is_told(tmp_path: Path) -> None:
    rows = [{"messages": called(written)} for written in (" ", "{x", '{"a": 1}, {"b": 2}')]
    result = read(lines(tmp_path, rows))
    assert '"arguments": {}' in result.parsed[0].answers[0]
    assert [row.line for row in result.bad_rows] == [2, 3]


def test_a_tables_tool_calls_have_the_arguments_that_were_written(tmp_path: Path) -> None:
    """Arrow gives each call the arguments of all others, as null."""
    arguments: list[dict[str, Any]] = [{"city": "Paris"}, {"x": 1, "y": [{"z": 2}]}]
    rows = [{"messages": called(each)} for each in arguments]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    by_table = summarize(read(tmp_path / "rows.parquet"))
    assert by_table == summarize(read(lines(tmp_path, rows)))
    assert len(by_table) == 2


def test_only_several_answers_with_one_score_are_a_tie() -> None:
    assert is_tie(ParsedRow([ASK], ["b", "c"], [0.5, 0.5]))
    assert not is_tie(ParsedRow([ASK], ["b", "c"], [0.5, 1.0]))
    assert not is_tie(ParsedRow([ASK], ["b"], [0.5]))
    assert not is_tie(ParsedRow([ASK], ["b", "c"], None))
