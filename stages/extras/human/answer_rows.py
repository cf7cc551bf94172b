"""Questions and answers in `answers.jsonl`, one JSON object per line. `label.answered` reads it filled in."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from stages.config.errors import UserError
from stages.extras.human.session import Answer, Refused, Session, parse_answer
from stages.labelers.questions import Question
from stages.store import safe_files
from stages.store.sealed_json import WRONG_SHAPE, file_digest, require_keys
from stages.store.workspace import StageDir

FILE = "answers.jsonl"
Row = dict[str, Any]


def write(session: Session, out: StageDir, answered: Path | None = None) -> None:
    """Write a row per answer, and a blank row per open question. A file that somebody has changed since it was written
    is moved aside, unless it is the file `answered`, whose answers the session has."""
    rows = [
        row for q in session.questions.values() for row in question_rows(q, answers_to(q, session))
    ]
    # the digest of the file as last written
    file, written = out / FILE, session.folder / f"written-{out.path.stem}"
    recorded = written.read_text(encoding="utf-8") if written.exists() else ""
    digest = file_digest(file) if file.exists() else recorded
    if digest != recorded and not (answered and answered.samefile(file)):
        changed = file.rename(file.with_name(f"answers-{digest[:8]}.jsonl"))
        out.warn(f"{file} was changed. To use its answers, set {session.block}.answered={changed}.")
    safe_files.write(file, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
    safe_files.write(written, file_digest(file))


def answers_to(question: Question, session: Session, earliest: int | None = None) -> list[Answer]:
    """Return the answers to a question, by annotators' names; or so many `earliest`: two may answer the last one."""
    answers = [
        answers[question.id]
        for _, answers in sorted(session.answers.items())
        if question.id in answers
    ]
    return answers if earliest is None else sorted(answers, key=instant)[:earliest]


def instant(answer: Answer) -> float:
    """Return when an answer was given, in seconds: clocks of several time zones. A file's answers may have no time."""
    try:
        return datetime.fromisoformat(answer.at).timestamp()
    except ValueError:
        return 0.0


def question_rows(question: Question, answers: list[Answer]) -> Iterator[Row]:
    texts = {
        letter: c.text for letter, c in zip(question.letters, question.candidates, strict=True)
    }
    shared = {"question": question.id, "prompt": question.prompt.messages, **texts}
    shared["words"] = ", ".join(question.words)
    for answer in answers or [Answer(question.id, "", None)]:
        yield shared | asdict(answer) | {"annotator": answer.annotator or None}


def read(file: Path, session: Session) -> str:
    """Save a file's new answers in the journals of the session, and return a line that counts what the file has.
    Raise UserError if a row is unusable, before any answer is saved; if all answers are to questions of other runs."""
    setting = f"{session.block}.answered"
    placed, blanks, foreign = list[tuple[str, Answer]](), 0, 0
    for place, answer in parse_answers(file, setting):
        if answer is None:
            blanks += 1
        elif answer.question in session.questions:
            placed.append((place, answer))
        else:
            foreign += 1
    if foreign and not placed:
        problem = f"all {foreign} answers are to questions of other runs"
        raise UserError(
            f"{setting}={file}: {problem}. Name a file with answers to this run's questions."
        )
    first_answers = dict[tuple[str, str], Answer]()
    for place, answer in placed:
        earlier = session.answers.get(answer.annotator, {}).get(answer.question)
        first = first_answers.setdefault((answer.annotator, answer.question), earlier or answer)
        try:
            session.validate_answer(answer)
        except Refused as refused:
            raise row_error(f"{setting}={file}", place, str(refused)) from refused
        if first.content != answer.content:
            raise row_error(
                f"{setting}={file}",
                place,
                f"{answer.annotator} already answered {first.verdict!r} to this question",
            )
    new = sum(session.save(answer) for _, answer in placed)
    old = len(placed) - new
    return f"{file}: {new} new answers, {old} already stored, {blanks} blank, {foreign} to other runs' questions"


def parse_answers(file: Path, setting: str) -> Iterator[tuple[str, Answer | None]]:
    """Yield the answer in each line of the file that a setting names, with its place; None for a blank row. Raise
    UserError, with the place, for other formats."""
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        try:
            yield f"line {number}", row_answer(require_keys()(json.loads(line)))
        except WRONG_SHAPE as error:
            message = f"the field {error} is missing" if isinstance(error, KeyError) else error
            raise row_error(
                f"{setting}={file}", f"line {number}", f"not a row of {FILE}: {message}"
            ) from error


def row_answer(row: Row) -> Answer | None:
    """Return the answer in a row; a blank row has none."""
    if row["verdict"] is None:
        return None
    question, annotator, verdict = (str(row[name]) for name in ("question", "annotator", "verdict"))
    comment, order, at = (str(row.get(name) or "") for name in ("comment", "order", "at"))
    reasons, seconds = tuple(row.get("reasons") or ()), row.get("seconds")
    return parse_answer(
        asdict(Answer(question, annotator, verdict, reasons, comment, order, seconds, at))
    )


def row_error(argument: str, place: str, reason: str) -> UserError:
    """Return the error for a row of the file that an argument names."""
    return UserError(f"{argument}: {place}: {reason}. Correct the row, or remove it.")
