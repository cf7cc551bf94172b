"""Questions and answers as Argilla 2 has them. Its `records.to_json` writes a list of records, and `from_json` reads
one; flat rows, as of `records.to_datasets` and `to_list(flatten=True)`, are read here as well."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from uuid import UUID

from stages.labelers.people.journal import Answer
from stages.labelers.people.questions import Question

SAID = ("verdict", "reasons", "comment")  # questions of the Argilla dataset
SUBMITTED = (None, "submitted")  # a flat row also has what is drafted or discarded, a record does not tell them apart


def record(question: Question, answers: Sequence[Answer]) -> dict[str, Any] | None:
    """A question with what Argilla's users said of it: a response has the UUID of one, or Argilla refuses it. None
    where all that is needed was said by others: it would be asked again."""
    users = [answer for answer in answers if is_user(answer.annotator)]
    waits = len(answers) < question.needed
    if not (users or waits):
        return None
    said = {
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
        "responses": {name: values for name, values in said.items() if values},
        "vectors": {},
        "status": "pending" if waits else "completed",
    }


def is_user(name: str) -> bool:
    try:
        return str(UUID(name)) == name
    except ValueError:
        return False


def holds(row: Mapping[str, Any]) -> bool:
    """Whether a row is one of Argilla's, and none of ours."""
    return "responses" in row or "_server_id" in row or "verdict.responses" in row


def answers_in(row: Mapping[str, Any]) -> Iterator[Answer]:
    """Everybody's responses; none where nobody gave a verdict."""
    by = {name: dict(responses(row, name)) for name in SAID}
    for person, verdict in by["verdict"].items():
        if verdict is not None:
            reasons, comment = by["reasons"].get(person), by["comment"].get(person)
            yield Answer(str(row["id"]), person, str(verdict), tuple(reasons or ()), str(comment or ""))


def responses(row: Mapping[str, Any], name: str) -> Iterator[tuple[str, Any]]:
    """Of one question, who said what."""
    if "responses" in row:
        for response in (row["responses"] or {}).get(name) or ():
            yield str(response["user_id"]), response["value"]
        return
    given, users = (row.get(f"{name}.responses{column}") or () for column in ("", ".users"))
    status = row.get(f"{name}.responses.status") or [None] * len(users)
    for value, user, state in zip(given, users, status, strict=True):
        if state in SUBMITTED:
            yield str(user), value
