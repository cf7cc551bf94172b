"""Files of rows, read as far as their first rows: whether there are any, and what their format is; and files of what
people said: answers to the questions of `label=human`, and words that judgements are held against."""

from pathlib import Path
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


def require_known(node: Node, store: Store) -> None:
    """Raise UserError for the first line of `label.known` that is not a row of audit.jsonl."""
    if node.config.known and (file := plugins.user_path(node.config.known)).is_file():
        from stages.evaluation.reliability import from_file

        require_readable(file, "label.known")
        if not from_file(file):
            raise UserError(f"label.known={node.config.known}: says nothing of any judgement. Fill in its blanks.")


def require_answered(node: Node, store: Store) -> None:
    """Raise UserError where `label.human.answered` holds no answers, or none to the questions of a pool that the store
    holds. Of a pool that is still to be made nobody knows the questions."""
    cfg = node.config
    if "human" not in cfg.labelers or not cfg.human.answered:
        return
    from stages.labelers.people import answer_rows

    file = plugins.user_path(cfg.human.answered)
    require_readable(file, "label.human.answered")
    answers = [answer for _, each in answer_rows.answers_of(file) for answer in each]
    if not answers:
        raise UserError(f"label.human.answered={file}: holds no answers. Have its blanks filled in, or leave it out.")
    if cfg.labeler == "human" and store.find(node.inputs["pool"]):
        from stages.labelers.labeler import Pool
        from stages.labelers.people.questions import drawn
        from stages.store.records import Candidate, Example, Records

        folder = store.folder(node.inputs["pool"])
        prompts, candidates = folder / "prompts.parquet", folder / "candidates.parquet"
        pool = Pool(Records(prompts, Example), Records(candidates, Candidate))
        if not {answer.question for answer in answers} & {question.id for question in drawn(pool, cfg.human)}:
            raise answer_rows.of_other_runs(file, len(answers))


def require_readable(file: Path, key: str) -> None:
    try:
        with open(file, "rb"):
            return
    except OSError as error:
        raise UserError(f"{key}={file}: {error.strerror}. Name a file that can be read.") from error
