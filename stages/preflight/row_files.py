"""Files of rows, read as far as their first rows: whether there are any, and what their format is."""

from typing import TYPE_CHECKING

from stages.config.blocks.data import Source
from stages.config.errors import UserError
from stages.store import plugins
from stages.store.node import Node
from stages.store.source_files import commit_of, locate
from stages.store.store import Store

if TYPE_CHECKING:
    from stages.formats.column_mapping import Wanted


def require_source(node: Node, store: Store) -> None:
    """Raise UserError where a source of data cannot be read as what its splits need, nor an evaluation set that rows
    are held against."""
    from stages.formats.column_mapping import Wanted, wanted_of

    block = node.config
    require_rows(block.source, block.key, wanted_of(block.source), of_own=bool(block.own))
    for i, source in enumerate(block.audit.against or ()):
        require_rows(source, f"data.audit.against[{i}].path", Wanted.prompts)


def require_preferences(node: Node, store: Store) -> None:
    """Raise UserError where a file of preferences holds none."""
    from stages.formats.column_mapping import Wanted

    if node.config.brings_pool:
        require_rows(node.config.source, node.config.key, Wanted.preferences)


def require_candidates(node: Node, store: Store) -> None:
    """Raise UserError where a file of candidates holds none."""
    from stages.formats.column_mapping import Wanted

    if not plugins.user_path(node.config.file).is_file():
        return  # told where it is pinned
    require_rows(node.config.source, f"{node.config.key}.file", Wanted.candidates)


def require_rows(source: Source, key: str, wanted: "Wanted", of_own: bool = False) -> None:
    """Raise UserError where a source's first rows are not what is wanted. Rows that a reader `of_own` reads may be
    anything; those of the hub are looked at when they are there."""
    from stages.formats import detection
    from stages.formats.column_mapping import Wanted
    from stages.formats.readers import files

    if locate(source.path, key) is None:
        commit_of(source.path, source.revision, "dataset", key)
        return
    try:
        for table in files.tables(source, key, wanted is Wanted.preferences):
            if next(table.rows(), None):
                if not of_own:
                    detection.recognised(table, detection.peeked(table), source, key, wanted)
                return
    except UserError as error:
        block = key.removesuffix(".path").removesuffix(".file")
        raise UserError(str(error) if block in str(error) else f"{key}: {error}") from error
    raise UserError(f"{key}={source.path}: holds no rows.")
