"""Strict parsing of judges' replies. A reply that is not exactly a verdict counts as missing, with a reason; a number
somewhere in a text is not a score. `judge_votes` parses the replies again that `label=judge` stores in `raw`."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stages.config.choices import Reading, Rubrics
from stages.endpoints.reply import Reply
from stages.store.records import Judgement

SIDES = ("A", "B", "tie")
# the same choice when the answers are shown in the other order
SWAPPED = {"A": "B", "B": "A", "tie": "tie"}
SCALE = tuple(range(1, 11))  # scores from useless to perfect
KEY = {Rubrics.pairwise: "verdict", Rubrics.pointwise: "score"}
ALLOWED: Mapping[Rubrics, tuple[Any, ...]] = {Rubrics.pairwise: SIDES, Rubrics.pointwise: SCALE}
LINE = {Rubrics.pairwise: r"Verdict: *(A|B|tie)\.?", Rubrics.pointwise: r"Score: *(10|[1-9])\.?"}
ENDS = ("stop", "length", "refusal", "content_filter")


# The forms of a reply
FORMS = {
    (Rubrics.pairwise, Reading.json): '{"verdict": "A"} or {"verdict": "B"}; {"verdict": "tie"}',
    (Rubrics.pairwise, Reading.text): "Verdict: A or Verdict: B, or Verdict: tie",
    (Rubrics.pointwise, Reading.json): '{"score": N}',
    (Rubrics.pointwise, Reading.text): "Score: N",
}


class NoVerdict(Exception):
    """Raised for a reply that is not a verdict, with the reason."""


def reply_instruction(kind: Rubrics, reading: Reading) -> str:
    """Return the sentence that tells a judge in which form to reply."""
    opening = "Reply with JSON alone" if reading is Reading.json else "End with a line of its own"
    ending = (
        " if neither is better." if kind is Rubrics.pairwise else ", N a whole number from 1 to 10."
    )
    return f"{opening}: {FORMS[kind, reading]}{ending}"


def schema_of(kind: Rubrics) -> dict[str, Any]:
    """Return the `response_format` that admits only verdicts."""
    numbers = kind is Rubrics.pointwise
    return one_key_schema(
        KEY[kind], {"type": "integer" if numbers else "string", "enum": [*ALLOWED[kind]]}
    )


def one_key_schema(key: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `response_format` for an object with one key, whose value has the schema `value`."""
    schema = {
        "type": "object",
        "properties": {key: value},
        "required": [key],
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": key, "strict": True, "schema": schema}}


def verdict(reply: Reply, kind: Rubrics, reading: Reading) -> Any:
    """Return the verdict in a reply: A, B or tie if pairwise, else a score of SCALE. Raise NoVerdict for neither."""
    if reply.finish_reason != "stop":
        reasons = {
            "length": "is truncated",
            "refusal": "is a refusal",
            "content_filter": "was filtered by the server",
        }
        raise NoVerdict(
            f"the judge's reply {reasons.get(reply.finish_reason, 'did not end normally')}"
        )
    if not reply.text.strip():
        raise NoVerdict("the judge's reply is empty")
    if reading is Reading.text:
        match = re.fullmatch(LINE[kind], reply.text.strip().splitlines()[-1].strip(" *_`"))
        if not match:
            raise NoVerdict("the last line of the judge's reply is not a verdict")
        return int(match[1]) if kind is Rubrics.pointwise else match[1]
    return json_value(reply.text, KEY[kind], ALLOWED[kind])


def json_value(text: str, key: str, allowed: tuple[Any, ...]) -> Any:
    """Return the value of a JSON object with the single key `key`. Raise NoVerdict if it is not an allowed value."""
    try:
        # an object becomes its pairs: a dict hides repeated keys
        pairs = json.loads(text, object_pairs_hook=tuple)
    except (ValueError, RecursionError) as error:
        raise NoVerdict("the judge's reply is not JSON") from error
    if not (isinstance(pairs, tuple) and len(pairs) == 1 and pairs[0][0] == key):
        raise NoVerdict(f"the judge's reply is not an object with the single key {key}")
    value = pairs[0][1]
    if not any(type(value) is type(option) and value == option for option in allowed):
        raise NoVerdict(f"the judge's reply has a {key} that is not allowed")
    return value


@dataclass(frozen=True)
class JudgeVote:
    """One judge's replies and verdicts on one candidate or two, by the order of presentation: `ab` and `ba`, or '' for
    a single candidate. A verdict is A (the answer shown first), B, tie, or a score; None if the reply is not one."""

    replies: Mapping[str, Reply | None]
    verdicts: Mapping[str, Any]

    @property
    def word(self) -> str | int | None:
        """The judge's vote: a, b, tie, or a score. If its choice differs between the orders, the vote is a tie."""
        if None in self.verdicts.values():
            return None
        if "" in self.verdicts:
            return int(self.verdicts[""])
        return str(self.verdicts["ab"]).lower() if self.order_decided is False else "tie"

    @property
    def order_decided(self) -> bool | None:
        """True if the order changed the judge's choice; None if there was only one order, or a verdict is missing."""
        if len(self.verdicts) < 2 or None in self.verdicts.values():
            return None
        return bool(self.verdicts["ab"] != SWAPPED[self.verdicts["ba"]])


def judge_votes(j: Judgement, kind: Rubrics, reading: Reading) -> dict[str, JudgeVote]:
    """Return each judge's vote by the judge's name; empty if the two texts were equal and no judge was asked."""
    votes = {}
    for judge, stored in json.loads(j.raw or "{}").items():
        by_order = stored if kind is Rubrics.pairwise else {"": stored}
        replies = {
            order: each and Reply(each["text"], each["finish_reason"])
            for order, each in by_order.items()
        }
        verdicts = {
            order: verdict_or_none(reply, kind, reading) for order, reply in replies.items()
        }
        votes[judge] = JudgeVote(replies, verdicts)
    return votes


def verdict_or_none(reply: Reply | None, kind: Rubrics, reading: Reading) -> Any:
    """Return the verdict in a reply; None if there is no reply or it is not a verdict."""
    try:
        return verdict(reply, kind, reading) if reply else None
    except NoVerdict:
        return None
