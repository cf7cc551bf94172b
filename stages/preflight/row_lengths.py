"""Count which rows of the user's files are longer than a training's `max_length`, before anything is built.

Only the tokenizer is loaded. Nothing is said of hub datasets, of rows that the user's code reads, or if the model's
tokenizer is not on this machine yet: the training then counts its rows before it loads the model."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from math import inf

from stages.config.blocks.data import SPLIT_OF_GROUP, Data, OneSource
from stages.config.blocks.labels import PreferenceFile
from stages.config.blocks.training import Training
from stages.config.choices import Reads, Split
from stages.config.errors import UserError
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

COUNTED = 2000  # rows of a file, from its start
SFT_SPLITS = (Split.sft, Split.validation)
SFT_GROUPS = {group for group, split in SPLIT_OF_GROUP.items() if split in SFT_SPLITS}
File = OneSource | PreferenceFile


def long_rows(trainings: Sequence[Node], nodes: dict[str, Node], store: Store) -> list[str]:
    """Return a sentence for each training that would drop more of its rows as too long than `max_dropped` allows. Of a
    training with rows of several files, and of a file with more than COUNTED rows, the training itself tells it."""
    read = [(node, file) for node in trainings for file in files_read(node) if has_only(file, node)]
    planned = planned_contract(nodes, store) if read else None
    if planned is None:
        return []
    contract, context = planned
    messages = list[str]()
    for node, file in read:
        tokens = count_lengths(node.config, file, contract)
        limit, _, _ = node.config.length_limit(context)
        too_long = [length for length in tokens if length > limit]
        share = len(too_long) / max(1, len(tokens))
        is_whole = 0 < len(tokens) < COUNTED
        if is_whole and (share > node.config.max_dropped or share == 1):
            messages.append(long_rows_message(node, file, len(tokens), too_long, context))
    return [*dict.fromkeys(messages)]  # runs of several seeds read the same rows


def long_rows_message(
    training: Node, file: File, counted: int, too_long: list[int], context: int | None
) -> str:
    _, reason, key = training.config.length_limit(context)
    keeping = ""
    if key:
        keeping = keeping_message(key, counted - len(too_long), too_long, context or inf)
    return (
        f"{file.key}={file.source.path}: {len(too_long)} of {counted} rows are {reason}, the longest has "
        f"{max(too_long):,}. {training.stage}.max_dropped={training.config.max_dropped:g} allows fewer. "
        f"{keeping or 'Shorten the rows'}."
    )


def files_read(training: Node) -> list[File]:
    """Return the local files whose rows a training reads: demonstrations, or a file of preferences."""
    of_data = training.config.objective.reads is Reads.examples
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
    for node in row_lineage(training):
        block = node.config
        is_other = isinstance(block, OneSource) and block.key != file.key
        is_generated = isinstance(block, Data) and not SFT_GROUPS.isdisjoint(block.generated)
        if is_other or is_generated:
            return False
    return True


def planned_contract(nodes: dict[str, Node], store: Store) -> tuple[Contract, int | None] | None:
    """Return the contract that SFT will fix, and the tokens that the model reads; None if the model is not on this
    machine, or SFT will refuse it."""
    base = nodes["base"]
    sft = nodes["sft"].config
    published = store.folder(base) / "model"
    place = published if published.exists() else None
    if place is None and base.config.path:
        place = locate(base.config.path, base.config.key)
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


def row_conversations(training: Training, file: File) -> Iterator[list[list[Message]]]:
    """Yield the conversations of each row that a training reads: a demonstration, a pair's two, or a labelled answer."""
    is_pool = isinstance(file, PreferenceFile)

    def row_if_read(row: ParsedRow) -> ParsedRow | None:
        if is_pool:
            return row
        split = split_of(row.messages, row.answers, row.group, file.source.shares)
        return row if len(row.answers) == 1 and split in SFT_SPLITS else None

    purpose = Purpose.preferences if is_pool else source_purpose(file.source)
    for row in convert(file.source, file.key, row_if_read, purpose, ReadReport()):
        conversations = answered_conversations(row)
        if training.objective.reads is Reads.unpaired:
            for conversation in conversations:
                yield [conversation]
        else:
            yield conversations


def answered_conversations(row: ParsedRow) -> list[list[Message]]:
    """Return the prompt with each of its answers."""
    if row.continuations:
        return [[*row.messages, *answer] for answer in row.continuations]
    return [[*row.messages, {"role": "assistant", "content": text}] for text in row.answers]


def count_lengths(training: Training, file: File, contract: Contract) -> list[int]:
    """Return the tokens of the first rows of a file: of the longest of a row's conversations."""
    tokens = list[int]()
    for conversations in islice(row_conversations(training, file), COUNTED):
        with suppress(UserError):  # what the template refuses is reported by the stage
            stretches = [part for each in conversations for part in contract.stretches(each)]
            tokens.append(max(len(stretch.ids) for stretch in stretches))
    return tokens
