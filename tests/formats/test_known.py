"""Rows of widely used data sets whose column names do not say what the columns hold."""

from pathlib import Path
from typing import Any

import pytest

from stages.config.errors import UserError
from stages.formats.column_mapping import Purpose
from stages.formats.detection import KNOWN
from stages.formats.turns import TOOLS
from tests.formats.reading import lines, read, summarize

ASK = {"role": "user", "content": "a"}
REPLY = {"role": "assistant", "content": "b"}
PARTS = [{"type": "text", "text": "b"}]
CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'

# A row of each set, and the scores of its answers b and c to a, where it compares them.
PREFERENCES: dict[str, tuple[list[dict[str, Any]], list[list[float]]]] = {
    "HelpSteer2, preferences": (
        [{"prompt": "a", "response_1": "b", "response_2": "c", "preference_strength": n} for n in (-3, -1, 0, 2)],
        [[1, 0], [1, 0], [0.5, 0.5], [0, 1]],
    ),
    "HelpSteer3": (
        [{"context": [ASK], "response1": "b", "response2": "c", "overall_preference": n} for n in (-2, 1)],
        [[1, 0], [0, 1]],
    ),
    "Auto-J, pairs": (
        [
            {"scenario": "s", "label": n, "prompt": "a", "response 1": "b", "response 2": "c"}
            for n in (0, 1, 2)
        ],
        [[1, 0], [0, 1], [0.5, 0.5]],
    ),
    "PandaLM, people's pairs": (
        [
            {"instruction": "a", "input": "", "response_1": "b", "response_2": "c", "majority": n}
            | {f"annotator{i}": n for i in (1, 2, 3)}
            for n in (0, 1, 2)
        ],
        [[0.5, 0.5], [1, 0], [0, 1]],
    ),
    "AlpacaEval, annotations": (
        [
            {"instruction": "a", "output_1": "b", "generator_1": "m", "output_2": "c", "generator_2": "n"}
            | {"preference": n}
            for n in (0, 1, 1.5, 2)
        ],
        [[0.5, 0.5], [1, 0], [0.5, 0.5], [0, 1]],
    ),
    "SHP": (
        [
            {"history": "a", "human_ref_A": "b", "human_ref_B": "c", "labels": n, "score_A": 4, "score_B": 9}
            for n in (1, 0)
        ],
        [[1, 0], [0, 1]],
    ),
    "WebGPT comparisons": (
        [
            {"question": {"id": "1", "full_text": "a"}, "quotes_0": {}, "answer_0": "b", "score_0": n}
            | {"answer_1": "c", "score_1": -n}
            for n in (1.0, 0.0, -0.5)
        ],
        [[1, 0], [0.5, 0.5], [0, 1]],
    ),
    "summarize_from_feedback, comparisons": (
        [
            {"info": {"id": "1", "post": "a"}, "summaries": [{"text": "b"}, {"text": "c"}], "choice": n}
            for n in (0, 1)
        ],
        [[1, 0], [0, 1]],
    ),
    "Stack Exchange, paired": ([{"qid": 1, "question": "a", "response_j": "b", "response_k": "c"}], [[1, 0]]),
    "ELI5": (
        [{"q_id": "1", "title": "a", "selftext": "", "answers": {"text": ["b", "c"], "score": [2, 5]}}],
        [[2, 5]],
    ),
    "OpenAI's fine-tuning on preferences": (
        [{"input": {"messages": [ASK], "tools": []}, "preferred_output": [REPLY]}
         | {"non_preferred_output": [{**REPLY, "content": "c"}]}],
        [[1, 0]],
    ),
    "Label Studio, pairwise, JSON_MIN": (
        [{"prompt": "a", "answer1": "b", "answer2": "c", "comparison": {"selected": "right"}}],
        [[0, 1]],
    ),
}  # fmt: skip
# A row of each other set, the contents of its messages, and its answer.
EXAMPLES: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "UltraChat, as it was first published": ({"id": "1", "data": ["a", "b", "c", "d"]}, ["a", "b", "c"], "d"),
    "ShareGPT, as FastChat first had it": ({"id": "1", "items": [{"from": "human", "value": "a"},
                                                              {"from": "gpt", "value": "b"}]}, ["a"], "b"),
    "Glaive, function calling": (
        {"system": "SYSTEM: s", "chat": "USER: a\n\n\nASSISTANT: <functioncall> {\"name\": \"f\", \"arguments\": "
         "'{\"x\": 1}'} <|endoftext|>\n\n\nFUNCTION RESPONSE: {}\n\n\nASSISTANT: b <|endoftext|>\n\n\n"},
        ["s", "a", CALL, "{}"],
        "b",
    ),
    "xLAM, function calling": (
        {"query": "a", "answers": '[{"name": "f", "arguments": {"x": 1}}]', "tools": '[{"name": "f"}]'},
        [TOOLS.format('{"name": "f"}'), "a"],
        CALL,
    ),
    "P3": ({"inputs": [1, 2], "inputs_pretokenized": "a", "targets": [3], "targets_pretokenized": "b"}, ["a"], "b"),
    "s1K": (
        {"question": "a", "solution": "22", "thinking_trajectories": ["so"], "attempt": "b"},
        ["a"],
        "<think>\nso\n</think>\n\nb",
    ),
}  # fmt: skip


