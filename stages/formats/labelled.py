"""Labelled answers: a conversation, and a label that calls its answer good or bad."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from stages.formats.columns import Path, label_word
from stages.formats.format import (
    COMPLETION,
    CONTEXT,
    CUT,
    PROMPT,
    THOUGHT,
    TURNS,
    Format,
    ParsedRow,
    roles_of,
)
from stages.formats.readers.row import BadRow, Way
from stages.formats.turns import messages, split_off_answer

# The words of labels, with spaces for - and _, and without a noun for the answer
GOOD = {"true", "good", "up", "thumb up", "thumbs up", "👍", "like", "liked", "upvote"}
BAD = {"false", "bad", "down", "thumb down", "thumbs down", "👎", "dislike", "disliked", "downvote"}
LABEL = "label kto_tag feedback thumbs thumb thumbs_up rating"
SCORES = dict.fromkeys(GOOD, 1.0) | dict.fromkeys(BAD, 0.0)
NOUN = re.compile(r" (answer|response|completion|output)$")


class Labelled(Format):
    roles = roles_of(TURNS, PROMPT, CONTEXT, THOUGHT, label=LABEL, completion=COMPLETION)
    needs = ("label",)

    def fits(self, row: Mapping[str, Any]) -> bool:
        return self.label_score(row["label"]) is not None and (
            "messages" in row or {"prompt", "completion"} <= {*row}
        )

    def learn(
        self, rows: Iterable[Mapping[str, Any]], names: Mapping[str, Path], labels: str
    ) -> None:
        self.column, self.values = names["label"], Counter[tuple[str, float]]()

    def remarks(self) -> list[str]:
        """Return notes for the user on how each label was read."""
        readings = [
            f"{value} was read as {'a good' if score else 'a bad'} answer ({rows:,} rows)"
            for (value, score), rows in sorted(self.values.items(), key=lambda item: -item[0][1])
        ]
        return [*super().remarks(), f"{self.column}: {', '.join(readings)}"]

    def label_score(self, value: Any) -> float | None:
        """Return 1 for a label that means good, 0 for bad, else None: numbers need `labels: {1: true, 0: false}`."""
        word = label_word(value)
        word = self.labels.get(word, word).lower().replace("_", " ").replace("-", " ")
        return SCORES.get(NOUN.sub("", word))

    def parse(self, row: Mapping[str, Any]) -> ParsedRow:
        if (score := self.label_score(row["label"])) is None:
            value = label_word(row["label"])
            raise BadRow(
                "label",
                f"must be true or false, good or bad, up or down, is {row['label']!r:.40}",
                Way({"labels": {value: "true"}}, "if it marks a good answer"),
                Way({"labels": {value: "false"}}, "if it marks a bad answer"),
            )
        prompt, answer = split_off_answer(self.read_exchange(row))
        if answer is None:
            has_answer = any(turn.role == "assistant" for turn in prompt)
            raise BadRow("", "the conversation has no answer for the label", *[CUT] * has_answer)
        self.values[label_word(row["label"]), score] += 1
        return ParsedRow(messages(prompt), [answer], [score], graded=True)
