"""Preferences without a prompt, as TRL calls implicit ones: the words with which a chosen and a rejected text begin alike
are the prompt. Only the setting `format` chooses this reading."""

from collections.abc import Mapping
from typing import Any

from stages.config.blocks.data import Source
from stages.formats.chosen_rejected import ChosenRejected
from stages.formats.format import ParsedRow
from stages.formats.readers.row import BadRow
from stages.formats.turns import require_text


class Implicit(ChosenRejected):
    needs = ("chosen", "rejected")

    def __init__(self, source: Source):
        super().__init__(source)
        self.is_chosen = source.format is not None

    def fits(self, row: Mapping[str, Any]) -> bool:
        are_texts = isinstance(row["chosen"], str) and isinstance(row["rejected"], str)
        return self.is_chosen and are_texts and "prompt" not in row

    def parse(self, row: Mapping[str, Any]) -> ParsedRow:
        chosen, rejected = (require_text(row[side], side) for side in self.needs)
        prompt = shared_beginning(chosen, rejected)
        if not prompt:
            raise BadRow("rejected", "does not begin as chosen does, so that there is no prompt")
        sides = {"chosen": chosen[len(prompt) :], "rejected": rejected[len(prompt) :]}
        texts = {side: text.removeprefix(" ") for side, text in sides.items()}
        return super().parse({**row, "prompt": prompt, **texts})


def shared_beginning(first: str, second: str) -> str:
    """Return the words with which two texts begin alike, without the white space after them; empty if there are none."""
    length = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        length += 1
    ends_inside_word = any(text[length : length + 1].strip() for text in (first, second))
    beginning = first[:length]
    if ends_inside_word and beginning[-1:].strip():
        words = beginning.split()
        beginning = beginning[: len(beginning) - len(words[-1])] if words else ""
    return beginning.rstrip()