def test_every_known_set_is_tried() -> None:
    assert {each["name"] for each in KNOWN} == {
        *PREFERENCES,
        *EXAMPLES,
        "OpenAI's batches, requests",
    }


@pytest.mark.parametrize("name", PREFERENCES)
def test_a_known_set_of_preferences_is_read(name: str, tmp_path: Path) -> None:
    rows, scores = PREFERENCES[name]
    file = lines(tmp_path, rows)
    assert summarize(read(file, Purpose.preferences)) == [
        (["a"], ["b", "c"], each) for each in scores
    ]
    with pytest.raises(UserError, match=r"are preferences.*label=dataset label.path"):
        read(file)
    assert {each.messages[-1]["content"] for each in read(file, Purpose.prompts).parsed} == {"a"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_another_known_set_is_read(name: str, tmp_path: Path) -> None:
    row, messages, answer = EXAMPLES[name]
    assert summarize(read(lines(tmp_path, [row]))) == [(messages, [answer], None)]


def test_requests_of_a_batch_are_prompts(tmp_path: Path) -> None:
    row = {
        "custom_id": "1",
        "method": "POST",
        "url": "/v1",
        "body": {"model": "m", "messages": [ASK]},
    }
    file = lines(tmp_path, [row])
    assert summarize(read(file, Purpose.prompts)) == [(["a"], [], None)]
    with pytest.raises(UserError, match="requests without answers"):
        read(file)


MESSAGES: list[tuple[dict[str, Any], list[str], str]] = [
    # Anthropic's blocks, Gemini's and Bedrock's parts
    (
        {
            "system": [{"type": "text", "text": "s"}],
            "messages": [
                ASK,
                {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {"x": 1}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "2"}]},
                {"role": "assistant", "content": [{"type": "thinking", "thinking": "so"}, *PARTS]},
            ],
        },
        ["s", "a", CALL, "2"],
        "<think>\nso\n</think>\n\nb",
    ),
    (
        {
            "systemInstruction": {"role": "system", "parts": [{"text": "s"}]},
            "contents": [
                {"role": "user", "parts": [{"text": "a"}]},
                {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {"x": 1}}}]},
                {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"y": 2}}}]},
                {"role": "model", "parts": [{"text": "b"}]},
            ],
        },
        ["s", "a", CALL, '{"y": 2}'],
        "b",
    ),
    (
        {"system": [{"text": "s"}], "messages": [{"role": "user", "content": [{"text": "a"}]},
                                                 {"role": "assistant", "content": [{"text": "b"}]}]},
        ["s", "a"],
        "b",
    ),
    # other names of roles and of content
    ({"messages": [{"role": "User", "content": "a"}, {"role": "Chatbot", "content": "b"}]}, ["a"], "b"),
    # messages up to the request, with the answer in another column
    ({"messages": [ASK], "reasoning": "so", "answer": "b"}, ["a"], "<think>\nso\n</think>\n\nb"),
    ({"Question": "a", "Complex_CoT": "so", "Response": "b"}, ["a"], "<think>\nso\n</think>\n\nb"),
    ({"question": "a", "answer": ["b"]}, ["a"], "b"),
    # empty values, and values in JSON
    ({"system": "s", "messages": [{"role": "system", "content": "s"}, ASK, REPLY]}, ["s", "a"], "b"),
    # a prompt that ends where the answer is to begin
    ({"prompt": "### Instruction:\na\n\n### Response:", "completion": "b"}, ["a"], "b"),
    ({"prompt": "User: a\nAssistant:", "completion": "b"}, ["a"], "b"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "messages", "answer"), MESSAGES)
