"""The door: files, folders and hub datasets become examples; rows that cannot are told apart, with their reason.

JSON and JSON lines (also gzipped; told apart by content, not by name), CSV and Parquet, holding Alpaca's
instruction/input/output, chat `messages`, ShareGPT's `conversations`, prompt/completion, or plain text.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.config.errors import UserError
from stages.config.schema import Source
from stages.data.tasks import prompt_id
from stages.store.pinning import locate
from stages.store.records import Message
from stages.store.work import Work

ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
KINDS = "messages; conversations; instruction, input, output; prompt, completion; text"


class BadRow(Exception):
    """Why a row cannot be used, and which field is to blame."""

    def __init__(self, field: str, reason: str):
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field, self.reason = field, reason


@dataclass
class Row:
    """A row as read: its value, or what is wrong with the line it stood on."""

    file: str
    line: int  # of the file where it has lines, else the row's number; both from 1
    value: Any
    error: BadRow | None = None


def rows(source: Source, key: str) -> Iterator[Row]:
    """Every row of a source, in order."""
    local = locate(source.path, key)
    if local is None:
        from datasets import load_dataset

        try:
            found = load_dataset(source.path, revision=source.revision, split=source.hub_split)
        except Exception as error:  # whatever the hub, its files or its scripts raise
            raise UserError(f"{key}={source.path}: {' '.join(str(error).split())[:300]}") from error
        for i, value in enumerate(found, 1):
            yield Row(source.path, i, value)
        return
    files = sorted(p for p in local.rglob("*") if p.is_file()) if local.is_dir() else [local]
    for file in files:
        yield from rows_of(file)


def rows_of(file: Path) -> Iterator[Row]:
    try:
        if file.suffix == ".parquet":
            for i, value in enumerate(pq.read_table(file).to_pylist(), 1):
                yield Row(str(file), i, value)
            return
        content = file.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile, pa.ArrowInvalid) as error:
        raise UserError(f"{file}: cannot be read, it is broken or cut off ({error}).") from error
    if ".csv" in file.suffixes:
        text = io.StringIO(content.decode("utf-8-sig", errors="replace"), newline="")
        for i, value in enumerate(csv.DictReader(text), 1):
            yield Row(str(file), i, value)
    elif content.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[":
        yield from array_rows(file, content)
    else:
        yield from line_rows(file, content)


def array_rows(file: Path, content: bytes) -> Iterator[Row]:
    """A JSON array. One that is broken has no rows to tell apart, so it is an error as a whole."""
    try:
        values = json.loads(content.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{file}: line {error.lineno}: {error.msg}. Mend the array, or use one JSON object a line."
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: byte {error.start} is not UTF-8. Save the file as UTF-8.") from error
    for i, value in enumerate(values, 1):
        yield Row(str(file), i, value)


def line_rows(file: Path, content: bytes) -> Iterator[Row]:
    """JSON lines. Only \\n ends a line: U+2028 may stand inside a string."""
    for i, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            yield Row(str(file), i, json.loads(line.decode("utf-8-sig")))
        except json.JSONDecodeError as error:
            yield Row(str(file), i, line.decode(errors="replace"), BadRow("", f"broken JSON: {error.msg}"))
        except UnicodeDecodeError:
            yield Row(str(file), i, line.decode(errors="replace"), BadRow("", "not UTF-8"))


def quarantine(bad: list[Row], total: int, limit: float, out: Work, key: str = "data.max_bad") -> None:
    """Keep unusable rows with their reasons; stop where they are too many. `key` names the limit's setting."""
    if not bad:
        return
    with open(out / "quarantine.jsonl", "a") as file:
        for row in bad:
            assert row.error is not None
            entry = {"file": row.file, "line": row.line, "field": row.error.field, "reason": row.error.reason}
            file.write(json.dumps({**entry, "row": row.value}, default=str) + "\n")
    first = bad[0]
    told = f"{first.file}: line {first.line}: {first.error}"
    if len(bad) > limit * total:
        raise UserError(
            f"{told}. {len(bad)} of {total} rows are unusable, more than {key}={limit:g} allows; "
            f"all are in {out / 'quarantine.jsonl'} with their reasons."
        )
    out.warn(f"{len(bad)} of {total} rows are unusable and in quarantine.jsonl; the first: {told}")


