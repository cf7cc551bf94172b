"""However a row is damaged, it is used, left out, quarantined with a reason, or its file is refused. Every text that is
trained stands in the file's row."""

import csv
import io
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.config.blocks.data import Source
from stages.config.errors import UserError
from stages.formats.column_mapping import Purpose
from stages.formats.format import ParsedRow
from stages.formats.phrased import FOLDER
from stages.formats.source_reading import ReadReport, convert
from stages.formats.turns import parse_notation
from stages.store.text_units import plain_words
from stages.store.tool_calls import TOOLS
from tests.formats.reading import KEY, lines

Value = Any
# Two requests and their answers, all of one row, whose number is in each text
Texts = list[str]
MOST_MUTATIONS = 3  # of a row
ROWS_A_FILE = 4
# Marks that the readers write themselves, between the texts of a row
WRITTEN = re.compile(
    r"</?think>|</?tool_call>|</?tools>|\b(?:user|assistant|tool): |"
    + "|".join(re.escape(line) for line in TOOLS.split("\n") if line.strip() and "{" not in line)
)
# Columns that a mutation adds
COLUMNS = [
    "label", "reasoning", "system", "text", "score", "chosen", "rejected", "input", "output", "weight", "id", "source",
    "tools", "history", "messages", "completion", "answer", "response", "loss", "mask", "is_correct", "preference",
    "images", "lang",
]  # fmt: skip
MUTATIONS = [
    "drop", "null", "empty", "type", "swap", "nest", "cut", "column", "double", "role", "reverse",
]  # fmt: skip
ROLES = ["user", "assistant", "system", "tool", "human", "gpt", "model", "critic", "", None]


def texts_of(number: int) -> Texts:
    return [
        f"{kind}{number}-{i} has {word} {number}."
        for i in (1, 2)
        for kind, word in (("ask", "north"), ("reply", "south"))
    ]


def turns(
    texts: Texts, role: str = "role", text: str = "content", names: str = "user assistant"
) -> list[dict[str, Any]]:
    return [{role: who, text: what} for who, what in zip(names.split() * 2, texts, strict=False)]


def parts(texts: Texts, key: str = "content", names: str = "user assistant") -> list[Any]:
    typed = {"type": "text"} if key == "content" else {}
    return [
        {"role": who, key: [{**typed, "text": what}]}
        for who, what in zip(names.split() * 2, texts, strict=False)
    ]


def marked(texts: Texts, mark: str, names: str = "user assistant", end: str = "") -> str:
    pairs = zip(names.split() * 2, texts, strict=False)
    return "".join(mark.format(who) + what + end for who, what in pairs)


def called(texts: Texts) -> list[dict[str, Any]]:
    function = {"name": "stock", "arguments": json.dumps({"item": texts[1]})}
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": function}]}
    result = {"role": "tool", "content": texts[2]}
    return [{"role": "user", "content": texts[0]}, call, result, *turns(["", texts[3]])[1:]]


def used(texts: Texts) -> list[dict[str, Any]]:
    """Calls and results as Anthropic writes them."""
    use = {"type": "tool_use", "id": "1", "name": "stock", "input": {"item": texts[1]}}
    result = {"type": "tool_result", "tool_use_id": "1", "content": texts[2]}
    contents = (texts[0], [use], [result], [{"type": "text", "text": texts[3]}])
    return turns([*contents])


def messages_of(texts: Texts) -> list[dict[str, Any]]:
    """A message a row, as in OpenAssistant's trees."""
    names = [f"{text[:8]}" for text in texts]
    return [
        {"message_id": name, "parent_id": parent, "text": text, "role": role, "rank": 0}
        for name, parent, text, role in zip(
            names, [None, *names], texts, ["prompter", "assistant"] * 2, strict=False
        )
    ]


