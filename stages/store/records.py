"""The tables that pass between stages. Each is a Parquet file that `datasets.load_dataset` opens as it is.

Ids are hashes of content: a re-run, a shard or another machine names the same prompt the same way. Something that
failed is missing, with its error: never a zero, never a default.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from json.encoder import encode_basestring_ascii as quoted
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from stages.store.sealed_json import WRONG_SHAPE, Damaged
from stages.store.table_schema import Float32, Int32, arrow_type, records_of, schema_of, table_of

Message = Annotated[dict[str, str], pa.struct([("role", pa.string()), ("content", pa.string())])]
ROWS_PER_GROUP = 10_000  # rows that are written at a time
ROWS_PER_PIECE = 200  # records that are held at a time, on their way into a table or out of it
FILE_SAMPLERS = ("dataset", "file")  # samplers of text that somebody has already
KIND_SEPARATOR = " + "  # between the kinds of constraint that a task names
MESSAGES = arrow_type(list[Message])
# LZ4 takes half of what snappy does to read, and writes files as large. A dictionary of texts that hardly come twice
# takes longer than it saves: it ends where it is large, in bytes.
PACKED = {"compression": "lz4", "dictionary_pagesize_limit": 1 << 16}
ENCODE = json.JSONEncoder(sort_keys=True).encode


def content_id(*content: Any) -> str:
    """16 hex digits of the SHA-256 of the content as JSON."""
    return hash_text(ENCODE(content))


def hash_text(json_text: str) -> str:
    return hashlib.sha256(json_text.encode()).hexdigest()[:16]


@dataclass
class Check:
    """A check as data: `tasks/checks.py` says what each kind asks of an answer."""

    kind: str
    params: dict[str, Any] = field(default_factory=dict)


@dataclass
class Example:
    """A conversation up to its last request, with the reference answer where there is one.

    `group` tells test prompts apart: seen, unseen_phrasings, unseen_tasks, rephrased (a request in all its phrasings,
    known by `request`); of open requests it is the key of `data.tasks` that asked for them. `trained`: whether each
    assistant turn of the conversation is, in order; None: all are. `licence` and `origin` are what the source or the
    row itself states.
    """

    id: str
    messages: list[Message]
    reference: str | None
    source: str
    task: str
    split: str
    kind: str = ""
    group: str = "seen"
    request: str = ""
    checks: list[Check] = field(default_factory=list)
    trained: list[bool] | None = None
    licence: str | None = None
    origin: str | None = None

    @property
    def tasks(self) -> list[str]:
        """What `task` names: the family, or every kind of constraint of an open request."""
        return self.task.split(KIND_SEPARATOR)

    @property
    def limited_tasks(self) -> list[str]:
        """The tasks of which a run takes only so many pairs or answers; none for a row of a file, whose task is the
        file's name."""
        return [] if self.task == self.source else self.tasks

    @property
    def conversation(self) -> list[Message]:
        """The messages with the reference as the last assistant turn."""
        return [*self.messages, {"role": "assistant", "content": self.reference or ""}]


@dataclass
class SourceRow(Example):
    """An example before it joins those of other sources, with where it was read."""

    file: str = ""
    line: int = 0


@dataclass
class Candidate:
    """One completion of a prompt; `logprob` is its sum over `n_tokens` tokens, end of turn included, at
    temperature 1. `finish_reason` is stop (it ended its turn) or length. Text that was not sampled here, or by an
    endpoint that says no more, has neither `token_ids` nor `logprob`. `tokenizer`: the digest of the contract under
    which the ids were drawn."""

    prompt_id: str
    candidate_id: str
    policy: str
    sampler: str
    temperature: float
    seed: int
    text: str
    token_ids: list[Int32] | None
    finish_reason: str
    logprob: float | None
    n_tokens: Int32
    tokenizer: str | None = None

    @property
    def stripped_text(self) -> str:
        """The text without the white space around it: two candidates that have the same one are copies."""
        return self.text.strip()

    @classmethod
    def from_text(cls, prompt: str, text: str, policy: str, sampler: str, n_tokens: int) -> "Candidate":
        """Text that somebody has already: how it was drawn, nobody says."""
        return cls(
            prompt_id=prompt,
            candidate_id=content_id(prompt, text),
            policy=policy,
            sampler=sampler,
            temperature=0.0,
            seed=0,
            text=text,
            token_ids=None,
            finish_reason="stop",
            logprob=None,
            n_tokens=n_tokens,
        )