def conversation(row: Any) -> tuple[list[Message], str | None]:
    """The messages up to the last request, and the assistant's answer to it, or None where there is none.

    Raises:
        BadRow: for a row that is no conversation.
    """
    if not isinstance(row, dict):
        raise BadRow("", f"a row must be an object, this is a {type(row).__name__}")
    if "messages" in row or "conversations" in row:
        field = "messages" if "messages" in row else "conversations"
        turns = [message(turn, field) for turn in listing(row[field], field)]
        if row.get("system"):
            turns.insert(0, {"role": "system", "content": text(row["system"], "system")})
    elif "instruction" in row:
        request = text(row["instruction"], "instruction")
        if row.get("input"):
            request = f"{request}\n\n{text(row['input'], 'input')}"
        turns = [{"role": "user", "content": request}, *answer(row, "output")]
    elif "prompt" in row:
        if isinstance(row["prompt"], list):
            turns = [message(turn, "prompt") for turn in row["prompt"]]
            turns += [message(turn, "completion") for turn in row.get("completion") or []]
        else:
            turns = [{"role": "user", "content": text(row["prompt"], "prompt")}, *answer(row, "completion")]
    elif "text" in row:
        return [], text(row["text"], "text")
    else:
        raise BadRow("", f"no known columns among {', '.join(map(str, row))}; known: {KINDS}")
    return split_off_answer(turns)


def split_off_answer(turns: list[Message]) -> tuple[list[Message], str | None]:
    """Check who speaks when, and take the last assistant turn off."""
    spoken = [turn["role"] for turn in turns if turn["role"] != "system"]
    if "user" not in spoken:
        raise BadRow("", "no user turn")
    if any(turn["role"] == "system" for turn in turns[1:]):
        raise BadRow("", "a system message that is not the first")
    if spoken != (["user", "assistant"] * len(spoken))[: len(spoken)]:
        raise BadRow("", f"user and assistant do not take turns: {', '.join(spoken)}")
    if turns[-1]["role"] == "assistant":
        return turns[:-1], turns[-1]["content"]
    return turns, None


def message(turn: Any, field: str) -> Message:
    if not isinstance(turn, dict):
        raise BadRow(field, "a turn must be an object with role and content")
    role = turn.get("role", turn.get("from"))
    if not isinstance(role, str) or role not in ROLES:
        raise BadRow(field, f"unknown role {role!r}; known: {', '.join(ROLES)}")
    return {"role": ROLES[role], "content": text(turn.get("content", turn.get("value")), field)}


def answer(row: dict[str, Any], field: str) -> list[Message]:
    if field not in row:
        return []
    return [{"role": "assistant", "content": text(row[field], field)}]


def listing(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise BadRow(field, "must be a list of turns")
    return value


def text(value: Any, field: str) -> str:
    """A string with something in it; typed parts are joined where all are text."""
    if isinstance(value, list) and value and all(isinstance(p, dict) and p.get("type") == "text" for p in value):
        value = "".join(str(part.get("text", part.get("value", ""))) for part in value)
    if not isinstance(value, str):
        raise BadRow(field, f"must be text, is {type(value).__name__}")
    if not value.strip():
        raise BadRow(field, "is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRow(field, "holds half a surrogate pair, which no encoding can store") from None
    return value


def key(messages: list[Message], answer: str | None) -> str:
    """The id of a row's prompt; plain text, which has none, is its own."""
    return prompt_id(messages or [{"role": "assistant", "content": answer or ""}])


def split_of(messages: list[Message], answer: str | None, shares: dict[str, float]) -> str | None:
    """The split that a prompt's hash falls into, or None where the shares leave it out."""
    place = int(key(messages, answer)[:8], 16) / 2**32
    for split, share in sorted(shares.items()):
        if place < share:
            return split
        place -= share
    return None
