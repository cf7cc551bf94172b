"""Findings of an audit that can be mended in one way only: letters that were read in a wrong encoding, characters that
nobody sees, and a marker in place of an input."""

import re
from collections.abc import Callable

from stages.curation.audit import answers, requests
from stages.formats.format import Said
from stages.formats.turns import text

# Every byte from 0x80 as Windows-1252 reads it; five that it has no letter for, as Latin-1 does.
READ_AS = {bytes([byte]).decode("cp1252", "ignore") or chr(byte): byte for byte in range(0x80, 0x100)}
OF_BYTE = {byte: letter for letter, byte in READ_AS.items()}


def letters(low: int, high: int) -> str:
    """A class of the letters that bytes between these two were read as."""
    return "[" + re.escape("".join(OF_BYTE[byte] for byte in range(low, high + 1))) + "]"


REST = letters(0x80, 0xBF)
# One character of UTF-8, of two to four bytes (RFC 3629), each of which was read as a letter.
MISREAD = re.compile(f"{letters(0xC2, 0xDF)}{REST}|{letters(0xE0, 0xEF)}{REST}{{2}}|{letters(0xF0, 0xF4)}{REST}{{3}}")
UNSEEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x84\x86-\x9f\u200b\u202a-\u202e\u2060\ufeff]")
TIMES = 3  # that a text may have been misread, one after the other


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


def mend_damage(said: Said) -> Said:
    return said.rewritten(lambda given, where: text(undamaged(given), where))


def remove_marker(said: Said) -> Said:
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
FIXES: dict[str, Callable[[Said], Said]] = {"damaged": mend_damage, "input_marker": remove_marker}