def tree(texts: Texts) -> dict[str, Any]:
    other, best = ({"role": "assistant", "text": t, "rank": i} for i, t in enumerate(texts[2:0:-1]))
    root = {"role": "prompter", "text": texts[0], "replies": [other, best]}
    return {"message_tree_id": "1", "prompt": root}


TOOL = {"type": "function", "function": {"name": "stock", "description": "Count an item."}}
Shape = Callable[[Texts], dict[str, Any] | list[Any]]
ANSWERS: dict[str, Shape] = {
    "alpaca": lambda t: {"instruction": t[0], "input": t[2], "output": t[1]},
    "alpaca_history": lambda t: {"instruction": t[2], "output": t[3], "history": [t[:2]]},
    "dolly": lambda t: {"instruction": t[0], "context": t[2], "response": t[1], "category": "qa"},
    "completion": lambda t: {"prompt": t[0], "completion": t[1]},
    "question": lambda t: {"system_prompt": t[2], "question": t[0], "answer": t[1]},
    "reasoning": lambda t: {"question": t[0], "reasoning": t[2], "answer": t[1]},
    "turns_each": lambda t: {"prompt": turns(t[:3]), "completion": turns(t)[3:]},
    "chat": lambda t: {"messages": turns(t)},
    "chat_system": lambda t: {"messages": [{"role": "system", "content": "Be brief."}, *turns(t)]},
    "system_column": lambda t: {"messages": turns(t[:2]), "system": t[2]},
    "thoughts": lambda t: {"messages": [*turns(t)[:3], {**turns(t)[3], "reasoning": "Because."}]},
    "channels": lambda t: {
        "messages": [
            *turns(t)[:1],
            {"role": "assistant", "channel": "analysis", "content": t[2]},
            {"role": "assistant", "channel": "final", "content": t[1]},
        ]
    },
    "weighted": lambda t: {"messages": [{**turn, "weight": i % 2} for i, turn in enumerate(turns(t))]},
    "sharegpt": lambda t: {"conversations": turns(t, "from", "value", "human gpt")},
    "sharegpt_tools": lambda t: {
        "conversations": turns(
            [t[0], json.dumps({"name": "stock", "arguments": {"item": t[1]}}), t[2], t[3]],
            "from", "value", "human function_call observation gpt",
        ),
        "tools": json.dumps([TOOL]),
    },
    "json_text": lambda t: {"messages": json.dumps(turns(t))},
    "python_text": lambda t: {"messages": repr(turns(t))},
    "json_each": lambda t: {"messages": [*map(json.dumps, turns(t))]},
    "lists": lambda t: {"messages": {"role": ["user", "assistant"] * 2, "content": t}},
    "alternating": lambda t: {"conversations": t},
    "role_lines": lambda t: {"messages": [f"user: {t[0]}", f"assistant: {t[1]}"]},
    "exchanges": lambda t: {"conversation": [{"input": t[0], "output": t[1]}, {"input": t[2], "output": t[3]}]},
    "ultrachat": lambda t: {"id": "1", "data": t},
    "parts": lambda t: {"messages": parts(t)},
    "gemini": lambda t: {"contents": parts(t, "parts", "user model"), "systemInstruction": {"parts": [{"text": "Be brief."}]}},
    "anthropic": lambda t: {"messages": used(t)},
    "tools": lambda t: {"messages": called(t), "tools": [TOOL]},
    "xlam": lambda t: {"query": t[0], "answers": json.dumps([{"name": "stock", "arguments": {"item": t[1]}}]), "tools": json.dumps([{"name": "stock"}])},
    "hermes": lambda t: {"text": marked(t, "<|im_start|>{}\n", end="<|im_end|>\n")},
    "guanaco": lambda t: {"text": marked(t, "### {}: ", "Human Assistant", "\n")},
    "plain_words": lambda t: {"conversation": marked(t, "{}: ", "User Assistant", "\n")},
    "running_text": lambda t: {"text": " ".join(t), "url": "http://example.org"},
    "kto": lambda t: {"prompt": t[0], "completion": t[1], "label": len(t[0]) % 2 == 0},
    "kto_chat": lambda t: {"messages": turns(t), "label": True},
    "batches": lambda t: {"custom_id": "1", "method": "POST", "body": {"messages": turns(t)}},
    "tree": tree,
    "messages_of_a_tree": messages_of,
}  # fmt: skip
COMPARED: dict[str, Shape] = {
    "chosen": lambda t: {"prompt": t[0], "chosen": t[1], "rejected": t[3]},
    "chosen_turns": lambda t: {"prompt": turns(t[:1]), "chosen": turns(t)[1:2], "rejected": turns(t)[3:]},
    "chosen_whole": lambda t: {"chosen": turns(t), "rejected": turns([*t[:3], t[1]])},
    "hh": lambda t: {
        side: marked(each, "\n\n{}: ", "Human Assistant")
        for side, each in (("chosen", t), ("rejected", [*t[:3], t[1]]))
    },
    "several_rejected": lambda t: {"prompt": t[0], "chosen": t[1], "rejected": t[2:]},
    "scored_sides": lambda t: {"prompt": t[0], "chosen": t[1], "rejected": t[3], "score_chosen": 2, "score_rejected": 1},
    "swift": lambda t: {"messages": turns(t[:2]), "rejected_response": t[3]},
    "compared": lambda t: {"instruction": t[0], "output_1": t[1], "output_2": t[3], "preference": 1 + len(t[0]) % 2},
    "arena": lambda t: {"conversation_a": turns(t[:2]), "conversation_b": turns([t[0], t[3]]), "winner": "model_b"},
    "help_steer": lambda t: {"prompt": t[0], "response_1": t[1], "response_2": t[3], "preference_strength": -1},
    "scored": lambda t: {"prompt": t[0], "completions": [{"text": t[1], "score": 2}, {"text": t[3], "score": 0.5}]},
    "scored_lists": lambda t: {"prompt": t[0], "responses": [t[1], t[3]], "scores": [1, 2]},
    "ranked": lambda t: {"prompt": t[0], "answers": [{"answer": t[1], "rank": 1}, {"answer": t[3], "rank": 2}]},
    "web_gpt": lambda t: {"question": {"full_text": t[0]}, "quotes_0": {}, "answer_0": t[1], "score_0": 1.0, "answer_1": t[3], "score_1": -1.0},
    "kto_pairs": lambda t: {"prompt": t[0], "completion": t[1], "label": len(t[0]) % 2 == 0},
    "tree_pairs": tree,
}  # fmt: skip
PHRASED: dict[str, tuple[str, Shape]] = {
    "sentiment": ("sentiment", lambda t: {"text": t[0], "label": ("pos", "neg")[len(t[0]) % 2]}),
    "multiple_choice": (
        "multiple_choice",
        lambda t: {"question": t[0], "choices": t[1:], "answer": "B"},
    ),
}


