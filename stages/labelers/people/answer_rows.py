"""Questions and answers in files, for people who judge elsewhere. `label.human.answered` reads either of two files.

`answers.jsonl` is plain. `argilla.json` is as Argilla 2 has it: its `records.to_json` writes a list of records, and
`from_json` reads one; flat rows, as of `records.to_datasets` and `to_list(flatten=True)`, are read here as well.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import UUID

from stages.config.errors import UserError
from stages.labelers.people.questions import Question
from stages.labelers.people.session import Answer, Refused, Session, answer_in
from stages.store import safe_files
from stages.store.sealed_json import WRONG_SHAPE, having
from stages.store.workspace import StageDir

PLAIN, ARGILLA = "answers.jsonl", "argilla.json"
Row = dict[str, Any]
SAID = ("verdict", "reasons", "comment")  # questions of the Argilla dataset
SUBMITTED = (None, "submitted")  # a flat row also has what is drafted or discarded, a record does not tell them apart


def write(session: Session, out: StageDir) -> None:
    """What was asked and said: plain, a row for each answer, or a blank one for a question without; Argilla's, a list
    of records: the questions that wait for answers, and those that Argilla's users answered."""
    answered_questions = [
        (question, answers_of_question(question, session)) for question in session.questions.values()
    ]
    rows = [row for question, answers in answered_questions for row in plain_rows(question, answers)]
    records = [record for question, answers in answered_questions if (record := argilla_record(question, answers))]
    safe_files.write(out / PLAIN, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
    safe_files.write(out / ARGILLA, json.dumps(records, ensure_ascii=False))


def answers_of_question(question: Question, session: Session) -> list[Answer]:
    """What was said of a question, by name of who said it."""
    return [answers[question.id] for _, answers in sorted(session.answers.items()) if question.id in answers]


def plain_rows(question: Question, answers: list[Answer]) -> Iterator[Row]:
    texts = {letter: c.text for letter, c in zip(question.letters, question.candidates, strict=True)}
    shared_fields = {"question": question.id, "prompt": question.prompt.messages, **texts}
    shared_fields["words"] = ", ".join(question.words)
    for answer in answers or [Answer(question.id, "", None)]:
        yield shared_fields | asdict(answer) | {"annotator": answer.annotator or None}


def read(file: Path, session: Session) -> str:
    """Keep a file's answers as if they had been given here, what is known already once. Say in short what was there.

    Raises:
        UserError: naming the first row that cannot be used, before any answer is kept; where all are of other runs.
    """
    answers_with_places, repeated, blanks, foreign = list[tuple[str, Answer]](), 0, 0, 0
    for place, answers in parse_answers(file):
        blanks += not answers
        for answer in answers:
            if answer.question in session.questions:
                answers_with_places.append((place, answer))
            else:
                foreign += 1
    if foreign and not answers_with_places:
        raise other_runs_error(file, foreign)
    first_answers = dict[tuple[str, str], Answer]()
    for place, answer in answers_with_places:
        earlier = session.answers.get(answer.annotator, {}).get(answer.question)
        first = first_answers.setdefault((answer.annotator, answer.question), earlier or answer)
        try:
            session.validate_answer(answer)
        except Refused as refused:
            raise row_error(file, place, str(refused)) from refused
        if first.content != answer.content:
            raise row_error(file, place, f"{answer.annotator} said {first.verdict!r} of the question before this")
    for _, answer in answers_with_places:
        repeated += not session.save(answer)
    return f"{file}: {len(answers_with_places) - repeated} answers, {repeated} known already, {blanks} blanks, {foreign} to other questions"


def parse_answers(file: Path) -> Iterator[tuple[str, list[Answer]]]:
    """Yield the answers of each row with the row's place; none of a blank one.

    Raises:
        UserError: naming the first row that is not of either kind.
    """
    for place, content in raw_rows(file):
        try:
            row = having()(json.loads(content) if isinstance(content, bytes) else content)
            json.dumps(row, ensure_ascii=False).encode()  # half a character cannot be written again
            yield place, [answer_in(asdict(answer)) for answer in row_answers(row)]
        except WRONG_SHAPE as error:
            message = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise row_error(file, place, f"no row of {PLAIN} or {ARGILLA}: {message}") from error


def other_runs_error(file: Path, count: int) -> UserError:
    return UserError(f"label.human.answered={file}: all of its {count} answers are to questions of other runs.")


def raw_rows(file: Path) -> Iterator[tuple[str, Any]]:
    """The rows of a file and where they stand: lines, which are still to be read, or the records of a list."""
    content = file.read_bytes()
    if not content.lstrip().startswith(b"["):
        return ((f"line {number}", line) for number, line in enumerate(content.splitlines(), 1))
    try:
        return ((f"record {number}", row) for number, row in enumerate(json.loads(content), 1))
    except WRONG_SHAPE as error:
        raise UserError(f"label.human.answered={file}: begins as a list of records, and is none: {error}.") from error


def row_answers(row: Row) -> Iterator[Answer]:
    """The answers in a row of either kind; none in a blank one."""
    if is_argilla(row):
        yield from argilla_answers(row)
    elif row["verdict"] is not None:
        question, annotator, verdict = (str(row[name]) for name in ("question", "annotator", "verdict"))
        comment, order, at = (str(row.get(name) or "") for name in ("comment", "order", "at"))
        reasons, seconds = tuple(row.get("reasons") or ()), row.get("seconds")
        yield Answer(question, annotator, verdict, reasons, comment, order, seconds, at)


def row_error(file: Path, place: str, reason: str) -> UserError:
    return UserError(f"label.human.answered={file}: {place}: {reason}. Mend it, or take it out.")


def argilla_record(question: Question, answers: Sequence[Answer]) -> dict[str, Any] | None:
    """A question with what Argilla's users said of it: a response has the UUID of one, or Argilla refuses it. None
    where all that is needed was said by others: it would be asked again."""
    users = [answer for answer in answers if is_user(answer.annotator)]
    is_open = len(answers) < question.needed
    if not (users or is_open):
        return None
    responses_by_name = {
        name: [
            {"value": list(value) if name == "reasons" else value, "user_id": answer.annotator}
            for answer in users
            if (value := vars(answer)[name])
        ]
        for name in SAID
    }
    texts = {letter: c.text for letter, c in zip(question.letters, question.candidates, strict=True)}
    return {
        "id": question.id,
        "fields": {"prompt": "\n\n".join(f"{m['role']}: {m['content']}" for m in question.prompt.messages), **texts},
        "metadata": {},
        "suggestions": {},
        "responses": {name: values for name, values in responses_by_name.items() if values},
        "vectors": {},
        "status": "pending" if is_open else "completed",
    }


def is_user(name: str) -> bool:
    try:
        return str(UUID(name)) == name
    except ValueError:
        return False


def is_argilla(row: Mapping[str, Any]) -> bool:
    """Whether a row is one of Argilla's, and none of ours."""
    return "responses" in row or "_server_id" in row or "verdict.responses" in row


def argilla_answers(row: Mapping[str, Any]) -> Iterator[Answer]:
    """Everybody's responses; none where nobody gave a verdict."""
    values_by_name = {name: dict(responses(row, name)) for name in SAID}
    for person, verdict in values_by_name["verdict"].items():
        if verdict is not None:
            reasons, comment = values_by_name["reasons"].get(person), values_by_name["comment"].get(person)
            yield Answer(str(row["id"]), person, str(verdict), tuple(reasons or ()), str(comment or ""))


def responses(row: Mapping[str, Any], name: str) -> Iterator[tuple[str, Any]]:
    """Of one question, who said what."""
    if "responses" in row:
        for response in (row["responses"] or {}).get(name) or ():
            yield str(response["user_id"]), response["value"]
        return
    values, users = (row.get(f"{name}.responses{column}") or () for column in ("", ".users"))
    status = row.get(f"{name}.responses.status") or [None] * len(users)
    for value, user, state in zip(values, users, status, strict=True):
        if state in SUBMITTED:
            yield str(user), value
