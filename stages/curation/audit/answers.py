"""Faults of an answer that curation/answer_rules.py does not name: nothing is answered, a foreign part is in it, or
its letters are damaged."""

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
FEWEST = 3  # words that can be an echo
ENDS = ".!?…:;)]}>\"'”’`*_|=。！？"
PROSE = 25  # words from which on a last line without an end is cut off, and not a title or an item
# Letters of UTF-8 that were read as Windows-1252; what could not be read; what is not seen and has no use in text.
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
    """A marker in place of an answer, or before it."""
    found = NO_ANSWER.fullmatch(answer.strip()) or MARKER.match(answer.strip())
    return found[0].strip() if found else None


def merged(answer: str) -> str | None:
    """Further requests with their answers, in the fields of the prompt that made them."""
    fields = [found[1].lower() for found in FIELD.finditer(answer)]
    return "; ".join(fields) if "instruction" in fields and len(fields) > 1 else None


def boilerplate(answer: str) -> str | None:
    """A model that speaks of itself."""
    found = BOILERPLATE.search(answer.replace("’", "'"))
    return found[0] if found else None


def unfinished(answer: str) -> str | None:
    """An answer that breaks off: on a comma or an empty item, or running text without an end."""
    if answer_rules.cut_short(answer):
        return answer.strip()[-40:]
    last = (lines(answer) or [""])[-1]
    if last[-1:] in ENDS or not last[-1:].isascii() or len(words(last)) < PROSE:
        return None
    return last[-40:] if last[-1:].isalpha() and last.split()[-1][0] not in "#@" else None


def stale(answer: str) -> str | None:
    """What was true when it was written, and says so."""
    found = STALE.search(answer)
    return found[0] if found else None


def damaged(text: str) -> str | None:
    """Letters that were read in a wrong encoding, or that nobody sees."""
    found = DAMAGED.search(text)
    return ascii(text[max(found.start() - 10, 0) : found.end() + 10]) if found else None


def placeholder(answer: str) -> str | None:
    """A blank that nobody filled in."""
    found = PLACEHOLDER.search(answer)
    return found[0] if found else None


def repeats(request: str, answer: str, most: float = answer_rules.REPEATED) -> str | None:
    """The same again and again, where it is no verse and no code, which repeat themselves rightly."""
    if VERSE.search(request) or CODE.search(answer) or not answer_rules.loops(answer, most):
        return None
    return answer.strip()[-80:]


def echo(request: str, answer: str) -> str | None:
    """An answer that is the request again, or its input: the same words in the same order."""
    said = plain_words(answer)
    if len(said) < FEWEST:
        return None
    return answer.strip()[:80] if any(said == plain_words(p) for p in (request, *paragraphs(request))) else None


def other_language(request: str, answer: str) -> str | None:
    """An answer that is not in English, to a request in English that names no language."""
    if answer.isascii() or LANGUAGES.search(request) or answer_rules.foreign(request):
        return None
    letters = [c for c in answer if c.isalpha()]
    strange = sum(not c.isascii() for c in letters)
    return answer.strip()[:60] if strange > (1 - answer_rules.LATIN) * len(letters) else None