class File(NamedTuple):
    """A file, and its rows by their lines."""

    path: Path
    rows: dict[int, dict[str, Any]]


SHAPES = (
    [(name, Purpose.answers, {}, shape) for name, shape in ANSWERS.items()]
    + [(name, Purpose.preferences, {}, shape) for name, shape in COMPARED.items()]
    + [(name, Purpose.answers, {"task": task}, shape) for name, (task, shape) in PHRASED.items()]
)


# Mutations


def places(value: Value) -> Iterator[tuple[Any, Any]]:
    """Yield every place in a row: the object or list, and its key or index."""
    keys = [*value] if isinstance(value, dict) else [*range(len(value))]
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list) and value[key]:
            yield from places(value[key])


def nested(value: Value, rng: random.Random) -> Value:
    kinds: list[Value] = [
        {"value": value},
        [value],
        json.dumps(value),
        repr(value),
        {"text": value},
    ]
    return rng.choice(kinds)


def mutate(row: dict[str, Any], rng: random.Random) -> None:
    """Change one thing in a row."""
    holder, key = rng.choice([*places(row)])
    value = holder[key]
    kind = rng.choice(MUTATIONS)
    if kind == "drop":
        del holder[key]
    elif kind == "null":
        holder[key] = None
    elif kind == "empty":
        holder[key] = rng.choice(["", " \n", [], {}])
    elif kind == "type":
        wrong: list[Value] = [7, 0, -1.5, True, False, ["x1"], {"k": "x2"}, [[]], "x3", "1", 10**30]
        holder[key] = rng.choice(wrong)
    elif kind == "swap":
        other, place = rng.choice([*places(row)])
        if not isinstance(value, dict | list) and not isinstance(other[place], dict | list):
            holder[key], other[place] = other[place], value
    elif kind == "nest":
        holder[key] = nested(value, rng)
    elif kind == "cut" and isinstance(value, str):
        holder[key] = value[: rng.randrange(len(value) + 1)]
    elif kind == "column":
        new: list[Value] = ["extra text", 0, 1, True, False, None, ["e1"], {"k": 1}]
        row[rng.choice(COLUMNS)] = rng.choice(new)
    elif kind == "double" and isinstance(holder, list):
        holder.insert(key, json.loads(json.dumps(value)))
    elif kind == "reverse" and isinstance(value, list):
        value.reverse()
    elif kind == "role":
        roles = [(of, name) for of, name in places(row) if name in ("role", "from")]
        if roles:
            of, name = rng.choice(roles)
            of[name] = rng.choice(ROLES)


