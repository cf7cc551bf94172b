"""However a row is damaged, it is used, left out, quarantined with a reason, or its file is refused. Every text that is
trained stands in the file's row."""

import csv
import io
import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
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
from tests.formats.test_formats import EXAMPLES, PREFERENCES

Value = Any
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


LETTERS = re.compile(r"\b[a-d]\b")  # the requests and answers in rows of test_formats.py


def numbered(value: Value, number: int) -> Value:
    """Return a copy of a row in which each text has the row's number."""
    if isinstance(value, dict):
        return {key: numbered(each, number) for key, each in value.items()}
    if isinstance(value, list):
        return [numbered(each, number) for each in value]
    if isinstance(value, str):
        return LETTERS.sub(rf"\g<0>{number} has word {number}.", value)
    return value


OPTIONS = {"question": "a", "choices": ["b", "c", "d"], "answer": "B"}
# a row, the purpose of its file, and the settings of the source
SHAPES: list[tuple[dict[str, Any], Purpose, dict[str, str]]] = [
    *((row, Purpose.answers, {}) for row, *_ in EXAMPLES),
    *((row, Purpose.preferences, {}) for row, *_ in PREFERENCES),
    ({"text": "a", "label": "pos"}, Purpose.answers, {"task": "sentiment"}),
    (OPTIONS, Purpose.answers, {"task": "multiple_choice"}),
]


class File(NamedTuple):
    """A file, and its rows by their lines."""

    path: Path
    rows: dict[int, dict[str, Any]]


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


def mutated_rows(row: dict[str, Any], number: int, rng: random.Random) -> list[dict[str, Any]]:
    """Return the rows of a file, of which some are mutated."""
    rows = [numbered(row, number * ROWS_A_FILE + i) for i in range(ROWS_A_FILE)]
    for each in rows:
        for _ in range(rng.randint(0, MOST_MUTATIONS)):
            if each:
                mutate(each, rng)
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
    is_shared = bool(source)  # options are the labels of all rows
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
    for shape, (row, purpose, source) in enumerate(SHAPES):
        rng = random.Random(f"{shape} {seed}")
        for number in range(files_a_shape):
            rows = mutated_rows(row, number, rng)
            if any(rows):
                counts += read_mutated(write_rows(rows, folder, rng), purpose, source)
                counts["rows"] += len(rows)
    return counts


def test_mutated_rows_are_used_or_refused(tmp_path: Path) -> None:
    counts = read_many(1, 0, tmp_path)
    assert min(counts.values()) > 20, counts


@pytest.mark.slow
def test_ten_thousand_mutated_rows_are_used_or_refused(tmp_path: Path) -> None:
    counts = read_many(35, 1, tmp_path)
    assert counts["rows"] >= 10_000 and min(counts.values()) > 1_000, counts
