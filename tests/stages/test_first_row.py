"""The first row that `stage=data` prints is the one that SFT trains, token by token, in every shape of files."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.objectives.sft import read_rows
from stages.store.records import Example, load
from stages.training.token_rows import IGNORED
from tests.helpers import settings
from tests.models.test_contract import CHATML, byte_level, establish
from tests.rows import work
from tests.stages.reading import joined

SFT = settings("recipe=tiny").sft
USER, ASSISTANT, SYSTEM = "user", "assistant", "system"
RENDERED_TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", re.DOTALL)
Turns = list[tuple[str, str]]


def chat(turns: Turns, role: str = "role", text: str = "content") -> list[dict[str, str]]:
    return [{role: who, text: what} for who, what in turns]


def as_gpt(turns: Turns) -> list[dict[str, str]]:
    names = {USER: "human", ASSISTANT: "gpt", SYSTEM: "system"}
    return chat([(names[who], what) for who, what in turns], "from", "value")


def hermes(turns: Turns) -> str:
    return "".join(f"<|im_start|>{who}\n{what}<|im_end|>\n" for who, what in turns)


def alpaca(turns: Turns) -> dict[str, Any]:
    (_, request), (_, answer) = turns
    instruction, _, text = request.partition("\n\n")
    return {"instruction": instruction, "input": text, "output": answer}


def reasoned(turns: Turns) -> dict[str, Any]:
    """The thought of the answer in a column of its own."""
    (_, request), (_, answer) = turns
    thought, _, spoken = answer.removeprefix("<think>\n").partition("\n</think>\n\n")
    return {"question": request, "reasoning": thought, "answer": spoken}


def parted(turns: Turns) -> dict[str, Any]:
    parts = [{"role": who, "content": [{"type": "text", "text": what}]} for who, what in turns]
    return {"messages": parts}


ASKED: Turns = [(USER, "Which is larger, {}?\n\nSeven or five."), (ASSISTANT, "Seven of {} é ✓")]
SHORT: Turns = [(USER, "Say {}."), (ASSISTANT, "  {}: so it is.")]
CHINESE: Turns = [(USER, "请说出{}的首都。"), (ASSISTANT, "答：{}的首都是北京。\n完。")]
DIRECTED: Turns = [(SYSTEM, "Answer {} in one word."), (USER, "2 + 2?"), (ASSISTANT, "Four")]
SEVERAL: Turns = [*SHORT, (USER, "Again {}?"), (ASSISTANT, "{}, as before.")]
THOUGHT: Turns = [(USER, "2 + {}?"), (ASSISTANT, "<think>\nAdd {}.\n</think>\n\nIt is {}.")]
RUNNING: Turns = [(ASSISTANT, "Snow fell on {} until noon.\n\nThen it stopped.")]

# How a shape of files writes a conversation, and the conversations.
SHAPES: dict[str, tuple[Callable[[Turns], dict[str, Any]], Turns]] = {
    "alpaca": (alpaca, ASKED),
    "messages": (lambda turns: {"messages": chat(turns)}, SHORT),
    "sharegpt": (lambda turns: {"conversations": as_gpt(turns)}, SEVERAL),
    "prompt_completion": (lambda turns: {"prompt": turns[0][1], "completion": turns[1][1]}, ASKED),
    "lists_of_turns": (
        lambda turns: {"prompt": chat(turns[:-1]), "completion": chat(turns[-1:])},
        SEVERAL,
    ),
    "system": (lambda turns: {"messages": chat(turns)}, DIRECTED),
    "system_column": (
        lambda turns: {"system": turns[0][1], "question": turns[1][1], "response": turns[2][1]},
        DIRECTED,
    ),
    "several_turns": (lambda turns: {"messages": chat(turns)}, SEVERAL),
    "reasoning_column": (reasoned, THOUGHT),
    "json_in_a_list": (lambda turns: {"messages": [*map(json.dumps, chat(turns))]}, SEVERAL),
    "parts": (parted, SHORT),
    "transcript": (lambda turns: {"text": hermes(turns)}, SEVERAL),
    "chinese": (lambda turns: {"instruction": turns[0][1], "output": turns[1][1]}, CHINESE),
    "running_text": (lambda turns: {"text": turns[0][1]}, RUNNING),
}


def numbered(turns: Turns, name: str) -> Turns:
    return [(who, what.replace("{}", name)) for who, what in turns]


def one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("shape", SHAPES)
def test_the_first_row_of_a_shape_is_what_is_trained(shape: str, tmp_path: Path) -> None:
    write_row, template = SHAPES[shape]
    conversations = [numbered(template, name) for name in ("north", "south", "east")]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(write_row(turns)) + "\n" for turns in conversations))
    require_first_row_is_trained(file, conversations, tmp_path / "data")


def test_the_first_row_of_a_csv_is_what_is_trained(tmp_path: Path) -> None:
    conversations = [numbered(ASKED, name) for name in ("north", "south")]
    file = tmp_path / "rows.csv"
    with open(file, "w", newline="") as sink:
        writer = csv.DictWriter(sink, ["instruction", "input", "output"])
        writer.writeheader()
        writer.writerows(map(alpaca, conversations))
    require_first_row_is_trained(file, conversations, tmp_path / "data")


def require_first_row_is_trained(file: Path, conversations: list[Turns], folder: Path) -> None:
    """Check that the printed first row is the file's, and that SFT's rows have the texts of the file's rows: all tokens
    of the answers and of their ends are trained, and no others."""
    source = f"data.sources=[{{path: {file}, splits: {{sft: 1.0}}}}]"
    cfg = settings("data=file", source, "data.audit.against=null").data
    out = work(folder)
    [note] = joined(cfg, out)["read"]
    contract = establish(byte_level(CHATML, eos_token="<|endoftext|>"), "auto")
    examples = load(out / "examples.parquet", Example)
    rows = read_rows(examples, contract, SFT, out).train.dataset
    decode = contract.tokenizer.decode
    for row, example, turns in zip(rows, examples, conversations, strict=True):
        ids, labels = row["input_ids"], row["labels"]
        rendered = RENDERED_TURN.findall(decode(ids))
        assert [(who, one_line(what)) for who, what in rendered] == [
            (who, one_line(what)) for who, what in turns
        ]
        answers = [what for who, what in rendered if who == ASSISTANT]
        pairs = [(i, label) for i, label in zip(ids, labels, strict=True) if label != IGNORED]
        assert all(i == label for i, label in pairs)
        trained = decode([i for i, _ in pairs])
        assert trained == "".join(f"{answer}<|im_end|>" for answer in answers)
        last = len(contract.tokenizer(f"{answers[-1]}<|im_end|>").input_ids)
        assert labels[-last:] == ids[-last:], "the last answer ends the row"
        if example.messages:
            assert ids[:-last] == contract.prompt(example.messages)
    *prompt, (_, answer) = conversations[0]
    name = "answer" if prompt else "text"
    shown = " | ".join(f"{who}: {one_line(what)}" for who, what in [*prompt, (name, answer)])
    assert note.endswith(f"First row: {shown}")