def mutated_rows(shape: Shape, number: int, rng: random.Random) -> list[dict[str, Any]]:
    """Return the rows of a file, of which some are mutated."""
    rows = list[dict[str, Any]]()
    for i in range(ROWS_A_FILE):
        written = json.loads(json.dumps(shape(texts_of(number * ROWS_A_FILE + i))))
        rows += written if isinstance(written, list) else [written]
    for row in rows:
        for _ in range(rng.randint(0, MOST_MUTATIONS)):
            if row:
                mutate(row, rng)
    return rows


def write_rows(rows: list[dict[str, Any]], folder: Path, rng: random.Random) -> File:
    """Write rows as JSON lines, as an array, as Parquet if it takes their types or, with nested values as JSON, as CSV."""
    kind = rng.choice(["jsonl", "json", "parquet", "csv"])
    path, numbered = folder / f"rows.{kind}", dict(enumerate(rows, 1))
    if kind == "jsonl":
        path = lines(folder, rows)
    elif kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "parquet":
        columns = dict.fromkeys(key for row in rows for key in row)
        try:
            pq.write_table(pa.table({key: [row.get(key) for row in rows] for key in columns}), path)
        except (pa.ArrowException, TypeError, OverflowError):
            path = lines(folder, rows)
    else:
        columns = dict.fromkeys(key for row in rows for key in row)
        rows = [{key: as_cell(row.get(key)) for key in columns} for row in rows]
        written = [
            "".join(map(csv_line, (columns, *map(dict.values, rows[:i]))))
            for i in range(len(rows) + 1)
        ]
        numbered = {before.count("\n") + 1: row for before, row in zip(written, rows, strict=False)}
        path.write_text(written[-1], newline="")
    return File(path, numbered)


