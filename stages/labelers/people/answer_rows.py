"""Questions and answers in files, for people who judge outside the page. `label.human.answered` reads both formats.

`answers.jsonl` has one JSON object per line. `argilla.json` is a list of records as Argilla 2 writes with
`records.to_json` and reads with `from_json`. Flat rows (`records.to_datasets`, `to_list(flatten=True)`) also work."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import UUID

from stages.config.errors import UserError
from stages.labelers.people.questions import Question
from stages.labelers.people.session import Answer, Refused, Session, parse_answer
from stages.store import safe_files
from stages.store.sealed_json import WRONG_SHAPE, require_keys
from stages.store.workspace import StageDir

PLAIN, ARGILLA = "answers.jsonl", "argilla.json"
Row = dict[str, Any]
ARGILLA_FIELDS = ("verdict", "reasons", "comment")  # question names in the Argilla dataset
SUBMITTED = (None, "submitted")  # flat rows also contain drafts and discarded responses; records do not have a status


def write(session: Session, out: StageDir) -> None:
    """Write both files: `answers.jsonl` with a row per answer and a blank row per open question, and `argilla.json`
    with the open questions and those that Argilla's users answered."""
    answered = [(question, answers_to(question, session)) for question in session.questions.values()]
    rows = [row for question, answers in answered for row in plain_rows(question, answers)]
    records = [record for question, answers in answered if (record := argilla_record(question, answers))]
    safe_files.write(out / PLAIN, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
    safe_files.write(out / ARGILLA, json.dumps(records, ensure_ascii=False))


def answers_to(question: Question, session: Session) -> list[Answer]:
    """Return the answers to a question, in the order of the annotators' names."""
    return [answers[question.id] for _, answers in sorted(session.answers.items()) if question.id in answers]


def plain_rows(question: Question, answers: list[Answer]) -> Iterator[Row]:
    texts = {letter: c.text for letter, c in zip(question.letters, question.candidates, strict=True)}
    shared = {"question": question.id, "prompt": question.prompt.messages, **texts}
    shared["words"] = ", ".join(question.words)
    for answer in answers or [Answer(question.id, "", None)]:
        yield shared | asdict(answer) | {"annotator": answer.annotator or None}


def read(file: Path, session: Session) -> str:
    """Save a file's new answers in the journals of the session, and return a line that counts what the file has.
    Raise UserError if a row is unusable, before any answer is saved; if all answers are to questions of other runs."""
    placed, repeated, blanks, foreign = list[tuple[str, Answer]](), 0, 0, 0
    for place, answers in parse_answers(file):
        blanks += not answers
        for answer in answers:
            if answer.question in session.questions:
                placed.append((place, answer))
            else:
                foreign += 1
    if foreign and not placed:
        problem = f"all {foreign} answers are to questions of other runs"
        raise UserError(f"label.human.answered={file}: {problem}. Name a file with answers to this run's questions.")
    first_answers = dict[tuple[str, str], Answer]()
    for place, answer in placed:
        earlier = session.answers.get(answer.annotator, {}).get(answer.question)
        first = first_answers.setdefault((answer.annotator, answer.question), earlier or answer)
        try:
            session.validate_answer(answer)
        except Refused as refused:
            raise row_error(file, place, str(refused)) from refused
        if first.content != answer.content:
            raise row_error(file, place, f"{answer.annotator} already answered {first.verdict!r} to this question")
    for _, answer in placed:
        repeated += not session.save(answer)
    new = len(placed) - repeated
    return f"{file}: {new} new answers, {repeated} already stored, {blanks} blank, {foreign} to other runs' questions"


def parse_answers(file: Path) -> Iterator[tuple[str, list[Answer]]]:
    """Yield each row's answers with its place; none for a blank row. Raise UserError, with it, for other formats."""
    for place, content in raw_rows(file):
        try:
            row = require_keys()(json.loads(content) if isinstance(content, bytes) else content)
            json.dumps(row, ensure_ascii=False).encode()  # raises for a lone surrogate, which cannot be written again
            yield place, [parse_answer(asdict(answer)) for answer in row_answers(row)]
        except WRONG_SHAPE as error:
            message = f"the field {error} is missing" if isinstance(error, KeyError) else error
            raise row_error(file, place, f"not a row of {PLAIN} or {ARGILLA}: {message}") from error


def raw_rows(file: Path) -> Iterator[tuple[str, Any]]:
    """Return the rows of a file with their places: lines as bytes, or the parsed records of a JSON list."""
    content = file.read_bytes()
    if not content.lstrip().startswith(b"["):
        return ((f"line {number}", line) for number, line in enumerate(content.splitlines(), 1))
    try:
        return ((f"record {number}", row) for number, row in enumerate(json.loads(content), 1))
    except WRONG_SHAPE as error:
        problem = f"the file begins with [ but is not a JSON list: {error}"
        raise UserError(f"label.human.answered={file}: {problem}. Export it again.") from error


def row_answers(row: Row) -> Iterator[Answer]:
    """Yield the answers in a row of either format; a blank row has none."""
    if not row.keys().isdisjoint(("responses", "_server_id", "verdict.responses")):  # a row of Argilla's formats
        yield from argilla_answers(row)
    elif row["verdict"] is not None:
        question, annotator, verdict = (str(row[name]) for name in ("question", "annotator", "verdict"))
        comment, order, at = (str(row.get(name) or "") for name in ("comment", "order", "at"))
        reasons, seconds = tuple(row.get("reasons") or ()), row.get("seconds")
        yield Answer(question, annotator, verdict, reasons, comment, order, seconds, at)


def row_error(file: Path, place: str, reason: str) -> UserError:
    return UserError(f"label.human.answered={file}: {place}: {reason}. Correct the row, or remove it.")


def argilla_record(question: Question, answers: Sequence[Answer]) -> dict[str, Any] | None:
    """Return a question as an Argilla record with the responses of Argilla's users, whose names are UUIDs (Argilla
    rejects others). None if only other people answered and the question is complete: Argilla would ask it again."""
    users = [answer for answer in answers if is_user(answer.annotator)]
    is_open = len(answers) < question.needed
    if not (users or is_open):
        return None
    values_by_name = {
        name: [
            {"value": list(value) if name == "reasons" else value, "user_id": answer.annotator}
            for answer in users
            if (value := vars(answer)[name])
        ]
        for name in ARGILLA_FIELDS
    }
    texts = {letter: c.text for letter, c in zip(question.letters, question.candidates, strict=True)}
    return {
        "id": question.id,
        "fields": {"prompt": "\n\n".join(f"{m['role']}: {m['content']}" for m in question.prompt.messages), **texts},
        "metadata": {},
        "suggestions": {},
        "responses": {name: values for name, values in values_by_name.items() if values},
        "vectors": {},
        "status": "pending" if is_open else "completed",
    }


def is_user(name: str) -> bool:
    try:
        return str(UUID(name)) == name
    except ValueError:
        return False


def argilla_answers(row: Mapping[str, Any]) -> Iterator[Answer]:
    """Yield the answer of each person who gave a verdict."""
    values_by_name = {name: dict(responses(row, name)) for name in ARGILLA_FIELDS}
    for person, verdict in values_by_name["verdict"].items():
        if verdict is not None:
            reasons, comment = values_by_name["reasons"].get(person), values_by_name["comment"].get(person)
            yield Answer(str(row["id"]), person, str(verdict), tuple(reasons or ()), str(comment or ""))


def responses(row: Mapping[str, Any], name: str) -> Iterator[tuple[str, Any]]:
    """Yield pairs of a user and the submitted response to the Argilla question `name`."""
    if "responses" in row:
        for response in (row["responses"] or {}).get(name) or ():
            yield str(response["user_id"]), response["value"]
        return
    values, users = (row.get(f"{name}.responses{column}") or () for column in ("", ".users"))
    status = row.get(f"{name}.responses.status") or [None] * len(users)
    for value, user, state in zip(values, users, status, strict=True):
        if state in SUBMITTED:
            yield str(user), value
