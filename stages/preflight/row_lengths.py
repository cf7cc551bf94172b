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

MOST_COUNTED = 2000  # rows of a file, from its start
SFT_SPLITS = (Split.sft, Split.validation)
SFT_GROUPS = {group for group, split in SPLIT_OF_GROUP.items() if split in SFT_SPLITS}
File = OneSource | PreferenceFile


def messages_of_long_rows(
    trainings: Sequence[Node], nodes: dict[str, Node], store: Store
) -> list[str]:
    """Return a sentence for each training that would drop more of its rows as too long than `max_dropped` allows. It is
    not about trainings that read several files or only some rows, or files with MOST_COUNTED rows or more."""
    read_alone = [
        (training, file)
        for training in trainings
        for file in local_files_read(training)
        if trains_on_exactly(file, training)
    ]
    planned = contract_after_sft(nodes, store) if read_alone else None
    if planned is None:
        return []
    contract, context = planned
    messages = list[str]()
    for training, file in read_alone:
        row_lengths = count_row_lengths(training.config, file, contract)
        limit, _, _ = training.config.length_limit(context)
        too_long = [length for length in row_lengths if length > limit]
        share = len(too_long) / max(1, len(row_lengths))
        is_counted_whole = 0 < len(row_lengths) < MOST_COUNTED
        drops_too_many = share > training.config.max_dropped or share == 1
        if is_counted_whole and drops_too_many:
            messages.append(long_rows_message(training, file, len(row_lengths), too_long, context))
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


def local_files_read(training: Node) -> list[File]:
    """Return the local files whose rows a training reads: demonstrations, or a file of preferences."""
    reads_examples = training.config.objective.reads is Reads.examples
    file_type = OneSource if reads_examples else PreferenceFile
    by_key = dict[str, File]()
    for node in nodes_of_rows(training):
        file = node.config
        has_user_reader = isinstance(file, OneSource) and file.own
        if type(file) is file_type and not has_user_reader and locate(file.source.path, file.key):
            by_key[file.key] = file
    return [*by_key.values()]


def nodes_of_rows(node: Node) -> Iterator[Node]:
    """Yield the nodes that a training's rows come from; not those of another training, such as its start's."""
    for source_node in node.inputs.values():
        if not isinstance(source_node.config, Training):
            yield source_node
            yield from nodes_of_rows(source_node)


def trains_on_exactly(file: File, training: Node) -> bool:
    """Return whether a training has all rows of this file and no others, generated or of another source."""
    if isinstance(file, PreferenceFile):
        return True
    draws_some_rows = file.source.rows or file.source.weight or file.source.epochs
    if draws_some_rows:
        return False
    for node in nodes_of_rows(training):
        block = node.config
        is_other = isinstance(block, OneSource) and block.key != file.key
        is_generated = isinstance(block, Data) and not SFT_GROUPS.isdisjoint(block.generated)
        if is_other or is_generated:
            return False
    return True


def contract_after_sft(nodes: dict[str, Node], store: Store) -> tuple[Contract, int | None] | None:
    """Return the contract that SFT will fix, and the tokens that the model reads; None if the model is not on this
    machine, or SFT will refuse it."""
    base = nodes["base"]
    sft = nodes["sft"].config
    published = store.folder(base) / "model"
    model_path = published if published.exists() else None
    if model_path is None and base.config.path:
        model_path = locate(base.config.path, base.config.key)
    if model_path is None:
        return None
    if model_path.is_dir():
        config = load_config(model_path)
        tokenizer = load_tokenizer(model_path)
    else:
        config, tokenizer = describe_gguf(model_path)
    with suppress(UserError):  # SFT will raise it
        contract = establish_contract(tokenizer, sft.template, sft.train, rows=sys.maxsize)
        return contract, context_length(config)
    return None


def conversations_by_row(training: Training, file: File) -> Iterator[list[list[Message]]]:
    """Yield the conversations of each row that a training reads: a demonstration, a pair's two, or a labelled answer."""
    are_preferences = isinstance(file, PreferenceFile)

    def row_if_read(row: ParsedRow) -> ParsedRow | None:
        if are_preferences:
            return row
        split = split_of(row.messages, row.answers, row.group, file.source.shares)
        return row if len(row.answers) == 1 and split in SFT_SPLITS else None

    purpose = Purpose.preferences if are_preferences else source_purpose(file.source)
    for row in convert(file.source, file.key, row_if_read, purpose, ReadReport()):
        conversations = prompt_with_each_answer(row)
        if training.objective.reads is Reads.unpaired:
            for conversation in conversations:
                yield [conversation]
        else:
            yield conversations


def prompt_with_each_answer(row: ParsedRow) -> list[list[Message]]:
    """Return a row's prompt with each of its answers."""
    if row.continuations:
        return [[*row.messages, *answer] for answer in row.continuations]
    return [[*row.messages, {"role": "assistant", "content": text}] for text in row.answers]


def count_row_lengths(training: Training, file: File, contract: Contract) -> list[int]:
    """Return the tokens of each of a file's first rows: of the longest stretch of its conversations."""
    row_lengths = list[int]()
    for conversations in islice(conversations_by_row(training, file), MOST_COUNTED):
        with suppress(UserError):  # what the template refuses is reported by the stage
            stretches = [
                stretch
                for conversation in conversations
                for stretch in contract.stretches(conversation)
            ]
            row_lengths.append(max(len(stretch.ids) for stretch in stretches))
    return row_lengths