def csv_line(cells: Iterable[Value]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


def as_cell(value: Value) -> Value:
    return json.dumps(value) if isinstance(value, dict | list) else value


# Texts of a row


def leaves(value: Value) -> Iterator[str]:
    """Yield all texts, numbers and keys in a value, also of values that are JSON or Python's notation in a text."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from leaves(item)
    else:
        yield one_line(str(value))
        inner = (
            parse_notation(value)
            if isinstance(value, str) and value[:1] in tuple("[{\"'")
            else None
        )
        if inner is not None:
            yield from leaves(inner)
        if isinstance(value, bool | None):
            yield json.dumps(value)


def one_line(text: str) -> str:
    return " ".join(text.split())


def foreign_text(text: str, known: list[str]) -> str:
    """Return the first part of a trained text that none of the known texts has; empty if there is none. The readers
    join texts by line breaks, or by nothing, and write calls as JSON."""
    whole = "\0".join(known)
    for piece in filter(None, map(one_line, WRITTEN.sub("\n", text).splitlines())):
        if piece in whole:
            continue
        if isinstance(call := parse_notation(piece), dict | list):
            missing = [
                leaf
                for leaf in leaves(call)
                if leaf not in whole and leaf not in ("name", "arguments", "null", "true", "false")
            ]
        else:
            rest = piece
            for leaf in sorted({*known} - {""}, key=len, reverse=True):
                rest = rest.replace(leaf, "")
            missing = [rest] * bool(rest.strip())
        if missing:
            return missing[0]
    return ""


def are_turns(value: Value) -> bool:
    if isinstance(value, list):
        return any(map(are_turns, value))
    is_turn = (
        isinstance(value, dict) and {"role", "from"} & {*value} and {"content", "value"} & {*value}
    )
    return bool(is_turn) and (value.get("role") or value.get("from")) in ROLES


def texts_in(row: ParsedRow) -> list[str]:
    continued = [turn["content"] for turns in row.continuations or [] for turn in turns]
    return [turn["content"] for turn in row.messages] + (continued or row.answers)


def read_mutated(file: File, purpose: Purpose, source: dict[str, Any]) -> Counter[str]:
    """Read a file; return how many of its rows are used, left out, in quarantine or refused."""
    report = ReadReport()
    # a conversation may be in several rows, and options are the labels of all rows
    is_shared = bool(source) or any("message_id" in row for row in file.rows.values())
    columns = {column for row in file.rows.values() for column in row}
    phrasings = (FOLDER / f"{source['task']}.yaml").read_text() if source else ""

    def require_own_texts(parsed: ParsedRow) -> ParsedRow:
        row = [*file.rows.values()] if is_shared else file.rows[report.position[1]]
        known = [*leaves(row)]
        assert all(answer.strip() for answer in parsed.answers)
        for text in texts_in(parsed):
            assert text not in columns, f"the name of a column: {text} in {row}"
            assert not are_turns(parse_notation(text)), f"{text!r} of {row}"
            if source:  # a phrasing of the task
                foreign = {*plain_words(text)} - {*plain_words(" ".join([phrasings, "or", *known]))}
            else:
                foreign = foreign_text(text, known)
            assert not foreign, f"{foreign!r} of {text!r} of {row}"
        return parsed

    try:
        path = Source(str(file.path), **source)
        used = list(convert(path, KEY, require_own_texts, purpose, report))
    except UserError as error:
        assert file.path.name in str(error) and "\n" not in str(error)
        return Counter(refused=len(file.rows))
    assert report.usable == len(used)
    assert all(row.error and str(row.error) for row in report.bad_rows)
    return Counter(used=len(used), quarantined=len(report.bad_rows))


def read_many(files_a_shape: int, seed: int, folder: Path) -> Counter[str]:
    counts = Counter[str]()
    for name, purpose, source, shape in SHAPES:
        rng = random.Random(f"{name} {seed}")
        for number in range(files_a_shape):
            rows = mutated_rows(shape, number, rng)
            if any(rows):
                counts += read_mutated(write_rows(rows, folder, rng), purpose, source)
                counts["rows"] += len(rows)
    return counts


def test_mutated_rows_are_used_or_refused(tmp_path: Path) -> None:
    counts = read_many(2, 0, tmp_path)
    assert min(counts.values()) > 20, counts


@pytest.mark.slow
def test_ten_thousand_mutated_rows_are_used_or_refused(tmp_path: Path) -> None:
    counts = read_many(50, 1, tmp_path)
    assert counts["rows"] >= 10_000 and min(counts.values()) > 1_000, counts
