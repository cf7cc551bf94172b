"""Checks of row files that read only the first rows, and of files with people's answers or known labels."""

from pathlib import Path

from stages.config.blocks.data import Source
from stages.config.errors import UserError
from stages.store import plugins
from stages.store.node import Node
from stages.store.source_files import locate, resolve_commit
from stages.store.store import Store


def require_source(node: Node, store: Store) -> None:
    """Raise UserError if a data source lacks rows for its splits, or an audit's test set has no prompts."""
    from stages.formats.column_mapping import source_purpose

    block = node.config
    require_rows(block.source, block.key, source_purpose(block.source).name, own_reader=bool(block.own))
    for i, source in enumerate(block.audit.against or ()):
        require_rows(source, f"data.audit.against[{i}].path", "prompts")


def require_preferences(node: Node, store: Store) -> None:
    """Raise UserError if the preference file of `label=dataset` has no preferences."""
    if node.config.brings_pool:
        require_rows(node.config.source, node.config.key, "preferences")


def require_candidates(node: Node, store: Store) -> None:
    """Raise UserError if the file of candidates has no candidates."""
    if plugins.user_path(node.config.file).is_file():  # otherwise `source_files.pin` reports the missing file
        require_rows(node.config.source, f"{node.config.key}.file", "candidates")


def require_rows(source: Source, key: str, purpose_name: str, own_reader: bool = False) -> None:
    """Raise UserError if a source has no rows, or the first ones do not fit their purpose. A user-defined reader
    (`own_reader`) may take any row. Hub datasets are checked after their download."""
    from stages.formats import detection
    from stages.formats.column_mapping import Purpose
    from stages.formats.readers import files

    if locate(source.path, key) is None:
        resolve_commit(source.path, source.revision, "dataset", key)
        return
    purpose = Purpose[purpose_name]
    try:
        for table in files.source_tables(source, key, purpose is Purpose.preferences):
            if next(table.rows(), None):
                if not own_reader:
                    detection.recognise_format(table, detection.first_rows(table), source, key, purpose)
                return
    except UserError as error:
        block = key.removesuffix(".path").removesuffix(".file")
        raise UserError(str(error) if block in str(error) else f"{key}: {error}") from error
    raise UserError(f"{key}={source.path}: has no rows. Name another file.")


def require_known(node: Node, store: Store) -> None:
    """Raise UserError if `label.known` has a line that is not a row of audit.jsonl, or no known label."""
    if node.config.known and (file := plugins.user_path(node.config.known)).is_file():
        from stages.evaluation.reliability import read_known_words

        require_readable(file, "label.known")
        if not read_known_words(file):
            raise UserError(f"label.known={node.config.known}: every `known` in it is empty. Fill some in.")


def require_answered(node: Node, store: Store) -> None:
    """Raise UserError if `label.human.answered` has no answers, or none to the questions of a pool in the store."""
    cfg = node.config
    if "human" not in cfg.labelers or not cfg.human.answered:
        return
    from stages.labelers.people import answer_rows

    file = plugins.user_path(cfg.human.answered)
    require_readable(file, "label.human.answered")
    answers = [answer for _, each in answer_rows.parse_answers(file) for answer in each]
    if not answers:
        raise UserError(f"label.human.answered={file}: has no answers. Fill in its empty fields, or leave it out.")
    if cfg.labeler == "human" and store.find(node.inputs["pool"]):
        from stages.labelers.labeler import Pool
        from stages.labelers.people.questions import draw_questions
        from stages.store.records import Candidate, Example, Records

        folder = store.folder(node.inputs["pool"])
        prompts, candidates = folder / "prompts.parquet", folder / "candidates.parquet"
        pool = Pool(Records(prompts, Example), Records(candidates, Candidate))
        if not {answer.question for answer in answers} & {question.id for question in draw_questions(pool, cfg.human)}:
            raise answer_rows.other_runs_error(file, len(answers))


def require_readable(file: Path, key: str) -> None:
    try:
        with open(file, "rb"):
            return
    except OSError as error:
        raise UserError(f"{key}={file}: {error.strerror}. Name a file that can be read.") from error
