"""How varied rows are: what requests ask for and speak of, and which words come again and again in answers."""

import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice

from stages.curation.answer_rules import FUNCTION_WORDS
from stages.store.text_units import lower_words

SHOWN = 12  # of each
POLITE = re.compile(r"\A\W*((please|kindly|can you|could you|would you|i want you to|i would like you to)\W+)*", re.I)
FEWEST = 4  # letters of a word that names a topic
RUN = 4  # words
DISTINCT, FIRST = 3, 100_000  # words of a run that may be distinct from others, and of how many runs this is told
# Runs that are counted at once. The rarest make room for others (lossy counting, Manku and Motwani 2002), so a run may
# have come as many times more as this was done.
KEPT = 200_000


class Diversity:
    """Counts rows, not words: a word that comes twice in a row is counted once. Memory stays flat."""

    def __init__(self) -> None:
        self.requests = self.answers = self.seen = self.floor = 0
        self.verbs, self.topics, self.runs = Counter[str](), Counter[str](), Counter[tuple[str, ...]]()
        self.distinct = set[tuple[str, ...]]()

    def note(self, request: str, answer: str | None) -> None:
        if request:
            self.requests += 1
            asked = lower_words(POLITE.sub("", request))
            self.verbs.update(asked[:1])
            self.topics.update(dict.fromkeys((w for w in asked[1:] if is_topic(w)), 1))
        if answer:
            self.answers += 1
            said = lower_words(answer)
            self.runs.update(dict.fromkeys(runs_of(said, RUN), 1))  # in their order: ties are told in it
            if len(self.runs) > KEPT:
                self.floor += 1
                self.runs = Counter({run: count for run, count in self.runs.items() if count > self.floor})
            fresh = list(islice(runs_of(said, DISTINCT), FIRST - self.seen))
            self.seen += len(fresh)
            self.distinct.update(fresh)

    def tables(self) -> dict[str, tuple[list[tuple[str, int]], int]]:
        """What is most frequent by heading, with the number of rows that it is of."""
        found = {
            "First word of requests": (self.verbs, self.requests),
            "Words of requests": (self.topics, self.requests),
        }
        frequent = {name: (counts.most_common(SHOWN), of) for name, (counts, of) in found.items() if counts}
        if self.runs:
            runs = [(" ".join(run), count) for run, count in self.runs.most_common(SHOWN)]
            frequent["Runs of four words in answers"] = runs, self.answers
        return frequent

    def told(self) -> str:
        """How many runs of three words are different ones (distinct-3: arXiv:1510.03055)."""
        if not self.seen:
            return ""
        seen, share = self.seen, len(self.distinct) / self.seen
        return f"Of the first {seen:,} runs of three words in answers {share:.0%} are different ones (distinct-3)."


def is_topic(word: str) -> bool:
    return len(word) >= FEWEST and word.isalpha() and word not in FUNCTION_WORDS


def runs_of(said: list[str], length: int) -> Iterator[tuple[str, ...]]:
    return zip(*(said[i:] for i in range(length)), strict=False)
