"""Answers without the form that their request plainly asks for: a number of items, a length limit, or JSON."""

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
SLACK = 1.2  # tolerated ratio to the limit of words, because tools count words differently
COUNTED = {"word": words, "sentence": sentences}


def find_missing_form(request: str, answer: str) -> str | None:
    """Return the first difference between an answer and the form that its request asks for."""
    return wrong_count(request, answer) or excess_length(request, answer) or invalid_json(request, answer)


def parse_count(word: str) -> int:
    return int(word) if word.isdigit() else SMALL.index(word.lower()) + 1


def wrong_count(request: str, answer: str) -> str | None:
    """Return the number of list items, if the request asks for another number."""
    match = ITEMS.search(request)
    n_items = len(numbered_items(answer)) or len(bullet_items(answer))
    nested = bool(bullet_items(answer)) and "\n\n" in answer.strip()
    if not match or len(ANY_COUNT.findall(request)) > 1 or UNSURE.search(request) or n_items < 2 or nested:
        return None
    n_requested = parse_count(match[1])
    return f"{n_items} items of {n_requested}" if n_requested > 1 and n_items != n_requested else None


def excess_length(request: str, answer: str) -> str | None:
    """Return the number of words or sentences, if it exceeds the limit in the request."""
    for count, unit, count_or_fewer, unit_or_fewer in MOST.findall(request):
        limit, kind = parse_count(count or count_or_fewer), (unit or unit_or_fewer).lower().rstrip("s")
        length = len(COUNTED[kind](answer))
        if length > (limit * SLACK if kind == "word" else limit):
            return f"{length} {kind}s of {limit}"
    return None


def invalid_json(request: str, answer: str) -> str | None:
    """Return the parser's error, if the request asks for JSON and the answer begins like JSON."""
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
