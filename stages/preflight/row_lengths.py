"""Count which rows of the user's files are longer than a training's `max_length`, before anything is built.

Only the tokenizer is loaded. Nothing is said of hub datasets, of rows that the user's code reads, or if the model's
tokenizer is not on this machine yet: the training then counts its rows before it loads the model."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from math import inf
from pathlib import Path
from random import Random

from stages.config.blocks.data import SPLIT_OF_GROUP, Data, OneSource
from stages.config.blocks.labels import PreferenceFile
from stages.config.blocks.models import Model
from stages.config.blocks.training import ScoredGRPO, Training
from stages.config.choices import Reads, Split
from stages.config.errors import UserError
from stages.evaluation.agreement import share
from stages.formats.column_mapping import Purpose, source_purpose
from stages.formats.format import ParsedRow
from stages.formats.source_reading import ReadReport, convert
from stages.models.chat_templates import establish_contract
from stages.models.contract import Contract
from stages.models.loading import context_length, describe_gguf, load_config, load_tokenizer
from stages.store.dropped import keeping_message
from stages.store.node import Node
from stages.store.records import Message
from stages.store.source_files import locate
from stages.store.splits import split_of
from stages.store.store import Store

READ = 20_000  # rows of a file
COUNTED = 1000  # of them, by their tokens
CERTAIN = 0.999  # confidence of the share of rows that are too long, if not all are counted
File = OneSource | PreferenceFile


@dataclass
class RowLengths:
    """The tokens of each counted row of a file, as a training reads it. Of the file `rows` were read; `whole`: all.
    `context`: the tokens that the model reads, if known."""

    training: Training
    file: File
    tokens: list[int]
    rows: int
    whole: bool
    context: int | None

    @property
    def too_long(self) -> list[int]:
        limit, _, _ = self.training.longest(self.context)
        return [length for length in self.tokens if length > limit]

    @property
    def exceeds_limit(self) -> bool:
        """True if the training is certain to drop more than the share `max_dropped` of the file's rows, or all."""
        long = len(self.too_long)
        counted = len(self.tokens)
        if not long or not self.whole:
            return False
        if counted < self.rows:
            return share(long, counted, CERTAIN).low > self.training.max_dropped
        return long == counted or long / counted > self.training.max_dropped

    @property
    def message(self) -> str:
        """The sentences on the rows that the training leaves out, at least one."""
        long = self.too_long
        counted = len(self.tokens)
        _, reason, key = self.training.longest(self.context)
        rows = f"{counted} rows"
        if counted < self.rows:
            rows = f"{counted} of {self.rows:,} rows"
        place = f"{self.file.key}={self.file.source.path}"
        problem = f"{place}: {len(long)} of {rows} are {reason}, the longest has {max(long):,}."
        keeping = ""
        if key:
            keeping = keeping_message(key, counted - len(long), long, self.context or inf)
        return f"{problem} {keeping}." if keeping else problem


def long_rows(
    trainings: Sequence[Node], nodes: dict[str, Node], store: Store
) -> tuple[list[str], list[str]]:
    """Return sentences on trainings that leave out rows of a file as too long: errors of those that would drop more
    than `max_dropped` allows and have no other rows, and warnings of the others."""
    read = [(node, file) for node in trainings for file in files_read(node)]
    planned = planned_contract(nodes, store) if read else None
    if planned is None:
        return [], []
    errors = list[str]()
    warnings = list[str]()
    for node, file in read:
        lengths = count_lengths(node.config, file, *planned)
        if lengths.exceeds_limit and has_only(file, node):
            errors.append(refusal(node, lengths))
        elif lengths.too_long:
            warnings.append(lengths.message)
    # runs of several seeds read the same rows
    return [*dict.fromkeys(errors)], [*dict.fromkeys(warnings)]


def refusal(training: Node, lengths: RowLengths) -> str:
    limit = f"{training.stage}.max_dropped={training.config.max_dropped:g}"
    way_out = "Set such a length" if " keeps " in lengths.message else "Shorten the rows"
    return f"{lengths.message} {limit} allows fewer. {way_out}."


def files_read(training: Node) -> list[File]:
    """Return the local files whose rows a training reads: prompts and demonstrations, or a file of preferences."""
    of_data = training.config.objective.reads in (Reads.examples, Reads.prompts)
    kind = OneSource if of_data else PreferenceFile
    by_key = dict[str, File]()
    for node in row_lineage(training):
        file = node.config
        has_reader = isinstance(file, OneSource) and file.own
        if type(file) is kind and not has_reader and locate(file.source.path, file.key):
            by_key[file.key] = file
    return [*by_key.values()]


