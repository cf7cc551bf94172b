"""The records that stages pass on. Each kind is a Parquet file, which `datasets.load_dataset` can open.

Ids are hashes of content, so a re-run, a shard or another machine gives the same prompt the same id. A value that
could not be computed is null with an error next to it, never zero or a default."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from json.encoder import encode_basestring_ascii as quoted
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from stages.store.sealed_json import WRONG_SHAPE, Damaged
from stages.store.table_schema import Float32, Int32, arrow_type, records_of, schema_of, table_of
from stages.store.text_units import as_seen, count_words
from stages.store.thoughts import answer_behind, never_ends, thought_before

Message = Annotated[dict[str, str], pa.struct([("role", pa.string()), ("content", pa.string())])]
ROWS_PER_GROUP = 10_000  # rows that are written together
ROWS_PER_PIECE = 200  # records in memory at a time when a table is read or written
FILE_SAMPLERS = ("dataset", "file")  # samplers that read candidates instead of drawing them
KIND_SEPARATOR = " + "  # separates the kinds of constraints in the field `task`
MESSAGES = arrow_type(list[Message])
# LZ4 is read in half of snappy's time, and its files are as large. A dictionary of texts that hardly repeat costs more
# time than it saves, so its size is limited (in bytes).
PACKED = {"compression": "lz4", "dictionary_pagesize_limit": 1 << 16}
ENCODE = json.JSONEncoder(sort_keys=True).encode


def content_id(*content: Any) -> str:
    """Return 16 hex digits of the SHA-256 of the content as JSON."""
    return hash_text(ENCODE(content))


def hash_text(json_text: str) -> str:
    return hashlib.sha256(json_text.encode()).hexdigest()[:16]


@dataclass
class Check:
    """A check of an answer as data. `tasks/checks.py` defines the kinds and their parameters."""

    kind: str
    params: dict[str, Any] = field(default_factory=dict)


@dataclass
class Example:
    """A conversation up to its last request, with the reference answer if there is one. `group` is the group of a test
    prompt: seen, unseen_phrasings, unseen_tasks or rephrased. Rephrased prompts with the same `request` are phrasings
    of one request. For open requests, `group` is the key of `data.tasks`. `trained` says for each assistant turn
    whether SFT trains it (None: all). The source or the row states `licence` and `origin`. Rows with the same text in
    `together` are in one split."""

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
    together: str | None = None

    @property
    def tasks(self) -> list[str]:
        """The names in `task`: a task family, or each kind of constraint of an open request."""
        return self.task.split(KIND_SEPARATOR)

    @property
    def limited_tasks(self) -> list[str]:
        """The tasks that `max_per_task` limits. Empty for a row from a file, whose task is the file's name."""
        return [] if self.task == self.source else self.tasks

    @property
    def opening(self) -> str:
        """The start of the last request on one line, which tells a person which row an error is about; '' of plain text."""
        requests = [message["content"] for message in self.messages[-1:]]
        return " ".join(" ".join(requests).split())[:60]

    @property
    def conversation(self) -> list[Message]:
        """The messages with the reference as the last assistant turn."""
        return [*self.messages, {"role": "assistant", "content": self.reference or ""}]


@dataclass
class SourceRow(Example):
    """An example of one source, before the sources are joined, with the file and the line it was read from."""

    file: str = ""
    line: int = 0


@dataclass
class Candidate:
    """One completion of a prompt. `logprob` is the sum over all `n_tokens` tokens, with the end of turn, at
    temperature 1. `finish_reason` is stop (the completion ended its turn) or length (it was truncated, or its thought
    never ends). `token_ids` and `logprob` are None for text from a file or from an endpoint that does not return them.
    `tokenizer` is the digest of the contract of `token_ids`. `continuation` has several messages, whose transcript is
    `text`. `answer_tokens` counts the tokens behind the thought, 0 if it never ends; None without a thought."""

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
    continuation: list[Message] | None = None
    answer_tokens: int | None = None

    @property
    def messages(self) -> list[Message]:
        return self.continuation or [{"role": "assistant", "content": self.text}]

    @property
    def has_thought(self) -> bool:
        """True if the text, or one of several turns of the assistant, begins with a thought."""
        texts = [turn["content"] for turn in self.messages if turn["role"] == "assistant"]
        return self.answer_tokens is not None or any(answer_behind(t) != t for t in texts)

    @property
    def answer(self) -> str:
        """The text behind the thought, which is what is judged; '' if the thought never ends."""
        if self.continuation:
            return self.text
        return "" if self.answer_tokens == 0 else answer_behind(self.text)

    @property
    def thought(self) -> str:
        """The thought without its marks; '' without one. Where the prompt begins it, a thought may have no mark."""
        if self.answer_tokens is None:
            return ""
        return thought_before(self.text) or ("" if self.answer else self.text.strip())

    @property
    def length(self) -> int:
        """The number of tokens of the answer without its thought."""
        return self.n_tokens if self.answer_tokens is None else self.answer_tokens

    @property
    def stripped_text(self) -> str:
        """The text as it is seen, without white space at its ends. Two candidates with the same stripped text are copies."""
        return as_seen(self.text).strip()

    @classmethod
    def from_text(
        cls, prompt: str, text: str, policy: str, sampler: str, n_tokens: int
    ) -> "Candidate":
        """Return a candidate for text that was not sampled here: temperature, seed and token ids are unknown, and words
        take the place of tokens."""
        unknown: dict[str, Any] = {
            "temperature": 0.0,
            "seed": 0,
            "token_ids": None,
            "logprob": None,
        }
        name, answer = content_id(prompt, text), answer_behind(text)
        return cls(
            prompt,
            name,
            policy,
            sampler,
            text=text,
            finish_reason="length" if never_ends(text) else "stop",
            n_tokens=n_tokens,
            answer_tokens=None if answer == text else count_words(answer),
            **unknown,
        )


