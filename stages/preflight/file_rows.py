"""The rows of the user's files that a training reads, before anything is built. No model and no tokenizer is loaded."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import islice

from stages.config.blocks.data import SPLIT_OF_GROUP, Data, OneSource
from stages.config.blocks.labels import PreferenceDataset
from stages.config.blocks.objective import Training
from stages.config.choices import Reads, Split
from stages.config.errors import UserError
from stages.formats.column_mapping import Purpose, source_purpose
from stages.formats.format import ParsedRow
from stages.formats.source_reading import ReadReport, convert
from stages.store.node import Node
from stages.store.records import Message
from stages.store.source_files import locate
from stages.store.splits import split_of

MOST_COUNTED = 2000  # rows of a file, from its start
SFT_SPLITS = (Split.sft, Split.validation)
SFT_GROUPS = {group for group, split in SPLIT_OF_GROUP.items() if split in SFT_SPLITS}
BYTES_PER_TOKEN = 3.0  # English has 4, and other languages have fewer with a small vocabulary
TEMPLATE_TOKENS = 12  # that a chat template adds to a prompt and an answer
File = OneSource | PreferenceDataset


@dataclass(frozen=True)
class FileLengths:
    """The rows of a training's files, up to MOST_COUNTED of each, and the estimated tokens of their conversations.
    `whole`: no file has more rows."""

    rows: int
    mean_tokens: float
    longest_tokens: float
    whole: bool


@cache
def file_lengths(training: Node) -> FileLengths | None:
    """Return the lengths of the local files that a training reads; None without one, if it reads other rows too, or if
    no row can be read, which the stage reports."""
    rows = 0
    lengths = list[float]()
    whole = True
    # the control reads the better answers of a file of preferences
    for file in local_files_read(training) or local_files(training, PreferenceDataset):
        if not trains_on_exactly(file, training):
            return None
        rows_of_file = list[list[list[Message]]]()
        with suppress(UserError):
            rows_of_file += islice(conversations_by_row(training.config, file), MOST_COUNTED)
        rows += len(rows_of_file)
        whole = whole and len(rows_of_file) < MOST_COUNTED
        lengths += [
            estimated_tokens(conversation)
            for conversations in rows_of_file
            for conversation in conversations
        ]
    if not lengths:
        return None
    return FileLengths(rows, sum(lengths) / len(lengths), max(lengths), whole)


def estimated_tokens(conversation: list[Message]) -> float:
    """Return the tokens of a conversation, estimated by its bytes."""
    size = sum(len(turn["content"].encode(errors="replace")) for turn in conversation)
    return size / BYTES_PER_TOKEN + TEMPLATE_TOKENS


def local_files_read(training: Node) -> list[File]:
    """Return the local files whose rows a training reads: demonstrations, or a file of preferences."""
    reads_examples = training.config.objective.reads is Reads.examples
    return local_files(training, OneSource if reads_examples else PreferenceDataset)


def local_files(training: Node, file_type: type[File]) -> list[File]:
    """Return the local files of a type that the rows of a training come from."""
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
    if isinstance(file, PreferenceDataset):
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


def conversations_by_row(training: Training, file: File) -> Iterator[list[list[Message]]]:
    """Yield the conversations of each row that a training reads: a demonstration, a pair's two, or a labelled answer."""
    are_preferences = isinstance(file, PreferenceDataset)

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
