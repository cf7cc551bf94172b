"""Count which rows of the user's files are longer than a training's `max_length`, before anything is built.

Only the tokenizer is loaded. Nothing is said of hub datasets, of rows that the user's code reads, or if the model's
tokenizer is not on this machine yet: the training then counts its rows before it loads the model."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from math import inf

from stages.config.blocks.objective import Training
from stages.config.errors import UserError
from stages.models.chat_templates import establish_contract
from stages.models.contract import Contract
from stages.models.loading import context_length, describe_gguf, load_config, load_tokenizer
from stages.preflight.file_rows import (
    MOST_COUNTED,
    File,
    conversations_by_row,
    local_files_read,
    trains_on_exactly,
)
from stages.store.dropped import keeping_message
from stages.store.node import Node
from stages.store.source_files import locate
from stages.store.store import Store


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
