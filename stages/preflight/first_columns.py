"""The user's columns in the first rows of the files that a labeler's prompts come from, before anything is built."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

from stages.config.blocks.data import OneSource
from stages.config.blocks.labels import PreferenceDataset
from stages.config.blocks.sampling import CandidateFile
from stages.config.errors import UserError
from stages.formats.column_mapping import Purpose, source_purpose
from stages.formats.format import ParsedRow
from stages.formats.source_reading import ReadReport, convert
from stages.store.node import Node
from stages.store.source_files import locate
from stages.store.store import Store
from stages.store.user_columns import MODELS, UserColumns, read_first_row
from stages.store.workspace import COLUMNS

ROWS_READ = 100  # rows of a file


def read_first_columns(nodes: Sequence[Node], store: Store) -> UserColumns | None:
    """Return the columns that the nodes' prompts will have, with the value of a row for each. Return None if a file is
    not on this machine yet, so that its columns are unknown."""
    values = dict[str, Any]()
    columns = UserColumns()
    readers = {reader.fingerprint: reader for node in nodes for reader in nodes_with_files(node)}
    for reader in readers.values():
        folder = store.folder(reader)
        is_built = folder.exists() and store.rebuild != reader.stage
        if is_built and (folder / COLUMNS).exists():
            values = read_first_row(folder) | values
        elif is_built:
            columns.lacking.append(folder)
        else:
            of_file = first_values(reader.config)
            if of_file is None:
                return None
            values = of_file | values
    columns.names = [*values]
    columns.others = values
    return columns


def nodes_with_files(node: Node) -> Iterator[Node]:
    """Yield the nodes that read a file of the user's, among a node and its inputs, except those of models."""
    if isinstance(node.config, OneSource | PreferenceDataset | CandidateFile):
        yield node
    for source_node in node.inputs.values():
        if source_node.stage not in MODELS:
            yield from nodes_with_files(source_node)


def first_values(block: OneSource | PreferenceDataset | CandidateFile) -> dict[str, Any] | None:
    """Return a value of each column of a file that is kept, from its first rows; None if it is not on this machine."""
    key = f"{block.key}.file" if isinstance(block, CandidateFile) else block.key
    purpose = Purpose.candidates
    if isinstance(block, OneSource):
        purpose = source_purpose(block.source)
    elif isinstance(block, PreferenceDataset):
        purpose = Purpose.preferences
    if locate(block.source.path, key) is None:
        return None
    user_reader = None
    if isinstance(block, OneSource) and block.own:
        user_reader = read_nothing
    report = ReadReport()
    with suppress(UserError):  # the check of this file reports it
        for _ in islice(
            convert(block.source, key, return_row, purpose, report, user_reader), ROWS_READ
        ):
            pass
    return report.kept.first_values()


def read_nothing(row: Any) -> ParsedRow:
    """Return an empty row: what a user-defined reader makes of a row does not matter here."""
    return ParsedRow([], [])


def return_row(row: ParsedRow) -> ParsedRow:
    return row
