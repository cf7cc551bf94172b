"""Results of tools stand in the order of their calls, and a call or a result without its partner is told."""

from pathlib import Path
from typing import Any

import pytest

from stages.config.errors import UserError
from stages.formats.column_mapping import Purpose
from tests.formats.reading import lines, read, summarize

ASK = {"role": "user", "content": "Price and stock?"}
REPLY = {"role": "assistant", "content": "3 euro, 7 left."}
PRICE, STOCK = "3 euro", "7 left"


def openai(calls: str, results: str) -> list[dict[str, Any]]:
    """Return turns with a call and a result for each of these letters."""
    functions = [{"id": each, "function": {"name": each * 3, "arguments": "{}"}} for each in calls]
    texts = {"a": PRICE, "b": STOCK}
    return [
        ASK,
        {"role": "assistant", "content": "", "tool_calls": functions},
        *({"role": "tool", "tool_call_id": each, "content": texts[each]} for each in results),
        REPLY,
    ]


def parts(calls: list[dict[str, Any]], results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        ASK,
        {"role": "assistant", "content": calls},
        {"role": "user", "content": results},
        REPLY,
    ]


ANTHROPIC = parts(
    [{"type": "tool_use", "id": each, "name": "f", "input": {}} for each in "ab"],
    [
        {"type": "tool_result", "tool_use_id": "b", "content": STOCK},
        {"type": "tool_result", "tool_use_id": "a", "content": PRICE},
    ],
)
BEDROCK = parts(
    [{"toolUse": {"toolUseId": each, "name": "f", "input": {}}} for each in "ab"],
    [
        {"toolResult": {"toolUseId": "b", "content": [{"text": STOCK}]}},
        {"toolResult": {"toolUseId": "a", "content": [{"text": PRICE}]}},
    ],
)
GEMINI = parts(
    [{"functionCall": {"name": each, "args": {}}} for each in ("price", "stock")],
    [
        {"functionResponse": {"name": "stock", "response": STOCK}},
        {"functionResponse": {"name": "price", "response": PRICE}},
    ],
)
SEPARATE_CALLS = [
    ASK,
    {"role": "tool_call", "content": '{"name": "price", "arguments": {}}'},
    {"role": "tool_call", "content": '{"name": "stock", "arguments": {}}'},
    {"role": "tool", "name": "stock", "content": STOCK},
    {"role": "tool", "name": "price", "content": PRICE},
    REPLY,
]

VERCEL = [
    ASK,
    {
        "role": "assistant",
        "content": [
            {"type": "tool-call", "toolCallId": each, "toolName": "f", "args": {}} for each in "ab"
        ],
    },
    {
        "role": "tool",
        "content": [
            {"type": "tool-result", "toolCallId": "b", "output": {"type": "text", "value": STOCK}},
            {"type": "tool-result", "toolCallId": "a", "result": PRICE},
        ],
    },
    REPLY,
]
LANGCHAIN = [
    {"type": "human", "content": ASK["content"]},
    {
        "type": "ai",
        "content": "",
        "tool_calls": [{"name": "f", "args": {}, "id": each} for each in "ab"],
    },
    {"type": "tool", "tool_call_id": "b", "content": STOCK},
    {"type": "tool", "tool_call_id": "a", "content": PRICE},
    {"type": "ai", "data": {"type": "ai", "content": REPLY["content"]}},
]
RESPONSES = [
    ASK,
    *({"type": "function_call", "call_id": e, "name": "f", "arguments": "{}"} for e in "ab"),
    {"type": "function_call_output", "call_id": "b", "output": STOCK},
    {"type": "function_call_output", "call_id": "a", "output": PRICE},
    REPLY,
]
FORMS = {
    "openai": openai("ab", "ba"),
    "in order": openai("ab", "ab"),
    "anthropic": ANTHROPIC,
    "bedrock": BEDROCK,
    "gemini": GEMINI,
    "separate calls": SEPARATE_CALLS,
    "vercel": VERCEL,
    "langchain": LANGCHAIN,
    "responses": RESPONSES,
}


@pytest.mark.parametrize("turns", FORMS.values(), ids=FORMS)
def test_results_stand_in_the_order_of_their_calls(turns: list[Any], tmp_path: Path) -> None:
    [(messages, answers, _)] = summarize(read(lines(tmp_path, [{"messages": turns}])))
    assert messages[-2:] == [PRICE, STOCK]
    assert answers == [REPLY["content"]]


def test_whole_conversations_in_a_column_of_requests_are_offered(tmp_path: Path) -> None:
    file = lines(tmp_path, [{"input": RESPONSES}])
    with pytest.raises(UserError, match=r"columns={messages: input}"):
        read(file)
    [(messages, _, _)] = summarize(read(file, columns={"messages": "input"}))
    assert messages[-2:] == [PRICE, STOCK]


def test_results_in_the_prompt_of_a_pair_stand_in_the_order_of_their_calls(tmp_path: Path) -> None:
    row = {"prompt": openai("ab", "ba")[:-1], "chosen": [REPLY], "rejected": "Sorry."}
    [(messages, answers, _)] = summarize(read(lines(tmp_path, [row]), Purpose.preferences))
    assert messages[-2:] == [PRICE, STOCK]
    assert answers == [REPLY["content"], "Sorry."]


def test_results_without_ids_and_names_keep_their_places(tmp_path: Path) -> None:
    turns = openai("ab", "ba")
    for turn in turns[2:4]:
        del turn["tool_call_id"]
    [(messages, _, _)] = summarize(read(lines(tmp_path, [{"messages": turns}])))
    assert messages[-2:] == [STOCK, PRICE]


@pytest.mark.parametrize(
    ("calls", "results", "missing"),
    [("ab", "b", "'aaa' has no result"), ("a", "ab", "'b' has no call"), ("a", "", "'aaa' has")],
)
def test_a_call_and_a_result_without_a_partner_are_told_and_may_be_cut(
    calls: str, results: str, missing: str, tmp_path: Path
) -> None:
    talk = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    request = [] if results else [ASK]  # without a result, a request follows the call
    turns = [*talk, *openai(calls, results)[:-1], *request, REPLY]
    file = lines(tmp_path, [{"messages": talk}, {"messages": turns}])
    [bad] = read(file).bad_rows
    assert missing in str(bad.error)
    assert "data.form.turns=cut" in str(bad.error)
    shortened = read(file, turns="cut")
    assert summarize(shortened)[1] == (["Hello"], ["Hi"], None)
    assert any("data.form.turns=cut" in note for note in shortened.notes)


def test_a_call_that_is_the_answer_needs_no_result(tmp_path: Path) -> None:
    [(messages, answers, _)] = summarize(
        read(lines(tmp_path, [{"messages": openai("ab", "")[:-1]}]))
    )
    assert messages == [ASK["content"]]
    assert "aaa" in answers[0]


def test_one_text_may_hold_the_results_of_all_calls(tmp_path: Path) -> None:
    turns = openai("ab", "b")
    turns[2] = {"role": "observation", "content": f"[{PRICE}, {STOCK}]"}
    assert not read(lines(tmp_path, [{"messages": turns}])).bad_rows


def test_calls_that_are_written_as_text_are_not_counted(tmp_path: Path) -> None:
    turns = [
        ASK,
        {"role": "assistant", "content": "[price(), stock()]"},
        {"role": "tool", "content": f"{PRICE}, {STOCK}"},
        REPLY,
    ]
    assert not read(lines(tmp_path, [{"messages": turns}])).bad_rows
