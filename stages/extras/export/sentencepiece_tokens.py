"""Tokenizers with SentencePiece's pieces (Llama 2, Mistral, TinyLlama, Zephyr), as GGUF's tokenizer `llama` has them.

The file has a score for each piece in place of merges, and llama.cpp joins the two neighbours whose piece has the highest
score. It puts a space before a text, and before what follows a special token, or before none of them."""

import logging
import math
import re
from itertools import pairwise
from typing import Any

from transformers import PreTrainedTokenizerBase

from stages.models.rendering import GOLDEN, golden_conversations, token_ids

log = logging.getLogger(__name__)

SPACE = "▁"  # in a piece
BYTE = re.compile("<0x([0-9A-F]{2})>")
# Spaces at the border, lines, digits, and characters that no vocabulary of this size has
TEXTS = (
    " two  spaces ",
    "a\n\n\tb",
    "def f(x):\n    return x + 10",
    "naïve 日本 😀",
    "www.x.org/~y",
)


def is_sentencepiece(backend: dict[str, Any]) -> bool:
    """Return whether a tokenizer, as tokenizer.json describes it, has pieces with ▁ for spaces, and bytes for characters
    that it lacks."""
    model = backend["model"]
    return model["type"] == "BPE" and bool(model.get("byte_fallback")) and has_known_rule(backend)


def has_known_rule(backend: dict[str, Any]) -> bool:
    """Return whether a text is changed in no other way than by ▁ in place of spaces, and before the first word."""
    steps = [*steps_of(backend["normalizer"], "normalizers")]
    steps += steps_of(backend["pre_tokenizer"], "pretokenizers")
    kinds = [step["type"] for step in steps]
    if kinds == ["Metaspace"]:
        return bool(steps[0]["replacement"] == SPACE)
    if kinds not in (["Prepend", "Replace"], ["Replace"]):
        return False
    is_replaced = steps[-1]["pattern"] == {"String": " "} and steps[-1]["content"] == SPACE
    return is_replaced and steps[0].get("prepend", SPACE) == SPACE


def steps_of(part: dict[str, Any] | None, plural: str) -> list[dict[str, Any]]:
    """Return the steps of a normalizer or a pre-tokenizer."""
    if part is None:
        return []
    steps: list[dict[str, Any]] = part.get(plural, [part])
    return steps


class SentencePieceTokens:
    """The tokens of a tokenizer as llama.cpp reads and joins them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, backend: dict[str, Any]):
        self.tokenizer = tokenizer
        self.ids: dict[str, int] = tokenizer.get_vocab()
        merges = backend["model"]["merges"]
        rank_by_piece = dict[str, int]()
        for rank, pair in enumerate(merges):
            piece = "".join(pair.split(" ") if isinstance(pair, str) else pair)
            rank_by_piece.setdefault(piece, rank)
        # llama.cpp joins whatever is in the vocabulary: what no merge makes comes last
        self.scores = {piece: -float(rank_by_piece.get(piece, len(merges))) for piece in self.ids}
        added = [re.escape(str(token)) for token in tokenizer.added_tokens_decoder.values()]
        self.added = re.compile("|".join(sorted(added, key=len, reverse=True)) or "(?!)")

    def scores_by_row(self, rows: int) -> list[float]:
        """Return the score of each row's token. Tokens are joined in the order of their merges: the first has 0."""
        scores = [-float(len(self.ids))] * rows
        for piece, index in self.ids.items():
            scores[index] = self.scores[piece]
        return scores

    def adds_space(self) -> bool:
        """Return whether llama.cpp should put a space before texts: as it gives the tokenizer's own ids for
        conversations. If neither does, warn, and return True."""
        if not self.puts_space_before_text:
            return False
        conversations = golden_conversations(self.tokenizer)
        for adds_space in (True, False):
            if self.has_same_ids(conversations, adds_space):
                return adds_space
        log.warning(
            "warning: llama.cpp puts a space after special tokens where this tokenizer has none: its conversations will "
            "have other tokens there. Type export.format=hub for the same."
        )
        return True

    @property
    def puts_space_before_text(self) -> bool:
        """True if the tokenizer itself puts a space before a text."""
        pieces = self.tokenizer.tokenize("a", add_special_tokens=False)
        return bool(pieces[0].startswith(SPACE))

    def reads_texts_alike(self) -> bool:
        """Return whether llama.cpp gives the tokenizer's own ids for texts that begin with a letter."""
        texts = [f"a{text}" for text in TEXTS]
        texts += [message["content"] for messages in GOLDEN for message in messages]
        return self.has_same_ids(texts, self.puts_space_before_text)

    def has_same_ids(self, texts: list[str], adds_space: bool) -> bool:
        """Return whether llama.cpp gives the tokenizer's own ids for all of these texts."""
        for text in texts:
            if self.ids_in_llama_cpp(text, adds_space) != token_ids(self.tokenizer, text):
                return False
        return True

    def ids_in_llama_cpp(self, text: str, adds_space: bool) -> list[int]:
        """Return the token ids that llama.cpp gives for a text with special tokens."""
        ids = list[int]()
        place = 0
        for match in self.added.finditer(text):
            ids += self.join(text[place : match.start()], adds_space)
            ids.append(self.ids[match[0]])
            place = match.end()
        return ids + self.join(text[place:], adds_space)

    def join(self, text: str, adds_space: bool) -> list[int]:
        """Return the token ids of a text between special tokens: neighbours are joined, the highest score first."""
        if not text:
            return []
        if adds_space:
            text = f" {text}"
        pieces = [*text.replace(" ", SPACE)]
        while True:
            pairs = [left + right for left, right in pairwise(pieces)]
            scores = [self.scores.get(pair, -math.inf) for pair in pairs]
            best_score = max(scores, default=-math.inf)
            if best_score == -math.inf:
                break
            place = scores.index(best_score)  # the leftmost of equal ones
            pieces[place : place + 2] = [pairs[place]]
        ids = list[int]()
        for piece in pieces:
            ids += self.ids_of_piece(piece)
        return ids

    def ids_of_piece(self, piece: str) -> list[int]:
        """Return the token id of a piece, or those of its bytes if no token is this piece."""
        if piece in self.ids:
            return [self.ids[piece]]
        return [self.ids[f"<0x{byte:02X}>"] for byte in piece.encode()]
