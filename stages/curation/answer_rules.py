"""What an answer must be beside right, to be learnt from: finished, in its language, no echo, no loop, no refusal, and
written as its model writes."""

import re
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np

from stages.store.records import Candidate, Example
from stages.store.text_units import lines, lower_words
from stages.tasks.open_requests import echoes

RUN = 4  # words that, when they come again, are a repetition
REPEATED = 0.2  # share of an answer's runs that may have been there before
SAME_LINE = 3  # times that a line may not come
ENOUGH = 12  # words from which on an answer's language shows
FUNCTION_WORDS = frozenset(
    "a an the of and or but to in on at by for from with as is are was were be been it its this that these those you "
    "your i my we our he she they their not no if so can will would have has had do does there what when which "
    "who".split()
)
FEWEST = 0.15  # share of function words in English prose; lists have fewer than others
LATIN = 0.9  # share of letters that are from a to z
UNUSUAL = 0.05  # share of candidates that are likelier, or less likely, than an answer to learn from is
UNFINISHED = "is not finished"
OTHER_LANGUAGE = "in_language"  # the check of an answer that is not meant to be English


def loops(text: str, most: float = REPEATED) -> bool:
    """Whether an answer says the same again and again: in runs of words, of which `most` is the share that may have
    been there before; or in lines."""
    said = lower_words(text)
    runs = Counter(zip(*(said[i:] for i in range(RUN)), strict=False))
    again = sum(runs.values()) - len(runs)
    return again > most * sum(runs.values()) or max(Counter(lines(text)).values(), default=0) >= SAME_LINE


def foreign(text: str) -> bool:
    """Whether an answer is not in English, as far as one can tell. Short ones are taken for it."""
    said = lower_words(text)
    letters = [c for c in text if c.isalpha()]
    if letters and sum(c.isascii() for c in letters) < LATIN * len(letters):
        return True
    prose = [word for word in said if word.isalpha()]
    return len(prose) >= ENOUGH and sum(word in FUNCTION_WORDS for word in prose) < FEWEST * len(prose)


def cut_short(text: str) -> bool:
    """Whether an answer that ended by itself breaks off: on a comma, or on an empty item or heading."""
    return bool(re.search(r"(,|\n\s*([-*•]|\d+[.)]|#+))\s*$", text))


# What is asked for here, anybody may answer: a model that speaks of what it is, or of what it cannot do, evades.
REFUSAL = re.compile(
    r"\bas an? ([\w-]+ ){0,3}(AI|assistant|language model|chatbot)\b"
    r"|\bI('m| am) (unable|not (able|capable|equipped|designed|programmed)) to\b"
    r"|\bI do(n't| not) have the (ability|capability|capacity|means) to\b",
    flags=re.IGNORECASE,
)
REGRET = re.compile(r"\bI('m| am) (\w+ )?(sorry|afraid)\b|\bI apologi[sz]e\b|\bapologies\b", flags=re.IGNORECASE)
BEGINNING = 80  # characters: a letter may well regret something further down


def refuses(text: str) -> bool:
    """Whether an answer says, instead of answering, that it cannot, or what it is."""
    plain = text.replace("’", "'")
    return bool(REFUSAL.search(plain) or REGRET.search(plain[:BEGINNING]))


# Each with what breaks it.
RULES: dict[str, Callable[[Example, Candidate], bool]] = {
    "says nothing": lambda prompt, c: not c.text.strip(),
    UNFINISHED: lambda prompt, c: c.finish_reason != "stop" or cut_short(c.text),
    "says the same again and again": lambda prompt, c: loops(c.text),
    "echoes the request": lambda prompt, c: echoes(c.text, prompt.messages[-1]["content"]),
    "refuses": lambda prompt, c: refuses(c.text),
    "is in another language": lambda prompt, c: (
        foreign(c.text) and all(check.kind != OTHER_LANGUAGE for check in prompt.checks)
    ),
}


def broken(prompt: Example, candidate: Candidate) -> str | None:
    """The first rule that a candidate breaks, or None."""
    return next((reason for reason, breaks in RULES.items() if breaks(prompt, candidate)), None)


def band(candidates: Iterable[Candidate]) -> tuple[float, float]:
    """Between which mean log-probs per token all candidates lie but a few, half of them at either end: above, a model
    repeats itself or recites; below, it rambles. Without log-probs, everything lies between."""
    found = [c.logprob / c.n_tokens for c in candidates if c.logprob is not None and c.n_tokens]
    if not found:
        return -np.inf, np.inf
    low, high = np.quantile(found, UNUSUAL / 2, method="lower"), np.quantile(found, 1 - UNUSUAL / 2, method="higher")
    return float(low), float(high)


def within(candidate: Candidate, limits: tuple[float, float]) -> bool:
    """Whether the candidate's mean log-prob lies in the band; where it has none, it does."""
    if candidate.logprob is None or not candidate.n_tokens:
        return True
    return limits[0] <= candidate.logprob / candidate.n_tokens <= limits[1]
