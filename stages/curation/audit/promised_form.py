"""Forms that a request asks for in so many words, and that an answer does not have: so many items, at most so many
words, JSON. Only what can be told for certain."""

import json
import re

from stages.store.text_units import bullet_items, numbered_items, sentences, words

SMALL = "one two three four five six seven eight nine ten eleven twelve".split()
COUNT = rf"(\d{{1,3}}|{'|'.join(SMALL)})"
ITEMS = re.compile(
    r"\b(?:list|name|give|provide|suggest|generate|identify|recommend|propose|outline|think of|come up with|"
    rf"brainstorm|write(?: down)?|create|find|tell) (?:me |us )?(?:a list of |the (?:top )?|top )?{COUNT}"
    r"(?! ?(?:-|–|to|or)\b) (?:[\w'-]+ )*?[\w-]+s\b",
    re.IGNORECASE,
)
UNSURE = re.compile(r"\b(at least|or more|minimum|each|every|per|pros and|cons|\w+s and \w+s)\b", re.IGNORECASE)
ANY_COUNT = re.compile(rf"\b{COUNT}\b", re.IGNORECASE)
MOST = re.compile(
    rf"\b(?:(?:no more|fewer|less|not more) than|at most|under|within|up to|maximum of|in) {COUNT} "
    rf"(words?|sentences?)\b|{COUNT} (words?|sentences?) or (?:less|fewer)",
    re.IGNORECASE,
)
SLACK = 1.2  # times as many words may be: people and tools count them differently
COUNTED = {"word": words, "sentence": sentences}


def broken(request: str, answer: str) -> str | None:
    """What an answer has instead of the form that its request asks for."""
    return items(request, answer) or length(request, answer) or json_object(request, answer)


def number(word: str) -> int:
    return int(word) if word.isdigit() else SMALL.index(word.lower()) + 1


def items(request: str, answer: str) -> str | None:
    """A list with another number of items than were asked for."""
    asked = ITEMS.search(request)
    found = len(numbered_items(answer)) or len(bullet_items(answer))
    nested = bool(bullet_items(answer)) and "\n\n" in answer.strip()
    if not asked or len(ANY_COUNT.findall(request)) > 1 or UNSURE.search(request) or found < 2 or nested:
        return None
    wanted = number(asked[1])
    return f"{found} items of {wanted}" if wanted > 1 and found != wanted else None


def length(request: str, answer: str) -> str | None:
    """More words or sentences than were allowed."""
    for count, unit, count_or_fewer, unit_or_fewer in MOST.findall(request):
        most, kind = number(count or count_or_fewer), (unit or unit_or_fewer).lower().rstrip("s")
        found = len(COUNTED[kind](answer))
        if found > (most * SLACK if kind == "word" else most):
            return f"{found} {kind}s of {most}"
    return None


def json_object(request: str, answer: str) -> str | None:
    """What begins as JSON, was asked to be JSON, and is none."""
    text = answer.strip()
    if not re.search(r"\bJSON\b", request) or text[:1] not in ("{", "["):
        return None
    try:
        json.loads(text)
    except ValueError as error:
        return f"no JSON: {error}"
    except RecursionError:
        return "no JSON: nested too deeply"
    return None
