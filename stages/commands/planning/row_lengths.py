"""Count which of the first rows of the user's files are longer than `max_length`, before anything is built."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path

from stages.config.blocks.data import OneSource
from stages.config.blocks.labels import PreferenceFile
from stages.config.blocks.models import Model
from stages.config.blocks.training import Training
from stages.config.choices import Reads, Split
from stages.config.errors import UserError
from stages.formats.column_mapping import Purpose, source_purpose
from stages.formats.format import ParsedRow
from stages.formats.source_reading import ReadReport, convert
from stages.models.chat_templates import establish_contract
from stages.models.contract import Contract
from stages.models.loading import describe_gguf, load_tokenizer
from stages.store.node import Node
from stages.store.records import Message
from stages.store.source_files import locate
from stages.store.splits import conversation_of, draw_split, prompt_of
from stages.store.store import Store

FIRST = 200  # rows of a file


def length_warnings(nodes: dict[str, Node], store: Store) -> list[str]:
    """Return a sentence for each training and file whose first rows do not all fit into `max_length`. Nothing is said
    of hub datasets, of rows that the user's code reads, or if the model's tokenizer is not on this machine yet."""
    trainings = [node for node in nodes.values() if isinstance(node.config, Training)]
    read = [(node, file) for node in trainings for file in files_read(node)]
    if not read or (contract := planned_contract(nodes, store)) is None:
        return []
    files = {file.key: file for _, file in read}
    lengths = {key: row_lengths(file, contract) for key, file in files.items()}
    sentences = [length_warning(node.config, file, lengths[file.key]) for node, file in read]
    return [sentence for sentence in dict.fromkeys(sentences) if sentence]


def files_read(training: Node) -> list[OneSource | PreferenceFile]:
    """Return the local files whose rows a training reads: SFT demonstrations, others a file of preferences."""
    kind = OneSource if training.config.objective.reads is Reads.examples else PreferenceFile
    files = [node.config for node in training.lineage if isinstance(node.config, kind)]
    return [
        file
        for file in files
        if not (isinstance(file, OneSource) and file.own)
        and locate(file.source.path, file.key) is not None
    ]


def planned_contract(nodes: dict[str, Node], store: Store) -> Contract | None:
    """Return the contract that SFT will fix; None if the model is not on this machine, or SFT will refuse it."""
    base, sft = nodes["base"], nodes["sft"].config
    published = store.folder(base) / "model"
    place = published if published.exists() else model_place(base.config)
    if place is None:
        return None
    tokenizer = load_tokenizer(place) if place.is_dir() else describe_gguf(place)[1]
    with suppress(UserError):
        return establish_contract(tokenizer, sft.template, sft.train, rows=sys.maxsize)
    return None


def model_place(model: Model) -> Path | None:
    """Return the folder or GGUF file of a model; None for one of the hub, or with random weights."""
    return locate(model.path, model.key) if model.path else None


def row_conversations(file: OneSource | PreferenceFile) -> Iterator[list[list[Message]]]:
    """Yield the conversations of each row that is trained: one with a demonstration, or one for each answer."""

    def parsed(row: ParsedRow) -> ParsedRow | None:
        if isinstance(file, PreferenceFile):
            return row
        answer = row.answers[0] if len(row.answers) == 1 else None
        prompt = prompt_of(row.messages, answer)
        split = draw_split(conversation_of(prompt, row.messages, row.group), file.source.shares)
        return row if split == Split.sft and answer is not None else None

    is_pool = isinstance(file, PreferenceFile)
    purpose = Purpose.preferences if is_pool else source_purpose(file.source)
    for row in convert(file.source, file.key, parsed, purpose, ReadReport()):
        answers = row.continuations or [
            [{"role": "assistant", "content": answer}] for answer in row.answers
        ]
        yield [[*row.messages, *answer] for answer in answers]


def row_lengths(file: OneSource | PreferenceFile, contract: Contract) -> list[int]:
    """Return the tokens of each of the first rows of a file, of the longest of a row's conversations."""
    lengths = list[int]()
    for conversations in islice(row_conversations(file), FIRST):
        with suppress(UserError):  # what the template refuses is reported by the stage
            stretches = chain.from_iterable(map(contract.stretches, conversations))
            lengths.append(max(len(each.ids) for each in stretches))
    return lengths


def length_warning(block: Training, file: OneSource | PreferenceFile, lengths: list[int]) -> str:
    """Return the sentence on the rows of a file that a training leaves out; '' if there are none."""
    too_long = sum(length > block.max_length for length in lengths)
    if not too_long:
        return ""
    return (
        f"{block.block}.max_length={block.max_length} leaves out {too_long} of the first {len(lengths)} rows of "
        f"{file.key}={file.source.path}. The longest has {max(lengths)} tokens."
    )
