"""Faults of a single request or answer, besides those of answer_rules.py and mistakes.py; secrets and personal data,
which a model should not memorize, with their check digits. A function returns the evidence, or None."""

import re
from collections.abc import Callable

from stages.config.installation import read_beside
from stages.curation import answer_rules, languages
from stages.store.text_units import lines, paragraphs, plain_words, words

# A line break inside a pattern does not count.
PATTERNS = {
    name: re.compile(text.replace("\n", "")) for name, text in read_beside(__file__).items()
}
FEWEST = 3  # words that an answer needs to count as an echo
ENDS = ".!?…:;)]}>\"'”’`*_|=。！？"
# words of a last line without closing mark that is truncated, not a title or a list item
PROSE = 25


def first_match(name: str, text: str) -> str | None:
    """Return the first words that match a pattern."""
    return match[0] if (match := PATTERNS[name].search(text)) else None


def last_paragraph(request: str) -> str:
    """Return the last paragraph, which usually is the input."""
    return (paragraphs(request) or [""])[-1]


def says_no_input(request: str) -> str | None:
    """Return a last paragraph that only says that there is no input, such as "<noinput>"."""
    parts = paragraphs(request)
    return parts[-1] if len(parts) > 1 and PATTERNS["no_input"].fullmatch(parts[-1]) else None


def needs_link(request: str) -> str | None:
    """Return the address of a web page that the model would have to read."""
    if not (match := PATTERNS["link"].search(request)) or PATTERNS["code"].search(request):
        return None
    alone = len(last_paragraph(request).split()) <= 3 and PATTERNS["link"].search(
        last_paragraph(request)
    )
    return (
        match[0] if alone or PATTERNS["reads"].search(PATTERNS["link"].sub("", request)) else None
    )


def needs_attachment(request: str) -> str | None:
    """Return the words that refer to a missing picture, recording or file."""
    if PATTERNS["stands_for"].fullmatch(last_paragraph(request)):
        return last_paragraph(request)
    return first_match("points", request) if len(paragraphs(request)) == 1 else None


def asks_for_picture(request: str) -> str | None:
    """Return the words that ask for a picture, unless the request wants text or code about a picture."""
    return None if PATTERNS["words_about"].search(request) else first_match("picture", request)


def no_answer(answer: str) -> str | None:
    """Return the marker that replaces or precedes an answer, such as "N/A" or "<noinput>"."""
    match = PATTERNS["no_answer"].fullmatch(answer.strip()) or PATTERNS["marker"].match(
        answer.strip()
    )
    return match[0].strip() if match else None


def merged(answer: str) -> str | None:
    """Return the field labels of further requests inside an answer, such as "instruction; output"."""
    fields = [match[1].lower() for match in PATTERNS["field"].finditer(answer)]
    return "; ".join(fields) if "instruction" in fields and len(fields) > 1 else None


def unfinished(answer: str) -> str | None:
    """Return the end of an answer that breaks off: after a comma or empty item, or in a long line without end."""
    if answer_rules.is_cut_short(answer):
        return answer.strip()[-40:]
    last = (lines(answer) or [""])[-1]
    if last[-1:] in ENDS or not last[-1:].isascii() or len(words(last)) < PROSE:
        return None
    return last[-40:] if last[-1:].isalpha() and last.split()[-1][0] not in "#@" else None


def damaged(text: str) -> str | None:
    """Return the surroundings of characters that were decoded wrongly or are invisible, in ASCII."""
    match = PATTERNS["misread"].search(text) or PATTERNS["damaged"].search(text)
    return ascii(text[max(match.start() - 10, 0) : match.end() + 10]) if match else None


def repeats(request: str, answer: str, threshold: float = answer_rules.REPEATED) -> str | None:
    """Return the end of a repetitive answer. Verse and code may repeat themselves."""
    may_repeat = PATTERNS["verse"].search(request) or PATTERNS["code"].search(answer)
    return (
        None
        if may_repeat or not answer_rules.is_repetitive(answer, threshold)
        else answer.strip()[-80:]
    )


def echo(request: str, answer: str) -> str | None:
    """Return the beginning of an answer that copies the words of the request, or of one of its paragraphs."""
    if len(answer_words := plain_words(answer)) < FEWEST:
        return None
    is_copy = any(answer_words == plain_words(part) for part in (request, *paragraphs(request)))
    return answer.strip()[:80] if is_copy else None


def other_language(request: str, answer: str) -> str | None:
    """Return how the languages of a request and its answer differ, with the beginning of the answer."""
    difference = languages.difference(request, answer)
    return f"{difference}: {answer.strip()[:60]}" if difference else None


def secret(text: str) -> str | None:
    """Return the first 12 characters of a key or token, or None."""
    return f"{match[:12]}…" if (match := first_match("secret", text)) else None


def personal(text: str) -> str | None:
    """Return an email address, IBAN, or telephone, social security or card number that is not plainly invented."""
    checks: dict[str, Callable[[re.Match[str]], bool]] = {
        "email": lambda match: not PATTERNS["invented"].search(match[1].lower()),
        "phone": lambda match: not PATTERNS["fictional"].search(match[0]),
        "social": lambda match: match[0] != "123-45-6789",
        "card": lambda match: passes_luhn(match[0]),
        "iban": lambda match: passes_mod_97(match[0]),
    }
    matches = (
        (match, is_valid)
        for name, is_valid in checks.items()
        for match in PATTERNS[name].finditer(text)
    )
    return next((match[0].strip() for match, is_valid in matches if is_valid(match)), None)


def passes_luhn(number: str) -> bool:
    """Return whether a payment card number has a right check digit (ISO/IEC 7812-1)."""
    digits = [int(c) for c in number if c.isdigit()][::-1]
    doubled = [d if i % 2 == 0 else sum(divmod(2 * d, 10)) for i, d in enumerate(digits)]
    return len(set(digits)) > 2 and digits[-1] in (3, 4, 5, 6) and sum(doubled) % 10 == 0


def passes_mod_97(account: str) -> bool:
    """Return whether an IBAN has right check digits (ISO 13616)."""
    plain = account.replace(" ", "")
    return int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1
