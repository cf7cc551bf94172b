"""Texts that share words: near copies of earlier texts, and evaluation prompts in training texts.

Banded MinHash (Broder 1997) selects likely copies. They are compared exactly, by the Jaccard similarity of their pairs
of neighbouring words. Prompts are found verbatim, with some words changed, or inside a longer text. They are compared
by runs of words, as in the decontamination of GPT-3 (arXiv:2005.14165, appendix C)."""

import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.store.text_units import plain_words

ALIKE = 0.7  # share of all word pairs in two texts that both texts have
BANDS, ROWS = 6, 3  # these find 93% of texts with similarity 0.7, and 99% with 0.8
RNG = np.random.default_rng(1997)
ODD = RNG.integers(1, 2**63, BANDS * ROWS, dtype=np.uint64) * 2 + 1
ADD = RNG.integers(0, 2**63, BANDS * ROWS, dtype=np.uint64)
BAND = RNG.integers(1, 2**63, (BANDS, ROWS), dtype=np.uint64) * 2 + 1
MIX = np.uint64(0x9E3779B97F4A7C15)
RUN = 3  # words in a run
SHARE = 0.5  # share of an evaluation prompt's runs that one stretch of the text must have
ROOM = 1.5  # largest ratio of that stretch's length to the prompt's length
FEWEST = 8  # words that a prompt needs to be found with changes; shorter prompts are found verbatim


class NearDuplicate(NamedTuple):
    name: str
    similarity: float


class Sketch(NamedTuple):
    """The word pairs of a text, as hashes, and one key for each band of their MinHash signature."""

    pairs: NDArray[np.uint32]
    keys: list[int]


class SeenTexts:
    """An index of earlier texts, of about 1 kB each."""

    def __init__(self, threshold: float = ALIKE) -> None:
        self.alike = threshold
        self.buckets = dict[int, int]()
        self.names = list[str]()
        self.pairs = list[NDArray[np.uint32]]()

    def find_nearest(self, text: Sketch) -> NearDuplicate | None:
        """Return the most similar earlier text, or None if its similarity is below the threshold."""
        likely = {self.buckets[key] for key in text.keys if key in self.buckets}
        near_duplicates = [
            NearDuplicate(self.names[i], jaccard(text.pairs, self.pairs[i])) for i in sorted(likely)
        ]
        nearest = max(near_duplicates, key=lambda twin: twin.similarity, default=None)
        return nearest if nearest and nearest.similarity >= self.alike else None

    def add(self, text: Sketch, name: str) -> None:
        for key in text.keys:
            self.buckets.setdefault(key, len(self.names))
        self.names.append(name)
        self.pairs.append(text.pairs)


def sketch(text: str) -> Sketch:
    pairs = word_pairs(text)
    signature = ((pairs[:, None] * ODD + ADD) >> np.uint64(31)).min(axis=0).reshape(BANDS, ROWS)
    return Sketch(pairs, (signature * BAND).sum(axis=1, dtype=np.uint64).tolist())


def word_pairs(text: str) -> NDArray[np.uint32]:
    """Return the sorted hashes of a text's different pairs of neighbouring words, of its single word, or of itself."""
    plain = " ".join(plain_words(text)).encode().split()
    words = np.array(
        [zlib.crc32(word) for word in plain] or [zlib.crc32(text.encode())], dtype=np.uint64
    )
    mixed = words[:-1] * MIX + words[1:] if len(words) > 1 else words
    return np.unique((mixed * MIX >> np.uint64(32)).astype(np.uint32))


def jaccard(a: NDArray[np.uint32], b: NDArray[np.uint32]) -> float:
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)


class Match(NamedTuple):
    name: str  # the file and its line
    prompt: str
    share: float  # share of the prompt's runs that the text has


class HeldOut:
    """The prompts of evaluation files, indexed by their words and by their runs of words."""

    def __init__(self, share: float = SHARE) -> None:
        self.min_share = share
        # name, text, number of runs, required share
        self.prompts = list[tuple[str, str, int, float]]()
        self.prompt_by_words = dict[tuple[str, ...], int]()
        self.prompts_by_run = defaultdict[tuple[str, ...], list[int]](list)

    def add(self, prompt: str, name: str) -> None:
        words = plain_words(prompt)
        number, runs = len(self.prompts), set(word_runs(words, RUN))
        self.prompt_by_words.setdefault(tuple(words), number)
        for run in runs if len(runs) > 1 else ():
            self.prompts_by_run[run].append(number)
        self.prompts.append(
            (name, prompt, len(runs), self.min_share if len(words) >= FEWEST else 1.0)
        )

    def find_in(self, text: str, is_whole_request: bool = True) -> Match | None:
        """Return the prompt of which a text has the largest share, or None. Prompts of RUN words or fewer, such as
        "Why?", occur in many conversations, so the text must be the only request of its own: `is_whole_request`."""
        words = plain_words(text)
        exact = (
            self.prompt_by_words.get(tuple(words)) if is_whole_request or len(words) > RUN else None
        )
        if words and exact is not None:
            return Match(*self.prompts[exact][:2], 1.0)
        places = defaultdict[int, list[tuple[int, tuple[str, ...]]]](list)
        for i, run in enumerate(word_runs(words, RUN)):
            for number in self.prompts_by_run.get(run, ()):
                places[number].append((i, run))
        matches = [
            Match(*self.prompts[n][:2], self.share_in_stretch(n, hits))
            for n, hits in places.items()
        ]
        return max(
            (match for match in matches if match.share), key=lambda match: match.share, default=None
        )

    def share_in_stretch(self, number: int, hits: list[tuple[int, tuple[str, ...]]]) -> float:
        """Return the largest share of a prompt's runs in one stretch of the text, or 0 below the required share.
        `hits` are the positions of the runs in the text, with each run."""
        _, _, runs, min_share = self.prompts[number]
        if len(hits) < min_share * runs:
            return 0.0
        best, start, inside = 0, 0, Counter[tuple[str, ...]]()
        for place, run in hits:
            inside[run] += 1
            while hits[start][0] < place - ROOM * runs:
                inside[hits[start][1]] -= 1
                start += 1
            best = max(best, sum(count > 0 for count in inside.values()))
        return best / runs if best >= min_share * runs else 0.0


def word_runs(words: list[str], length: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[i:] for i in range(length)), strict=False)
