"""The first row that `stage=data` prints is the one that SFT trains, token by token, in every shape of files."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import csv

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


def messages(turns: Turns) -> dict[str, Any]:
    return {"messages": chat(turns)}


def sharegpt(turns: Turns) -> dict[str, Any]:
    names = {USER: "human", ASSISTANT: "gpt"}
    return {"conversations": chat([(names[who], what) for who, what in turns], "from", "value")}


def transcript(turns: Turns) -> dict[str, Any]:
    rendered = (f"<|im_start|>{who}\n{what}<|im_end|>\n" for who, what in turns)
    return {"text": "".join(rendered)}


def alpaca(turns: Turns) -> dict[str, Any]:
    (_, request), (_, answer) = turns
    instruction, _, text = request.partition("\n\n")
    return {"instruction": instruction, "input": text, "output": answer}


def reasoned(turns: Turns) -> dict[str, Any]:
    """The thought of the answer in a column of its own."""
    (_, request), (_, answer) = turns
    thought, _, spoken = answer.removeprefix("<think>\n").partition("\n</think>\n\n")
    return {"question": request, "reasoning": thought, "answer": spoken}


def running_text(turns: Turns) -> dict[str, Any]:
    return {"text": turns[0][1]}


ASKED: Turns = [(USER, "Which is larger, {}?\n\nSeven or five."), (ASSISTANT, "Seven of {} é 是 ✓")]
SHORT: Turns = [(USER, "Say {}."), (ASSISTANT, "  {}: so it is.")]
DIRECTED: Turns = [(SYSTEM, "Answer {} in one word."), (USER, "2 + 2?"), (ASSISTANT, "Four")]
SEVERAL: Turns = [*SHORT, (USER, "Again {}?"), (ASSISTANT, "{}, as before.")]
THOUGHT: Turns = [(USER, "2 + {}?"), (ASSISTANT, "<think>\nAdd {}.\n</think>\n\nIt is {}.")]
RUNNING: Turns = [(ASSISTANT, "Snow fell on {} until noon.\n\nThen it stopped.")]

# How a shape of files writes a conversation, and the conversations.
SHAPES: dict[str, tuple[Callable[[Turns], dict[str, Any]], Turns]] = {
    "alpaca": (alpaca, ASKED),
    "messages": (messages, SHORT),
    "sharegpt": (sharegpt, SEVERAL),
    "system": (messages, DIRECTED),
    "reasoning_column": (reasoned, THOUGHT),
    "transcript": (transcript, SEVERAL),
    "running_text": (running_text, RUNNING),
}


def numbered(turns: Turns, name: str) -> Turns:
    return [(who, what.replace("{}", name)) for who, what in turns]


def one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("shape", [*SHAPES, "csv"])
def test_the_first_row_of_a_shape_is_what_is_trained(shape: str, tmp_path: Path) -> None:
    write_row, template = SHAPES.get(shape, SHAPES["alpaca"])
    conversations = [numbered(template, name) for name in ("north", "south", "east")]
    file = tmp_path / f"rows.{'csv' if shape == 'csv' else 'jsonl'}"
    if shape == "csv":
        csv.write_csv(pa.Table.from_pylist([*map(write_row, conversations)]), file)
    else:
        file.write_text("".join(json.dumps(write_row(turns)) + "\n" for turns in conversations))
    require_first_row_is_trained(file, conversations, tmp_path / "data")


def require_first_row_is_trained(file: Path, conversations: list[Turns], folder: Path) -> None:
    """Check that the printed first row is the file's, and that SFT's rows have the texts of the file's rows: all tokens
    of the answers and of their ends are trained, and no others."""
    source = f"data.sources=[{{path: {file}, splits: {{sft: 1.0}}}}]"
    cfg = settings("data=file", source, "data.audit.against=null").data
    out = work(folder)
    note, *_ = joined(cfg, out)["read"]
    contract = establish(byte_level(CHATML, eos_token="<|endoftext|>"), "auto")
    examples = load(out / "examples.parquet", Example)
    rows = read_rows(examples, contract, SFT, out).train.dataset
    decode = contract.tokenizer.decode
    for row, turns in zip(rows, conversations, strict=True):
        written = decode(row["input_ids"])
        if len(turns) == 1:
            assert written == f"{turns[0][1]}<|endoftext|>"
            assert [*row["labels"]] == [*row["input_ids"]]
            continue
        rendered = RENDERED_TURN.findall(written)
        assert [(who, one_line(what)) for who, what in rendered] == [
            (who, one_line(what)) for who, what in turns
        ]
        pairs = zip(row["input_ids"], row["labels"], strict=True)
        trained = decode([i for i, label in pairs if label != IGNORED])
        answers = [what for who, what in rendered if who == ASSISTANT]
        assert trained == "".join(f"{answer}<|im_end|>" for answer in answers)
    *prompt, (_, answer) = conversations[0]
    name = "answer" if prompt else "running text"
    shown = " | ".join(f"{who}: {one_line(what)}" for who, what in [*prompt, (name, answer)])
    assert note.endswith(f"First row: {shown}")
