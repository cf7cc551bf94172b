"""What a judge's reply says, read strictly: whatever is no verdict is missing, with the reason. No number that happens
to stand in it is taken for one. `voices` reads judges' replies again from `raw`, where `label=judge` keeps them."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stages.config.choices import Reading, Rubrics
from stages.endpoints.reply import Reply
from stages.store.records import Judgement

SIDES = ("A", "B", "tie")
SWAPPED = {"A": "B", "B": "A", "tie": "tie"}  # the same choice, where the other order was shown
SCALE = tuple(range(1, 11))  # scores, from useless to nothing to improve
KEY = {Rubrics.pairwise: "verdict", Rubrics.pointwise: "score"}
ALLOWED: Mapping[Rubrics, tuple[Any, ...]] = {Rubrics.pairwise: SIDES, Rubrics.pointwise: SCALE}
LINE = {
    Rubrics.pairwise: re.compile(r"Verdict: *(A|B|tie)\.?"),
    Rubrics.pointwise: re.compile(r"Score: *(10|[1-9])\.?"),
}
ENDS = ("stop", "length", "refusal", "content_filter")


class NoVerdict(Exception):
    """A reply that says nothing that counts."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def reply_instruction(kind: Rubrics, reading: Reading) -> str:
    """How a judge is told to reply."""
    if reading is Reading.json:
        score, choice = '{"score": N}', '{"verdict": "A"} or {"verdict": "B"}; {"verdict": "tie"}'
        opening = "Reply with JSON alone"
    else:
        score, choice = "Score: N", "Verdict: A or Verdict: B, or Verdict: tie"
        opening = "End with a line of its own"
    if kind is Rubrics.pairwise:
        return f"{opening}: {choice} if neither is better."
    return f"{opening}: {score}, N a whole number from 1 to 10."


def schema_of(kind: Rubrics) -> dict[str, Any]:
    """The `response_format` of a verdict."""
    numbers = kind is Rubrics.pointwise
    return one_key_schema(KEY[kind], {"type": "integer" if numbers else "string", "enum": [*ALLOWED[kind]]})


def one_key_schema(key: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """The `response_format` of an object with one key."""
    schema = {"type": "object", "properties": {key: value}, "required": [key], "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": key, "strict": True, "schema": schema}}


def verdict(reply: Reply, kind: Rubrics, reading: Reading) -> Any:
    """A, B or tie; or a score of SCALE.

    Raises:
        NoVerdict: with the reason why it is neither.
    """
    if reply.finish_reason != "stop":
        reasons = {"length": "cut off", "refusal": "refused", "content_filter": "filtered by the server"}
        raise NoVerdict(reasons.get(reply.finish_reason, "ended in another way"))
    if not reply.text.strip():
        raise NoVerdict("empty")
    if reading is Reading.text:
        match = LINE[kind].fullmatch(reply.text.strip().splitlines()[-1].strip(" *_`"))
        if not match:
            raise NoVerdict("no verdict in its last line")
        return int(match[1]) if kind is Rubrics.pointwise else match[1]
    return json_value(reply.text, KEY[kind], ALLOWED[kind])


def json_value(text: str, key: str, allowed: tuple[Any, ...]) -> Any:
    """The value of the one key of a JSON object, if it is allowed."""
    try:
        pairs = json.loads(text, object_pairs_hook=tuple)  # an object as its pairs: a dict would hide repeated keys
    except (ValueError, RecursionError) as error:
        raise NoVerdict("no JSON") from error
    if not (isinstance(pairs, tuple) and len(pairs) == 1 and pairs[0][0] == key):
        raise NoVerdict(f"no object with {key} alone")
    value = pairs[0][1]
    if not any(type(value) is type(each) and value == each for each in allowed):
        raise NoVerdict(f"another {key} than it may be")
    return value


@dataclass(frozen=True)
class JudgeVote:
    """One judge's replies on one or two candidates, by the order in which they were shown (`ab`, `ba`; '' of one), and
    what they come to: A (the first shown), B or tie; or a score. None where it said nothing that counts."""

    replies: Mapping[str, Reply | None]
    verdicts: Mapping[str, Any]

    @property
    def word(self) -> str | int | None:
        """a, b or tie, or a score: where the orders differ, a tie, as in the judgement."""
        if None in self.verdicts.values():
            return None
        if "" in self.verdicts:
            return int(self.verdicts[""])
        return str(self.verdicts["ab"]).lower() if self.order_decided is False else "tie"

    @property
    def order_decided(self) -> bool | None:
        """Whether the order changed its choice; None where there was but one order, or no verdict."""
        if len(self.verdicts) < 2 or None in self.verdicts.values():
            return None
        return bool(self.verdicts["ab"] != SWAPPED[self.verdicts["ba"]])


def judge_votes(j: Judgement, kind: Rubrics, reading: Reading) -> dict[str, JudgeVote]:
    """By the judge's name; none where two texts were equal, and nobody was asked."""
    votes = {}
    for judge, stored in json.loads(j.raw or "{}").items():
        by_order = stored if kind is Rubrics.pairwise else {"": stored}
        replies = {order: stored_reply(stored_replies) for order, stored_replies in by_order.items()}
        votes[judge] = JudgeVote(
            replies, {order: verdict_or_none(reply, kind, reading) for order, reply in replies.items()}
        )
    return votes


def stored_reply(stored: Any) -> Reply | None:
    """A reply as `raw` holds it; of nodes from before it had a finish reason, the text alone."""
    if stored is None:
        return None
    return (
        Reply(stored, "stop") if isinstance(stored, str) else Reply(str(stored["text"]), str(stored["finish_reason"]))
    )


def verdict_or_none(reply: Reply | None, kind: Rubrics, reading: Reading) -> Any:
    """What a reply says, if it is a verdict."""
    try:
        return verdict(reply, kind, reading) if reply else None
    except NoVerdict:
        return None
