"""Questions and answers in files, for people who judge elsewhere: `answers.jsonl`, plain, and `argilla.jsonl`, records
as Argilla writes them (`Record.to_dict`, argilla 2). `label.human.answered` reads either."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from stages.config.errors import UserError
from stages.labelers.people.journal import Answer
from stages.labelers.people.questions import Question
from stages.labelers.people.session import Refused, Session
from stages.store import whole
from stages.store.kept import WRONG_SHAPE, having
from stages.store.work import Work

PLAIN, ARGILLA = "answers.jsonl", "argilla.jsonl"
Row = dict[str, Any]


def write(session: Session, out: Work) -> None:
    """Every question with what was said of it: plain, a row for each answer, or a blank one; Argilla's, a record for
    each question."""
    for name, rows_of in ((PLAIN, plain), (ARGILLA, argilla)):
        found = [row for q in session.questions.values() for row in rows_of(q, answers_to(q, session))]
        whole.write(out / name, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in found))


def answers_to(question: Question, session: Session) -> list[Answer]:
    """What was said of a question, by name of who said it."""
    return [mine[question.id] for _, mine in sorted(session.said.items()) if question.id in mine]


def texts(question: Question) -> dict[str, str]:
    return {letter: c.text for letter, c in zip(question.letters, question.candidates, strict=True)}


def plain(question: Question, answers: list[Answer]) -> Iterator[Row]:
    asked = {"question": question.id, "prompt": question.prompt.messages, **texts(question)}
    asked["words"] = ", ".join(question.words)
    for answer in answers or [Answer(question.id, "", None)]:
        yield asked | {
            "annotator": answer.annotator or None,
            "verdict": answer.verdict,
            "reasons": [*answer.reasons],
            "comment": answer.comment,
            "order": answer.order,
            "seconds": answer.seconds,
            "at": answer.at,
        }


def argilla(question: Question, answers: list[Answer]) -> Iterator[Row]:
    said: dict[str, Callable[[Answer], Any]] = {
        "verdict": lambda answer: answer.verdict,
        "reasons": lambda answer: [*answer.reasons],
        "comment": lambda answer: answer.comment,
    }
    given = {
        name: [{"value": value(answer), "user_id": answer.annotator} for answer in answers if value(answer)]
        for name, value in said.items()
    }
    prompt = "\n\n".join(f"{m['role']}: {m['content']}" for m in question.prompt.messages)
    yield {
        "id": question.id,
        "fields": {"prompt": prompt, **texts(question)},
        "metadata": {},
        "suggestions": {},
        "responses": {name: values for name, values in given.items() if values},
        "vectors": {},
        "status": "completed" if len(answers) >= question.needed else "pending",
    }


def read(file: Path, session: Session) -> str:
    """Keep the answers in a file, as if they had been given here; what is known already is kept once. Says in a few
    words what was in it.

    Raises:
        UserError: naming the first line that cannot be used, before any answer is kept; where all are of other runs.
    """
    found, known, blank, others = list[tuple[int, Answer]](), 0, 0, 0
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        try:
            row = having()(json.loads(line))
            json.dumps(row, ensure_ascii=False).encode()  # half a character cannot be written again
            answers = [*answers_in(row)]
        except WRONG_SHAPE as error:
            told = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise wrong(file, number, f"no row of {PLAIN} or {ARGILLA}: {told}") from error
        blank += not answers
        for answer in answers:
            if answer.question in session.questions:
                found.append((number, answer))
            else:
                others += 1
    if others and not found:
        raise UserError(f"label.human.answered={file}: all of its {others} answers are to questions of other runs.")
    given = dict[tuple[str, str], Answer]()
    for number, answer in found:
        before = session.said.get(answer.annotator, {}).get(answer.question)
        first = given.setdefault((answer.annotator, answer.question), before or answer)
        try:
            session.admit(answer)
        except Refused as refused:
            raise wrong(file, number, str(refused)) from refused
        if first.said != answer.said:
            raise wrong(file, number, f"{answer.annotator} said {first.verdict!r} of the question before this")
    for _, answer in found:
        known += not session.save(answer)
    return f"{file}: {len(found) - known} answers, {known} known already, {blank} blanks, {others} to other questions"


def answers_in(row: Row) -> Iterator[Answer]:
    """The answers in a row of either kind; none in a blank one."""
    if "responses" in row:
        yield from answers_in_record(row)
    elif row["verdict"] is not None:
        yield Answer(
            question=str(row["question"]),
            annotator=str(row["annotator"]),
            verdict=str(row["verdict"]),
            reasons=tuple(row.get("reasons") or ()),
            comment=str(row.get("comment") or ""),
            order=str(row.get("order") or ""),
            seconds=row.get("seconds"),
            at=str(row.get("at") or ""),
        )


def answers_in_record(record: Mapping[str, Any]) -> Iterator[Answer]:
    """Everybody's responses in a record of Argilla's, to the questions verdict, reasons and comment."""
    by = {
        name: {str(response["user_id"]): response["value"] for response in given or ()}
        for name, given in (record["responses"] or {}).items()
    }
    for person, verdict in by.get("verdict", {}).items():
        reasons, comment = by.get("reasons", {}).get(person), by.get("comment", {}).get(person)
        yield Answer(str(record["id"]), person, str(verdict), tuple(reasons or ()), str(comment or ""))


def wrong(file: Path, number: int, reason: str) -> UserError:
    return UserError(f"label.human.answered={file}: line {number}: {reason}. Mend the line, or take it out.")
