"""Candidates and their judgements, read one prompt at a time, and records sorted in files."""

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, compress, groupby, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from stages.store.records import Candidate, Example, Judgement, Record, Records, save, stream
from stages.store.table_schema import Int32

ROWS_PER_PART = 20_000  # records in memory at a time when they are sorted


@dataclass
class TokenCount:
    """The lengths of a candidate in tokens, read without its text and its token ids, which take most of the time."""

    prompt_id: str
    candidate_id: str
    logprob: float | None
    n_tokens: Int32
    answer_tokens: int | None = None

    @property
    def length(self) -> int:
        """The number of tokens of the answer without its thought."""
        return self.n_tokens if self.answer_tokens is None else self.answer_tokens


Row = TypeVar("Row", bound=Candidate | TokenCount | Judgement)


def read_judged_prompts(folder: Path) -> Iterator[tuple[Example, list[Candidate], list[Judgement]]]:
    """Yield each prompt of a label node with its candidates and their judgements."""
    prompts = Records(folder / "prompts.parquet", Example)
    ids = [*prompts.column("id")]
    candidates = group_by_prompt(Records(folder / "candidates.parquet", Candidate), ids)
    judgements = group_by_prompt(Records(folder / "judgements.parquet", Judgement), ids)
    return zip(prompts, candidates, judgements, strict=True)


def group_by_prompt(
    records: Sequence[Row] | Records[Row], prompts: Sequence[str]
) -> Iterator[list[Row]]:
    """Yield the list of records of each prompt, in the order of `prompts`. Most records are stored in that order. The
    others, which come after records of a later prompt, are read first."""
    turn = {prompt: i for i, prompt in enumerate(prompts)}
    turns = np.fromiter((turn[prompt] for prompt in column(records, "prompt_id")), np.int32)
    late = turns < np.maximum.accumulate(turns)
    del turn, turns  # the generator may be open for hours
    late_records = defaultdict[str, list[Row]](list)
    if late.any():
        for record in compress(records, late):
            late_records[record.prompt_id].append(record)
    for prompt, prompt_records in zip(
        prompts, split_by_prompt(compress(records, ~late), prompts), strict=True
    ):
        yield prompt_records + late_records.pop(prompt, [])


def split_by_prompt(records: Iterable[Row], prompts: Iterable[str]) -> Iterator[list[Row]]:
    """Yield the list of records of each prompt. The records are in the order of `prompts`."""
    groups = groupby(records, lambda record: record.prompt_id)
    group = next(groups, None)
    for prompt in prompts:
        if group and group[0] == prompt:
            yield [*group[1]]
            group = next(groups, None)
        else:
            yield []


def sort_on_disk(
    records: Iterable[Record], kind: type[Record], key: Callable[[Record], Any], folder: Path
) -> Iterator[Record]:
    """Return the records in the order of `key`; equal keys keep their order. Sorted parts wait in files of `folder`,
    so that only few records are in memory at a time. Of parts that follow each other, one file is open at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    waiting, runs, last_key = iter(records), list[list[Path]](), None
    while rows := sorted(islice(waiting, ROWS_PER_PART), key=key):
        if not runs or key(rows[0]) < last_key:
            runs.append([])
        runs[-1].append(folder / f"{len(runs):06d}-{len(runs[-1]):06d}.parquet")
        save(runs[-1][-1], rows, kind)
        last_key = key(rows[-1])
    return heapq.merge(
        *(chain.from_iterable(stream(part, kind) for part in run) for run in runs), key=key
    )


def column(records: Sequence[Record] | Records[Record], name: str) -> Iterator[Any]:
    """Yield one field of every record."""
    return (
        records.column(name)
        if isinstance(records, Records)
        else (getattr(record, name) for record in records)
    )
