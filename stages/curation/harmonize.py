"""One form for the rows of all sources: characters and white space have one normal form, and one policy says which
conversations have a system message.

Before that, findings of an audit are mended that can be mended in one way only: letters that were read in a wrong
encoding, characters that nobody sees, and a marker in place of an input.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any, Literal, cast

from stages.config.blocks.data import Form
from stages.curation.audit import answers, requests
from stages.formats.format import ParsedRow
from stages.formats.turns import text
from stages.store.records import Message, content_id

# Every byte from 0x80 as Windows-1252 reads it; five that it has no letter for, as Latin-1 does.
READ_AS = {bytes([byte]).decode("cp1252", "ignore") or chr(byte): byte for byte in range(0x80, 0x100)}
OF_BYTE = {byte: letter for letter, byte in READ_AS.items()}
UNSEEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x84\x86-\x9f\u200b\u202a-\u202e\u2060\ufeff]")
TIMES = 3  # that a text may have been misread, one after the other
ENDS = re.compile(r"\r\n?|[\x85\u2028\u2029]")  # of a line, as others write them
SPACES = re.compile(r"[\u00a0\u2000-\u200a\u202f\u205f]")  # as wide as they may be, but for the ideographic one
TRAILING = re.compile(r"[ \t]+$", re.MULTILINE)
LEADING = re.compile(r"\A(?:[ \t]*\n)+")  # lines; the first line with words keeps its indentation

NORMALISED = {"unicode": "characters", "whitespace": "white space"}  # by key of the form


def letters(low: int, high: int) -> str:
    """A class of the letters that bytes between these two were read as."""
    return "[" + re.escape("".join(OF_BYTE[byte] for byte in range(low, high + 1))) + "]"


REST = letters(0x80, 0xBF)
# One character of UTF-8, of two to four bytes (RFC 3629), each of which was read as a letter.
MISREAD = re.compile(f"{letters(0xC2, 0xDF)}{REST}|{letters(0xE0, 0xEF)}{REST}{{2}}|{letters(0xF0, 0xF4)}{REST}{{3}}")


def reread(found: re.Match[str]) -> str:
    """The character that some letters stand for; themselves where they stand for none."""
    try:
        return bytes(READ_AS[letter] for letter in found[0]).decode()
    except UnicodeDecodeError:
        return found[0]


def undamaged(given: str) -> str:
    """A text as it was before it was read in a wrong encoding, and without what nobody sees. What cannot be read any
    more (U+FFFD), and what may mean something (ESC, private letters), stays. A text without damage is as it was."""
    for _ in range(TIMES):
        if not answers.damaged(given):
            break
        given = MISREAD.sub(reread, given)
    return UNSEEN.sub("", given) if answers.damaged(given) else given


def mend_damage(said: ParsedRow) -> ParsedRow:
    return said.rewritten(lambda given, where: text(undamaged(given), where))


def remove_marker(said: ParsedRow) -> ParsedRow:
    """Take the marker out of the last request."""
    messages = list(said.messages)
    for i in reversed(range(len(messages))):
        if messages[i]["role"] == "user":
            request = messages[i]["content"]
            if marker := requests.says_no_input(request):
                messages[i] = {**messages[i], "content": request[: request.rindex(marker)].rstrip()}
            break
    return said._replace(messages=messages)


# By code.
FIXES: dict[str, Callable[[ParsedRow], ParsedRow]] = {"damaged": mend_damage, "input_marker": remove_marker}


def trimmed(text: str) -> str:
    """A text with \\n at the end of its lines and nothing before it, plain spaces, and no empty lines around it."""
    return LEADING.sub("", TRAILING.sub("", SPACES.sub(" ", ENDS.sub("\n", text)))).rstrip()


class Harmonizer:
    """Brings rows into form, and counts what it changed. `fixed`: the codes of an audit whose findings are mended."""

    def __init__(self, form: Form, fixed: Collection[str] = ()):
        self.form, self.fixed = form, [code for code in FIXES if code in fixed]
        self.rows = self.before = self.after = 0  # before and after: those with a system message
        self.changed = Counter[str]()  # rows, by code or by key of the form

    def __call__(self, said: ParsedRow) -> ParsedRow:
        """The row in form.

        Raises:
            BadRow: where mending leaves nothing of a text.
        """
        self.rows += 1
        for code in self.fixed:
            said = self.counted(code, said, FIXES[code](said))
        if kind := self.form.unicode:
            normal = cast(Literal["NFC", "NFKC"], kind)
            said = self.counted("unicode", said, said.rewritten(lambda text, _: unicodedata.normalize(normal, text)))
        if self.form.whitespace:
            said = self.counted("whitespace", said, said.rewritten(lambda text, _: trimmed(text)))
        if self.form.system in (None, "keep"):
            return said
        before = has_system(said.messages)
        said = said._replace(messages=self.instructed(said.messages))
        self.before, self.after = self.before + before, self.after + has_system(said.messages)
        return said

    def counted(self, what: str, before: ParsedRow, after: ParsedRow) -> ParsedRow:
        self.changed[what] += after != before
        return after

    def instructed(self, messages: list[Message]) -> list[Message]:
        """A conversation with the system message that the policy gives it. One that tells of tools stays."""
        policy, had = self.form.system, has_system(messages)
        if not messages or (had and "<tools>" in messages[0]["content"]):
            return messages
        if policy == "insert" and had:
            return messages
        rest = messages[had:]
        if policy == "drop":
            return rest
        prompts = self.form.system_prompts or []
        drawn = prompts[int(content_id("system", rest), 16) % len(prompts)]
        return [{"role": "system", "content": drawn}, *rest]

    def metrics(self) -> dict[str, Any]:
        """What was changed, for a node's metrics; empty where nothing was to be."""
        found: dict[str, Any] = {}
        if self.form.system not in (None, "keep"):
            found["system"] = {"before": self.before, "after": self.after}
        named = [name for name in NORMALISED if vars(self.form)[name]]
        if named:
            found["normalised"] = {name: self.changed[name] for name in named}
        if self.fixed:
            found["fixed"] = {code: self.changed[code] for code in self.fixed}
        return {**found, "shaped": self.rows} if found else {}

    def told(self) -> str:
        """The same in words."""
        found = self.metrics()
        told = []
        if counts := found.get("system"):
            told.append(f"{counts['after']} of {self.rows} rows with a system message, {counts['before']} before")
        told += [f"{NORMALISED[name]} of {count} normalised" for name, count in found.get("normalised", {}).items()]
        told += [f"{count} mended ({code})" for code, count in found.get("fixed", {}).items()]
        return ", ".join(told)


def has_system(messages: list[Message]) -> bool:
    return bool(messages) and messages[0]["role"] == "system"
