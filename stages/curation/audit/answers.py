"""Faults of a single answer, in addition to the rules of curation/answer_rules.py. Each function returns the evidence
of one fault, or None."""

import re

from stages.curation import answer_rules
from stages.curation.audit.requests import CODE
from stages.store.text_units import lines, paragraphs, plain_words, words

NO_ANSWER = re.compile(
    r"\W*(no\W{0,2}(input|output|answer|response)( \w+){0,4}|n/a|nan|not applicable|tbd|to be (determined|done)|"
    r"lorem ipsum.*)\W*",
    re.IGNORECASE | re.DOTALL,
)
MARKER = re.compile(r"<\s*no\W?(input|output)\s*/?>", re.IGNORECASE)
FIELD = re.compile(r"^\W*(?:\d+\.\s*)?(instruction|input|output|response)\s*:", re.IGNORECASE | re.MULTILINE)
BOILERPLATE = re.compile(
    r"\b(as|I am|I'm|since I am|being) (just |only )?an? ([\w-]+ ){0,3}(AI|language model|chatbot)\b"
    r"|\b(GPT|(a|the|this) language model)\b.{0,40}\b(cannot|can't|can not|unable|not possible|not able)"
    r"|\b(cannot|can't|can not|unable|not possible|not (be )?(able|suitable)|difficult)\b"
    r".{0,60}\b(GPT|(by|for|a) (\w+ )?(language )?(AI|models?))\b",
    re.IGNORECASE,
)
STALE = re.compile(
    r"\b(my (knowledge|training) (cut-?off|data)|knowledge cut-?off|(as of|since|until|in) my last (update|training)|"
    r"as of (today|now|(early |mid |late )?(\w+ )?20\d\d)\b|today is \w+,? \w+ \d|"
    r"today's date is|the current (date|time|year) is)",
    re.IGNORECASE,
)
VERSE = re.compile(r"\b(songs?|lyrics|poe(m|try)|jingle|rap|chant|chorus|haiku|verses?|rhymes?)\b", re.IGNORECASE)
FEWEST = 3  # words that an answer needs to count as an echo
ENDS = ".!?…:;)]}>\"'”’`*_|=。！？"
PROSE = 25  # words of a last line without closing mark that is truncated, not a title or a list item
# UTF-8 that was decoded as Windows-1252, replacement characters, and invisible characters without use in text.
DAMAGED = re.compile(
    r"[ÃÂ][\u0080-\u00bf‚ƒ„…†‡ˆ‰Š‹Œ‘’“”•–—˜™š›œ€]|â€.|ï»¿|ï¿½|\ufffd|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|"
    r"[\u200b\u202a-\u202e\u2060\ufeff\ue000-\uf8ff]"
)
PLACEHOLDER = re.compile(
    r"\{\{\s*\w+\s*\}\}|"
    r"\[(insert|your|enter|add|fill|name of|company|client|customer|recipient|product|date)\b[^\]\n]{0,40}\]"
    r"|<(insert|your|enter)\b[^>\n]{0,40}>|\bX{4,}\b",
    re.IGNORECASE,
)
LANGUAGES = re.compile(
    r"\b(translat\w*|language|arabic|chinese|danish|dutch|finnish|french|german|greek|hebrew|hindi|italian|japanese|korean|"
    r"latin|mandarin|norwegian|polish|portuguese|russian|spanish|swahili|swedish|thai|turkish|ukrainian|vietnamese|"
    r"emojis?|code|cipher|encrypt|unicode|phonetic|kanji|haiku)\b",
    re.IGNORECASE,
)


def one_character(answer: str) -> str | None:
    return answer if len(answer.strip()) == 1 else None


def no_answer(answer: str) -> str | None:
    """Return the marker that replaces or precedes an answer, such as "N/A" or "<noinput>"."""
    match = NO_ANSWER.fullmatch(answer.strip()) or MARKER.match(answer.strip())
    return match[0].strip() if match else None


def merged(answer: str) -> str | None:
    """Return the field labels of further requests inside an answer, such as "instruction; output"."""
    fields = [match[1].lower() for match in FIELD.finditer(answer)]
    return "; ".join(fields) if "instruction" in fields and len(fields) > 1 else None


def boilerplate(answer: str) -> str | None:
    """Return the words in which a model speaks about itself."""
    match = BOILERPLATE.search(answer.replace("’", "'"))
    return match[0] if match else None


def unfinished(answer: str) -> str | None:
    """Return the end of an answer that breaks off: after a comma or empty item, or in a long line without end."""
    if answer_rules.is_cut_short(answer):
        return answer.strip()[-40:]
    last = (lines(answer) or [""])[-1]
    if last[-1:] in ENDS or not last[-1:].isascii() or len(words(last)) < PROSE:
        return None
    return last[-40:] if last[-1:].isalpha() and last.split()[-1][0] not in "#@" else None


def stale(answer: str) -> str | None:
    """Return the words that tie an answer to the date when it was written."""
    match = STALE.search(answer)
    return match[0] if match else None


def damaged(text: str) -> str | None:
    """Return the surroundings of characters that were decoded wrongly or are invisible, in ASCII."""
    match = DAMAGED.search(text)
    return ascii(text[max(match.start() - 10, 0) : match.end() + 10]) if match else None


def placeholder(answer: str) -> str | None:
    """Return a template's blank that was not filled in."""
    match = PLACEHOLDER.search(answer)
    return match[0] if match else None


def repeats(request: str, answer: str, threshold: float = answer_rules.REPEATED) -> str | None:
    """Return the end of a repetitive answer. Verse and code may repeat themselves."""
    if VERSE.search(request) or CODE.search(answer) or not answer_rules.is_repetitive(answer, threshold):
        return None
    return answer.strip()[-80:]


def echo(request: str, answer: str) -> str | None:
    """Return the beginning of an answer that copies the words of the request, or of one of its paragraphs."""
    answer_words = plain_words(answer)
    if len(answer_words) < FEWEST:
        return None
    is_copy = any(answer_words == plain_words(part) for part in (request, *paragraphs(request)))
    return answer.strip()[:80] if is_copy else None


def other_language(request: str, answer: str) -> str | None:
    """Return the beginning of a non-English answer to an English request that names no language."""
    if answer.isascii() or LANGUAGES.search(request) or answer_rules.is_not_english(request):
        return None
    letters = [c for c in answer if c.isalpha()]
    foreign_letters = sum(not c.isascii() for c in letters)
    return answer.strip()[:60] if foreign_letters > (1 - answer_rules.LATIN) * len(letters) else None
