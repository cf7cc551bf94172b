"""What every judge said of a judgement, read again from its words, which `label=judge` keeps in `raw`."""

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
    """One judge's words on one or two candidates, by the order in which they were shown (`ab`, `ba`; '' of one), and
    what they come to: A (the first shown), B or tie; or a score. None where it said nothing that counts."""

    words: Mapping[str, str | None]
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
    """By the judge's model; none where two texts were equal, and nobody was asked."""
    found = {}
    for judge, said in json.loads(j.raw or "{}").items():
        words = said if isinstance(said, dict) else {"": said}
        found[judge] = Voice(words, {order: counted(text, kind, reading) for order, text in words.items()})
    return found


def counted(text: str | None, kind: Rubrics, reading: Reading) -> Any:
    """What the words say, if they are a verdict."""
    try:
        return verdict(Reply(text or "", "stop"), kind, reading)
    except NoVerdict:
        return None
