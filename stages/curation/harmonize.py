"""Normalization of rows from all sources: Unicode, white space, and the policy for system messages. Before that, audit
findings with one possible repair are mended: wrongly decoded letters, invisible characters, markers of no input."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, cast

from stages.config.blocks.data import Audit, Form
from stages.curation.audit import faults
from stages.formats.format import ParsedRow
from stages.formats.turns import require_text
from stages.store.records import Message, content_id

# Bytes from 0x80 by their letter in Windows-1252; the five undefined bytes by their character in Latin-1.
BYTE_OF_LETTER = {
    bytes([byte]).decode("cp1252", "ignore") or chr(byte): byte for byte in range(0x80, 0x100)
}
LETTER_OF_BYTE = {byte: letter for letter, byte in BYTE_OF_LETTER.items()}
SEEN = {chr(byte): letter for byte, letter in LETTER_OF_BYTE.items() if letter.isprintable()}
UNSEEN = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x84\x86-\x9f\u200b\u202a-\u202e\u2060\ufeff]"
)
TIMES = 3  # wrong decodings, one on top of the other, that are undone
ENDS = re.compile(r"\r\n?|[\x85\u2028\u2029]")  # line ends of other systems
# spaces of any width except the ideographic space
SPACES = re.compile(r"[\u00a0\u2000-\u200a\u202f\u205f]")
TRAILING = re.compile(r"(?<![ \t])[ \t]+$", re.MULTILINE)
# blank lines; the first line with words keeps its indentation
LEADING = re.compile(r"\A(?:[ \t]*\n)+")

# words for a summary, by key of `data.form`
NORMALISED = {"unicode": "characters", "whitespace": "white space"}


def letter_class(low: int, high: int) -> str:
    """Return a regular expression for the letters that stand for bytes from `low` to `high`."""
    return "[" + re.escape("".join(LETTER_OF_BYTE[byte] for byte in range(low, high + 1))) + "]"


TAIL = letter_class(0x80, 0xBF)
# One character of two to four UTF-8 bytes (RFC 3629), each byte decoded as a letter.
TWO, THREE, FOUR = letter_class(0xC2, 0xDF), letter_class(0xE0, 0xEF), letter_class(0xF0, 0xF4)
MISREAD = re.compile(f"{TWO}{TAIL}|{THREE}{TAIL}{{2}}|{FOUR}{TAIL}{{3}}")


def decode_misread(match: re.Match[str]) -> str:
    """Return the character whose UTF-8 bytes were decoded as letters, or these letters if they are no valid UTF-8."""
    try:
        return bytes(BYTE_OF_LETTER[letter] for letter in match[0]).decode()
    except UnicodeDecodeError:
        return match[0]


def repair_encoding(text: str) -> str:
    """Return a text with wrong decodings undone and invisible characters removed. U+FFFD, ESC and private-use
    characters stay. A text without damage is returned unchanged."""
    for _ in range(TIMES):
        letters = text.translate(LETTER_OF_BYTE)  # the bytes may have been read as Latin-1, too
        if not faults.first_match("misread", letters):
            break
        text = MISREAD.sub(decode_misread, letters)
    return UNSEEN.sub(lambda match: SEEN.get(match[0], ""), text) if faults.damaged(text) else text


def remove_marker(row: ParsedRow) -> ParsedRow:
    """Remove the marker for a missing input from the last request."""
    messages = list(row.messages)
    requests = [i for i, turn in enumerate(messages) if turn["role"] == "user"]
    if requests and (marker := faults.says_no_input(request := messages[requests[-1]]["content"])):
        messages[requests[-1]] = {
            "role": "user",
            "content": request[: request.rindex(marker)].rstrip(),
        }
    return row._replace(messages=messages)


# The repair of each audit code.
FIXES: dict[str, Callable[[ParsedRow], ParsedRow]] = {
    "damaged": lambda row: row.rewrite_texts(
        lambda text, where: require_text(repair_encoding(text), where)
    ),
    "input_marker": remove_marker,
}


def normalise_whitespace(text: str) -> str:
    """Return a text with plain spaces, Unix line ends, no trailing spaces, and no blank lines around it."""
    return LEADING.sub("", TRAILING.sub("", SPACES.sub(" ", ENDS.sub("\n", text)))).rstrip()


class Harmonizer:
    """A normalizer of rows that counts its changes, and mends the findings of audit codes with the action `fix`."""

    def __init__(self, form: Form, audit: Audit | None = None):
        self.form = form
        self.fixed = [code for code in FIXES if audit and audit.actions.get(code) == "fix"]
        # rows, and rows with a system message before and after
        self.rows = self.system_before = self.system_after = 0
        self.changed = Counter[str]()  # changed rows, by audit code or key of `data.form`

    def __call__(self, row: ParsedRow) -> ParsedRow:
        """Return the normalized row. Raise BadRow if a repair leaves an empty text."""
        self.rows += 1
        for code in self.fixed:
            row = self.count_change(code, row, FIXES[code](row))
        if self.form.unicode:
            kind = cast(Literal["NFC", "NFKC"], self.form.unicode)
            normalised = row.rewrite_texts(lambda text, _: unicodedata.normalize(kind, text))
            row = self.count_change("unicode", row, normalised)
        if self.form.whitespace:
            row = self.count_change(
                "whitespace", row, row.rewrite_texts(lambda text, _: normalise_whitespace(text))
            )
        if self.form.system in (None, "keep"):
            return row
        self.system_before += has_system(row.messages)
        row = row._replace(messages=self.apply_system_policy(row.messages))
        self.system_after += has_system(row.messages)
        return row

    def count_change(self, change: str, before: ParsedRow, after: ParsedRow) -> ParsedRow:
        self.changed[change] += after != before
        return after

    def apply_system_policy(self, messages: list[Message]) -> list[Message]:
        """Return a conversation with the system message of the policy. A system message that describes tools stays."""
        policy, has_one = self.form.system, has_system(messages)
        if not messages or (
            has_one and (policy == "insert" or "<tools>" in messages[0]["content"])
        ):
            return messages
        turns = messages[has_one:]
        if policy == "drop":
            return turns
        prompts = self.form.system_prompts or []
        drawn = prompts[int(content_id("system", turns), 16) % len(prompts)]
        return [{"role": "system", "content": drawn}, *turns]

    def metrics(self) -> dict[str, Any]:
        """Return the counts of changes for a node's metrics; {} if nothing was configured."""
        metrics: dict[str, Any] = {}
        if self.form.system not in (None, "keep"):
            metrics["system"] = {"before": self.system_before, "after": self.system_after}
        if named := [name for name in NORMALISED if vars(self.form)[name]]:
            metrics["normalised"] = {name: self.changed[name] for name in named}
        if self.fixed:
            metrics["fixed"] = {code: self.changed[code] for code in self.fixed}
        return {**metrics, "shaped": self.rows} if metrics else {}

    def describe(self) -> str:
        """Return the counts of changes as a phrase for the summary."""
        metrics, parts = self.metrics(), list[str]()
        if counts := metrics.get("system"):
            parts.append(
                f"{counts['after']} of {self.rows} rows with a system message, {counts['before']} before"
            )
        parts += [
            f"{NORMALISED[name]} of {count} normalised"
            for name, count in metrics.get("normalised", {}).items()
        ]
        parts += [f"{count} mended ({code})" for code, count in metrics.get("fixed", {}).items()]
        return ", ".join(parts)


def has_system(messages: list[Message]) -> bool:
    return bool(messages) and messages[0]["role"] == "system"
