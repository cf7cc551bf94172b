"""Files of what people said: answers to the questions of `label=human`, and words that judgements are held against."""

from pathlib import Path

from stages.config.errors import UserError
from stages.store import plugins
from stages.store.node import Node
from stages.store.store import Store


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