def test_what_others_call_turns_and_parts_is_read(
    row: dict, messages: list[str], answer: str, tmp_path: Path
) -> None:
    result = read(lines(tmp_path, [row]))
    assert summarize(result) == [(messages, [answer], None)]
    assert not result.unused_columns


# Conversations that chat templates and data sets write in one text
TEXTS = {
    "### Instruction:\na\n\n### Input:\nc\n\n### Response:\nb": ["a\n\nc"],
    "Below is an instruction.\n\n### Instruction:\na\n\n### Response:\nb": [
        "Below is an instruction.",
        "a",
    ],
    "<s>[INST] <<SYS>>\ns\n<</SYS>>\n\na [/INST] b </s>": ["s", "a"],
    "<s>[INST] a [/INST] d </s><s>[INST] c [/INST] b </s>": ["a", "d", "c"],
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\na<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nb<|eot_id|>": ["a"],
    "<start_of_turn>user\na<end_of_turn>\n<start_of_turn>model\nb<end_of_turn>\n": ["a"],
    "<bos><|turn>user\na<turn|>\n<|turn>model\nb<turn|>\n": ["a"],
    "<｜begin▁of▁sentence｜><｜User｜>a<｜Assistant｜>b<｜end▁of▁sentence｜>": ["a"],
    "<|begin_of_text|><|header_start|>user<|header_end|>\n\na<|eot|>"
    "<|header_start|>assistant<|header_end|>\n\nb<|eot|>": ["a"],
    "<|start_of_role|>user<|end_of_role|>a<|end_of_text|>\n"
    "<|start_of_role|>assistant<|end_of_role|>b<|end_of_text|>\n": ["a"],
    "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>a<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>b<|END_OF_TURN_TOKEN|>": ["a"],
    "<|system|>\ns</s>\n<|user|>\na</s>\n<|assistant|>\nb</s>\n": ["s", "a"],
    "User: a\nAssistant: b": ["a"],
    "A chat between two. USER: a ASSISTANT: b</s>": ["A chat between two.", "a"],
    "<human>: a\n<bot>: b": ["a"],
    "### System: s\n### User: a\n### Assistant: b": ["s", "a"],
}


@pytest.mark.parametrize("text", TEXTS)
def test_a_conversation_in_a_text_is_read_by_its_marks(text: str, tmp_path: Path) -> None:
    assert summarize(read(lines(tmp_path, [{"text": text}]))) == [(TEXTS[text], ["b"], None)]


def test_a_rendering_beside_the_columns_that_it_is_of_is_not_read(tmp_path: Path) -> None:
    row = {
        "instruction": "a",
        "input": "",
        "output": "b",
        "text": "### Instruction:\na\n\n### Response:\nb",
    }
    result = read(lines(tmp_path, [row]))
    assert (summarize(result), [*result.unused_columns]) == ([(["a"], ["b"], None)], ["text"])


def test_requests_and_answers_in_lists_of_json_are_turns(tmp_path: Path) -> None:
    """LMSYS has a column for each model that may have won."""
    row = {
        "prompt": '["a"]',
        "response_a": '["b"]',
        "response_b": '["c"]',
        "winner_model_a": 0,
        "winner_model_b": 1,
    }
    file = lines(tmp_path, [row, {**row, "winner_model_b": 0}])
    assert summarize(read(file, Purpose.preferences)) == [
        (["a"], ["b", "c"], [0, 1]),
        (["a"], ["b", "c"], [0.5, 0.5]),
    ]
    assert summarize(read(file, Purpose.prompts))[0][0] == ["a"]


def test_answers_with_a_score_may_have_a_row_each(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "response": text, "helpfulness": n} for text, n in (("b", 4), ("c", 1))]
    columns = {"prompt": "prompt", "completions": "response", "scores": "helpfulness"}
    result = summarize(read(lines(tmp_path, rows), Purpose.preferences, columns=columns))
    assert result == [(["a"], ["b"], [4]), (["a"], ["c"], [1])]