def row_lineage(node: Node) -> Iterator[Node]:
    """Yield the nodes that a training's rows come from; not those of another training, such as its start's."""
    for source in node.inputs.values():
        if not isinstance(source.config, Training):
            yield source
            yield from row_lineage(source)


def has_only(file: File, training: Node) -> bool:
    """Return whether a training has the rows of this file and no others, generated or of another source."""
    if isinstance(file, PreferenceFile):
        return True
    if file.source.rows or file.source.weight or file.source.epochs:
        return False  # of whose rows some are drawn
    splits = splits_read(training.config)
    for node in row_lineage(training):
        block = node.config
        if isinstance(block, OneSource) and block.key != file.key:
            return False
        if isinstance(block, Data) and any(
            SPLIT_OF_GROUP[name] in splits for name in block.generated
        ):
            return False
    return True


def splits_read(training: Training) -> tuple[Split, Split]:
    if training.objective.reads is Reads.prompts:
        return Split.preference, Split.validation
    return Split.sft, Split.validation


def planned_contract(nodes: dict[str, Node], store: Store) -> tuple[Contract, int | None] | None:
    """Return the contract that SFT will fix, and the tokens that the model reads; None if the model is not on this
    machine, or SFT will refuse it."""
    base = nodes["base"]
    sft = nodes["sft"].config
    published = store.folder(base) / "model"
    place = published if published.exists() else model_place(base.config)
    if place is None:
        return None
    if place.is_dir():
        config = load_config(place)
        tokenizer = load_tokenizer(place)
    else:
        config, tokenizer = describe_gguf(place)
    with suppress(UserError):
        contract = establish_contract(tokenizer, sft.template, sft.train, rows=sys.maxsize)
        return contract, context_length(config)
    return None


def model_place(model: Model) -> Path | None:
    """Return the folder or GGUF file of a model; None for one of the hub, or with random weights."""
    return locate(model.path, model.key) if model.path else None


def row_conversations(training: Training, file: File) -> Iterator[list[list[Message]]]:
    """Yield the conversations of each row that a training reads: a demonstration, a pair's two, a labelled answer or a
    prompt."""
    reads = training.objective.reads
    is_pool = isinstance(file, PreferenceFile)

    def row_if_read(row: ParsedRow) -> ParsedRow | None:
        if is_pool:
            return row
        split = split_of(row.messages, row.answers, row.group, file.source.shares)
        is_answered = reads is Reads.prompts or len(row.answers) == 1
        return row if is_answered and split in splits_read(training) else None

    purpose = Purpose.preferences if is_pool else source_purpose(file.source)
    for row in convert(file.source, file.key, row_if_read, purpose, ReadReport()):
        if reads is Reads.prompts:
            yield [row.messages]
        elif reads is Reads.unpaired:
            for conversation in answered_conversations(row):
                yield [conversation]
        else:
            yield answered_conversations(row)


def answered_conversations(row: ParsedRow) -> list[list[Message]]:
    """Return the prompt with each of its answers."""
    if row.continuations:
        return [[*row.messages, *answer] for answer in row.continuations]
    return [[*row.messages, {"role": "assistant", "content": text}] for text in row.answers]


def count_lengths(
    training: Training, file: File, contract: Contract, context: int | None
) -> RowLengths:
    """Return the tokens of rows of a file: of the longest of a row's conversations. If the file has many rows, those
    that are counted are drawn from all that are read."""
    rows = list(islice(row_conversations(training, file), READ))
    drawn = Random(0).sample(rows, COUNTED) if len(rows) > COUNTED else rows
    tokens = list[int]()
    for conversations in drawn:
        with suppress(UserError):  # what the template refuses is reported by the stage
            tokens.append(max(count_tokens(each, training, contract) for each in conversations))
    return RowLengths(training, file, tokens, len(rows), len(rows) < READ, context)


def count_tokens(conversation: list[Message], training: Training, contract: Contract) -> int:
    """Return the tokens that count for `max_length`: of a prompt, with those of its completions."""
    if isinstance(training, ScoredGRPO):
        return len(contract.prompt(conversation)) + training.max_new_tokens
    return max(len(stretch.ids) for stretch in contract.stretches(conversation))
