"""Texts that are nearly the same as an earlier one: by MinHash (Broder 1997), banded so that only likely ones are
compared, and these exactly: by the share of pairs of neighbouring words that two texts have in common (Jaccard)."""

import zlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.store.text_units import plain_words

ALIKE = 0.7  # of all pairs of words in two texts, the share that both have
BANDS, ROWS = 6, 3  # a similarity of 0.7 is found in 93 of 100 cases, one of 0.8 in 99
RNG = np.random.default_rng(1997)
ODD = RNG.integers(1, 2**63, BANDS * ROWS, dtype=np.uint64) * 2 + 1
ADD = RNG.integers(0, 2**63, BANDS * ROWS, dtype=np.uint64)
BAND = RNG.integers(1, 2**63, (BANDS, ROWS), dtype=np.uint64) * 2 + 1
MIX = np.uint64(0x9E3779B97F4A7C15)


class Twin(NamedTuple):
    name: str
    similarity: float


class Sketch(NamedTuple):
    """What is kept of a text: its pairs of words, and one key for each band of their MinHash signature."""

    pairs: NDArray[np.uint32]
    keys: list[int]


class Seen:
    """The texts so far. About a kilobyte each."""

    def __init__(self, alike: float = ALIKE) -> None:
        self.alike = alike
        self.buckets, self.names, self.pairs = dict[int, int](), list[str](), list[NDArray[np.uint32]]()

    def twin(self, text: Sketch) -> Twin | None:
        """The likest of the earlier texts, where one is alike."""
        likely = {self.buckets[key] for key in text.keys if key in self.buckets}
        found = [Twin(self.names[i], jaccard(text.pairs, self.pairs[i])) for i in sorted(likely)]
        best = max(found, key=lambda twin: twin.similarity, default=None)
        return best if best and best.similarity >= self.alike else None

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
    """Hashes of a text's pairs of neighbouring words, each once, in order. Case and marks are ignored; of one word
    there is no pair, and it stands alone."""
    plain = " ".join(plain_words(text)).encode().split()
    words = np.array([zlib.crc32(word) for word in plain] or [0], dtype=np.uint64)
    mixed = words[:-1] * MIX + words[1:] if len(words) > 1 else words
    return np.unique((mixed * MIX >> np.uint64(32)).astype(np.uint32))


def jaccard(a: NDArray[np.uint32], b: NDArray[np.uint32]) -> float:
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)
