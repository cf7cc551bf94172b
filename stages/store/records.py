"""The tables that pass between stages. Each is a Parquet file that `datasets.load_dataset` opens as it is.

Ids are hashes of content: a re-run, a shard or another machine names the same prompt the same way. Something that
failed is missing, with its error: never a zero, never a default.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from stages.store.kept import WRONG_SHAPE, Damaged

Message = dict[str, str]  # role, content
GROUP = 10_000  # rows that are written at a time
AND = " + "  # between the kinds of constraint that a task names

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def content_id(*content: Any) -> str:
    """16 hex digits of the SHA-256 of the content as JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


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

    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("id", pa.string()),
            ("messages", MESSAGES),
            ("reference", pa.string()),
            *((name, pa.string()) for name in ("source", "task", "split", "kind", "group", "request")),
            ("checks", pa.list_(pa.struct([("kind", pa.string()), ("params", pa.string())]))),  # params as JSON
            *(("trained", pa.list_(pa.bool_())), ("licence", pa.string()), ("origin", pa.string())),
        ]
    )

    @property
    def tasks(self) -> list[str]:
        """What `task` names: the family, or every kind of constraint of an open request."""
        return self.task.split(AND)

    @property
    def conversation(self) -> list[Message]:
        """The messages with the reference as the last assistant turn."""
        return [*self.messages, {"role": "assistant", "content": self.reference or ""}]


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
    token_ids: list[int] | None
    finish_reason: str
    logprob: float | None
    n_tokens: int
    tokenizer: str | None = None

    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("prompt_id", pa.string()),
            ("candidate_id", pa.string()),
            ("policy", pa.string()),
            ("sampler", pa.string()),
            ("temperature", pa.float64()),
            ("seed", pa.int64()),
            ("text", pa.string()),
            ("token_ids", pa.list_(pa.int32())),
            ("finish_reason", pa.string()),
            ("logprob", pa.float64()),
            ("n_tokens", pa.int32()),
            ("tokenizer", pa.string()),
        ]
    )

    @classmethod
    def of_text(cls, prompt: str, text: str, policy: str, sampler: str, n_tokens: int) -> "Candidate":
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

    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("prompt_id", pa.string()),
            ("labeler", pa.string()),
            ("candidate_id", pa.string()),
            ("score", pa.float64()),
            ("a", pa.string()),
            ("b", pa.string()),
            ("preference", pa.string()),
            ("order_swapped_agrees", pa.bool_()),
            ("raw", pa.string()),
            ("error", pa.string()),
        ]
    )


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
    chosen_token_ids: list[int] | None = None
    rejected_token_ids: list[int] | None = None
    chosen_tokenizer: str | None = None
    rejected_tokenizer: str | None = None
    rejected_finish_reason: str = "stop"
    chosen_policy: str | None = None
    rejected_policy: str | None = None

    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("id", pa.string()),
            ("prompt_id", pa.string()),
            ("prompt", MESSAGES),
            ("chosen", MESSAGES),
            ("rejected", MESSAGES),
            ("margin", pa.float64()),
            ("labeler", pa.string()),
            ("strategy", pa.string()),
            ("chosen_id", pa.string()),
            ("rejected_id", pa.string()),
            ("split", pa.string()),
            ("chosen_token_ids", pa.list_(pa.int32())),
            ("rejected_token_ids", pa.list_(pa.int32())),
            ("chosen_tokenizer", pa.string()),
            ("rejected_tokenizer", pa.string()),
            ("rejected_finish_reason", pa.string()),
            ("chosen_policy", pa.string()),
            ("rejected_policy", pa.string()),
        ]
    )


@dataclass
class PairLogProbs:
    """Token ids of a pair and the reference's log-prob of every completion token. The end of turn is among them where
    the completion has one."""

    id: str
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    chosen_logps: list[float]
    rejected_logps: list[float]

    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("id", pa.string()),
            ("prompt_ids", pa.list_(pa.int32())),
            ("chosen_ids", pa.list_(pa.int32())),
            ("rejected_ids", pa.list_(pa.int32())),
            ("chosen_logps", pa.list_(pa.float32())),
            ("rejected_logps", pa.list_(pa.float32())),
        ]
    )


class Row(Protocol):
    """A dataclass that says which columns a table of it has."""

    schema: ClassVar[pa.Schema]

    def __init__(self, **fields: Any): ...


Record = TypeVar("Record", bound=Row)


def save(path: Path, records: Iterable[Record], kind: type[Record]) -> None:
    """Write records as Parquet, a group of rows at a time; whole or not at all."""
    draft, waiting = path.with_suffix(".draft"), iter(records)
    with pq.ParquetWriter(draft, kind.schema) as table:
        while rows := [as_row(record) for record in islice(waiting, GROUP)]:
            table.write_table(pa.Table.from_pylist(rows, schema=kind.schema))
    draft.replace(path)


def as_row(record: Any) -> dict[str, Any]:
    """A record's fields; checks with their parameters as JSON."""
    row = {**vars(record)}
    if "checks" in row:
        row["checks"] = [{"kind": c.kind, "params": json.dumps(c.params, sort_keys=True)} for c in row["checks"]]
    return row


def load(path: Path, kind: type[Record]) -> list[Record]:
    """The records of a table that `save` wrote. Raises Damaged for any other file."""
    try:
        rows = pq.read_table(path).to_pylist()
        for row in rows:
            if "checks" in row:
                row["checks"] = [Check(c["kind"], json.loads(c["params"])) for c in row["checks"]]
        return [kind(**row) for row in rows]
    except (pa.ArrowException, OSError, *WRONG_SHAPE) as error:
        raise Damaged(path, error) from error


def prompt_id(messages: list[Message]) -> str:
    """A hash of the prompt, blind to case and white space: near copies count as the same prompt."""
    return content_id([[m["role"], " ".join(m["content"].lower().split())] for m in messages])
