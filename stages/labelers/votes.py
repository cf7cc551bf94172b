"""What every judge said of a judgement, read again from its replies, which `label=judge` keeps in `raw`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stages.config.choices import Reading, Rubrics
from stages.endpoints.reply import Reply
from stages.labelers.verdicts import SWAPPED, NoVerdict, verdict
from stages.store.records import Judgement


@dataclass(frozen=True)
class Voice:
    """One judge's replies on one or two candidates, by the order in which they were shown (`ab`, `ba`; '' of one), and
    what they come to: A (the first shown), B or tie; or a score. None where it said nothing that counts."""

    replies: Mapping[str, Reply | None]
    found: Mapping[str, Any]

    @property
    def word(self) -> str | int | None:
        """a, b or tie, or a score: where the orders differ, a tie, as in the judgement."""
        if None in self.found.values():
            return None
        if "" in self.found:
            return int(self.found[""])
        return str(self.found["ab"]).lower() if self.turned is False else "tie"

    @property
    def turned(self) -> bool | None:
        """Whether the order changed its choice; None where there was but one order, or no verdict."""
        if len(self.found) < 2 or None in self.found.values():
            return None
        return bool(self.found["ab"] != SWAPPED[self.found["ba"]])


def voices(j: Judgement, kind: Rubrics, reading: Reading) -> dict[str, Voice]:
    """By the judge's name; none where two texts were equal, and nobody was asked."""
    found = {}
    for judge, said in json.loads(j.raw or "{}").items():
        by_order = said if kind is Rubrics.pairwise else {"": said}
        replies = {order: replied(its) for order, its in by_order.items()}
        found[judge] = Voice(replies, {order: counted(reply, kind, reading) for order, reply in replies.items()})
    return found


def replied(said: Any) -> Reply | None:
    """A reply as `raw` holds it; of nodes from before it had a finish reason, the text alone."""
    if said is None:
        return None
    return Reply(said, "stop") if isinstance(said, str) else Reply(str(said["text"]), str(said["finish_reason"]))


def counted(reply: Reply | None, kind: Rubrics, reading: Reading) -> Any:
    """What a reply says, if it is a verdict."""
    try:
        return verdict(reply, kind, reading) if reply else None
    except NoVerdict:
        return None
