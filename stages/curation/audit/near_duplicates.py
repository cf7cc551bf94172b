"""A search for texts that are nearly the same as an earlier text. Banded MinHash (Broder 1997) selects likely texts.
These are compared exactly, by the Jaccard similarity of their pairs of neighbouring words."""

import zlib
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
        self.buckets, self.names, self.pairs = dict[int, int](), list[str](), list[NDArray[np.uint32]]()

    def find_nearest(self, text: Sketch) -> NearDuplicate | None:
        """Return the most similar earlier text, or None if its similarity is below the threshold."""
        likely = {self.buckets[key] for key in text.keys if key in self.buckets}
        near_duplicates = [NearDuplicate(self.names[i], jaccard(text.pairs, self.pairs[i])) for i in sorted(likely)]
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
    """Return the sorted hashes of a text's pairs of neighbouring words, without repetitions. Case and punctuation are
    ignored. A single word counts as a pair."""
    plain = " ".join(plain_words(text)).encode().split()
    words = np.array([zlib.crc32(word) for word in plain] or [0], dtype=np.uint64)
    mixed = words[:-1] * MIX + words[1:] if len(words) > 1 else words
    return np.unique((mixed * MIX >> np.uint64(32)).astype(np.uint32))


def jaccard(a: NDArray[np.uint32], b: NDArray[np.uint32]) -> float:
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)
