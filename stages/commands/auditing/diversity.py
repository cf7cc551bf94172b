"""Measure how diverse rows are: the verbs and topics of requests, and the word runs that repeat in answers."""

import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice

from stages.curation.answer_rules import FUNCTION_WORDS
from stages.store.text_units import lower_words

MOST_SHOWN = 12  # words or runs in each table
POLITE = re.compile(r"\A\W*((please|kindly|can you|could you|would you|i want you to|i would like you to)\W+)*", re.I)
FEWEST = 4  # letters; shorter words are not counted as topics
RUN = 4  # words in a counted run
DISTINCT, FIRST = 3, 100_000  # words in a run for distinct-3, and the most runs that it is measured on
# Runs that are counted at once. If there are more, the rarest are dropped (lossy counting, Manku and Motwani 2002), so
# a run's count may be too low by the number of times that this happened.
MOST_RUNS = 200_000


class Diversity:
    """Counts of words by rows: a word that occurs twice in one row counts once. Memory is bounded."""

    def __init__(self) -> None:
        self.requests = self.answers = self.seen = self.floor = 0
        self.verbs, self.topics, self.runs = Counter[str](), Counter[str](), Counter[tuple[str, ...]]()
        self.distinct = set[tuple[str, ...]]()

    def note(self, request: str, answer: str | None) -> None:
        if request:
            self.requests += 1
            request_words = lower_words(POLITE.sub("", request))
            self.verbs.update(request_words[:1])
            self.topics.update(dict.fromkeys((w for w in request_words[1:] if is_topic(w)), 1))
        if answer:
            self.answers += 1
            answer_words = lower_words(answer)
            self.runs.update(dict.fromkeys(word_runs(answer_words, RUN), 1))  # in order, which decides between ties
            if len(self.runs) > MOST_RUNS:
                self.floor += 1
                self.runs = Counter({run: count for run, count in self.runs.items() if count > self.floor})
            fresh = list(islice(word_runs(answer_words, DISTINCT), FIRST - self.seen))
            self.seen += len(fresh)
            self.distinct.update(fresh)

    def most_frequent(self) -> dict[str, tuple[list[tuple[str, int]], int]]:
        """Return the most frequent words and runs with their counts, and the number of rows, by heading."""
        counters = {
            "First word of requests": (self.verbs, self.requests),
            "Words of requests": (self.topics, self.requests),
        }
        frequent = {name: (words.most_common(MOST_SHOWN), rows) for name, (words, rows) in counters.items() if words}
        if self.runs:
            runs = [(" ".join(run), count) for run, count in self.runs.most_common(MOST_SHOWN)]
            frequent["Runs of four words in answers"] = runs, self.answers
        return frequent

    def distinct_sentence(self) -> str:
        """Return the sentence on the share of distinct three-word runs (distinct-3: arXiv:1510.03055)."""
        if not self.seen:
            return ""
        seen, share = self.seen, len(self.distinct) / self.seen
        return f"{share:.0%} of the first {seen:,} three-word runs in answers are distinct (distinct-3)."


def is_topic(word: str) -> bool:
    return len(word) >= FEWEST and word.isalpha() and word not in FUNCTION_WORDS


def word_runs(words: list[str], length: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[i:] for i in range(length)), strict=False)