@dataclass
class Judgement:
    """Of one candidate (`score`, in [0, 1]) or of two (`a`, `b`, `preference`: a, b or tie); else `error`."""

    prompt_id: str
    labeler: str
    candidate_id: str | None = None
    score: float | None = None
    a: str | None = None
    b: str | None = None
    preference: str | None = None
    order_swapped_agrees: bool | None = None
    raw: str | None = None
    error: str | None = None


@dataclass
class Pair:
    """TRL's conversational preference columns, where the pair comes from, and the token ids of its completions where
    they were drawn. A chosen completion ended its turn; a rejected one may have been cut off (length). The policies
    are those of the two candidates."""

    id: str
    prompt_id: str
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    margin: float | None
    labeler: str
    strategy: str
    chosen_id: str
    rejected_id: str
    split: str  # train or validation
    chosen_token_ids: list[Int32] | None = None
    rejected_token_ids: list[Int32] | None = None
    chosen_tokenizer: str | None = None
    rejected_tokenizer: str | None = None
    rejected_finish_reason: str = "stop"
    chosen_policy: str | None = None
    rejected_policy: str | None = None


@dataclass
class PairLogProbs:
    """Token ids of a pair and the reference's log-prob of every completion token. The end of turn is among them where
    the completion has one."""

    id: str
    prompt_ids: list[Int32]
    chosen_ids: list[Int32]
    rejected_ids: list[Int32]
    chosen_logps: list[Float32]
    rejected_logps: list[Float32]


@dataclass
class Outcome:
    """What became of a model's answer to a prompt; `passed`: all its checks."""

    prompt_id: str
    role: str
    passed: bool
    n_tokens: Int32
    stopped: bool


Record = TypeVar("Record")


def save(path: Path, records: Iterable[Record], kind: type[Record]) -> None:
    """Write records as Parquet, a group of rows at a time; whole or not at all."""
    save_tables(path, to_tables(records, kind), kind)


def to_tables(records: Iterable[Any], kind: type[Record]) -> Iterator[pa.Table]:
    """Records as tables of a group of rows. Few are held at a time: the garbage collector walks through all objects
    that stay, again and again."""
    waiting = iter(records)

    def pieces() -> Iterator[pa.Table]:
        while rows := list(islice(waiting, ROWS_PER_PIECE)):
            yield table_of(rows, kind)

    piece_tables = pieces()
    while tables := list(islice(piece_tables, -(-ROWS_PER_GROUP // ROWS_PER_PIECE))):
        yield pa.concat_tables(tables)


def save_tables(path: Path, tables: Iterable[pa.Table], kind: type[Record]) -> None:
    """As `save`, of records that are columns already: each table is a group of rows."""
    draft = path.with_suffix(".draft")
    with pq.ParquetWriter(draft, schema_of(kind), **PACKED) as file:
        for table in tables:
            file.write_table(table)
    draft.replace(path)


def load(path: Path, kind: type[Record]) -> list[Record]:
    """The records of a table that `save` wrote. Raises Damaged for any other file."""
    return list(stream(path, kind))


def stream(path: Path, kind: type[Record]) -> Iterator[Record]:
    """As `load`, a group of rows at a time."""
    try:
        with pq.ParquetFile(path) as table:
            for batch in table.iter_batches(ROWS_PER_PIECE):
                yield from records_of(batch, kind)
    except (pa.ArrowException, OSError, *WRONG_SHAPE) as error:
        raise Damaged(path, error) from error


class Records(Generic[Record]):
    """The records of a table that `save` wrote, which are read whenever they are asked for: few are held at a time."""

    def __init__(self, path: Path, kind: type[Record]):
        self.path, self.kind = path, kind

    def __iter__(self) -> Iterator[Record]:
        return stream(self.path, self.kind)

    def __len__(self) -> int:
        return len(self.columns())

    def columns(self, *names: str) -> pa.Table:
        """These fields of them all, without the others."""
        try:
            return pq.read_table(self.path, columns=[*names])
        except (pa.ArrowException, OSError, *WRONG_SHAPE) as error:
            raise Damaged(self.path, error) from error

    def column(self, name: str) -> list[Any]:
        """One field of them all."""
        return self.columns(name)[name].to_pylist()  # type: ignore[no-any-return]


def prompt_id(messages: list[Message]) -> str:
    """A hash of the prompt, blind to case and white space: near copies count as the same prompt."""
    # JSON of the strings one by one: `ENCODE` of a list takes three times as long as all else here.
    turns = [f"[{quoted(m['role'])}, {quoted(' '.join(m['content'].lower().split()))}]" for m in messages]
    return hash_text(f"[[{', '.join(turns)}]]")