@dataclass
class Judgement:
    """A judgement of one candidate (`score` in [0, 1]) or of two (`a`, `b`, `preference`: a, b or tie), or `error`."""

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
    """A preference pair in TRL's conversational columns, with its origin and, for sampled completions, their token
    ids. A chosen completion always ended its turn. A rejected one may have been truncated (finish reason length).
    `chosen_first`: the file of preferences lists chosen before rejected; None for other pairs. `repeats`: the pair is held out, and nearly
    equals a training pair."""

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
    chosen_first: bool | None = None
    repeats: bool = False

    @property
    def completions(self) -> list[list[Message]]:
        """Both completions."""
        return [self.chosen, self.rejected]

    @property
    def parts_early(self) -> bool:
        """True if chosen or rejected is several turns. Their assistant turns are trained from where the two part."""
        return len(self.chosen) + len(self.rejected) > 2

    @property
    def chosen_finish_reason(self) -> str:
        return "stop"

    @property
    def cuts_rejected(self) -> bool:
        """True if `rejected` may lose its end where prompt and completion have no room."""
        return False


@dataclass
class PairLogProbs:
    """Token ids of a pair, and the reference model's log-probability of each scored completion token: those that the
    mask selects (None: all). The end of turn is a completion token, unless the completion was truncated. `digest`: the
    hash of the pair and of its tokens when they were scored; None in tables of earlier versions."""

    id: str
    prompt_ids: list[Int32]
    chosen_ids: list[Int32]
    rejected_ids: list[Int32]
    chosen_logps: list[Float32]
    rejected_logps: list[Float32]
    chosen_mask: list[bool] | None = None
    rejected_mask: list[bool] | None = None
    digest: str | None = None


Record = TypeVar("Record")


def save(path: Path, records: Iterable[Record], kind: type[Record]) -> None:
    """Write records as a Parquet file, in groups of rows. The file appears only when it is complete."""
    # already in a file
    if isinstance(records, Records) and pq.read_schema(records.path) == schema_of(kind):
        shutil.copyfile(records.path, draft := path.with_suffix(".draft"))
        draft.replace(path)
        return
    save_tables(path, to_tables(records, kind), kind)


def to_tables(records: Iterable[Any], kind: type[Record]) -> Iterator[pa.Table]:
    """Yield the records as tables of one group of rows each. Only few records are in memory at a time, since the
    garbage collector visits all living objects again and again."""
    waiting = iter(records)
    pieces = iter(lambda: list(islice(waiting, ROWS_PER_PIECE)), [])
    piece_tables = (table_of(rows, kind) for rows in pieces)
    while tables := list(islice(piece_tables, -(-ROWS_PER_GROUP // ROWS_PER_PIECE))):
        yield pa.concat_tables(tables)


def save_tables(path: Path, tables: Iterable[pa.Table], kind: type[Record]) -> None:
    """Write tables of records as one Parquet file, as `save` does. Each table becomes a group of rows."""
    draft = path.with_suffix(".draft")
    with pq.ParquetWriter(draft, schema_of(kind), **PACKED) as file:
        for table in tables:
            file.write_table(table)
    draft.replace(path)


def load(path: Path, kind: type[Record]) -> list[Record]:
    """Return the records of a file that `save` wrote. Raise Damaged for any other file."""
    return list(stream(path, kind))


@contextmanager
def open_table(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file. Raise Damaged if the file cannot be opened, or if its use raises a fitting error."""
    try:
        with pq.ParquetFile(path) as table:
            yield table
    except (pa.ArrowException, OSError, *WRONG_SHAPE) as error:
        raise Damaged(path, error) from error


def stream(path: Path, kind: type[Record]) -> Iterator[Record]:
    """Yield the records of a file that `save` wrote. Only few of them are in memory at a time. Of a class with fewer
    fields than the file's, only the columns of these fields are read."""
    with open_table(path) as table:
        for batch in table.iter_batches(ROWS_PER_PIECE, columns=schema_of(kind).names):
            yield from records_of(batch, kind)


class Records(Generic[Record]):
    """The records of a file that `save` wrote. Each iteration reads the file again, a few records at a time."""

    def __init__(self, path: Path, kind: type[Record]):
        self.path, self.kind = path, kind

    def __iter__(self) -> Iterator[Record]:
        return stream(self.path, self.kind)

    def __len__(self) -> int:
        with open_table(self.path) as table:
            return table.metadata.num_rows  # type: ignore[no-any-return]

    def column(self, name: str) -> Iterator[Any]:
        """Yield one field of every record. Only few records are in memory at a time."""
        with open_table(self.path) as table:
            for batch in table.iter_batches(ROWS_PER_GROUP, columns=[name]):
                yield from batch[name].to_pylist()


def prompt_id(messages: list[Message]) -> str:
    """Return a hash of the prompt that ignores case, white space, Unicode forms and invisible characters, so that near
    copies count as one prompt."""
    # Each string is encoded alone: `ENCODE` of a list takes three times as long as the rest of this function.
    turns = [f"[{quoted(m['role'])}, {quoted(one_form(m['content']))}]" for m in messages]
    return hash_text(f"[[{', '.join(turns)}]]")


def one_form(text: str) -> str:
    """Return a text in lower case, with single spaces, as it is seen."""
    return " ".join(as_seen(text).lower().split())
