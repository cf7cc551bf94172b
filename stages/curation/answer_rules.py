"""Rules for answers that a model learns from: complete, in the prompt's language, and no echo, repetition or refusal."""

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np

from stages.config.choices import SOURCE_CHECKS
from stages.config.installation import read_beside
from stages.curation import languages
from stages.store.judged_pool import TokenCount
from stages.store.records import Candidate, Example
from stages.store.text_units import lines, lower_words
from stages.tasks.open_requests import is_echo

TEXTS = read_beside(__file__)
RUN = 4  # words in a run; a run that occurs again is a repetition
REPEATED = 0.2  # largest share of an answer's runs that may be repetitions
SAME_LINE = 3  # occurrences of one line that make an answer repetitive
# 40 times the same without a space, except rules and dots
LOOP = re.compile(r"([^\s\-=_*#|.~]\S{0,19}?)\1{39,}")
UNUSUAL = 0.05  # share of candidates whose log-prob counts as unusually high or low
NOTHING, UNFINISHED = "says nothing", "is not finished"
REPETITIVE = "says the same again and again"
OTHER_LANGUAGE = "in_language"  # kind of the check that asks for another language


def is_repetitive(text: str, threshold: float = REPEATED) -> bool:
    """Return whether an answer repeats itself: one line with words occurs SAME_LINE times, more than a share of
    `threshold` of the answer's runs of words are repetitions, or a word or a run of signs is a loop: LOOP."""
    answer_words = lower_words(text)
    runs = Counter(zip(*(answer_words[i:] for i in range(RUN)), strict=False))
    repeats = sum(runs.values()) - len(runs)
    # a rule or a brace may occur often
    same_lines = Counter(line for line in lines(text) if re.search(r"\w", line))
    loops = max(same_lines.values(), default=0) >= SAME_LINE or bool(LOOP.search(text))
    return loops or repeats > threshold * sum(runs.values())


def is_cut_short(text: str) -> bool:
    """Return whether an ended answer breaks off: after a comma, an empty list item or an empty heading."""
    return bool(re.search(r"(,|\n\s*([-*•]|\d+[.)]|#+))\s*$", text))


# The requests are harmless, so an answer that mentions the model's nature or its limits evades the request.
REFUSAL, REGRET = (
    re.compile("|".join(TEXTS[name]), re.IGNORECASE) for name in ("refusal", "regret")
)
# characters that are searched for an apology; further down, a requested letter may apologize
BEGINNING = 80


def is_refusal(text: str) -> bool:
    """Return whether an answer refuses, apologizes at its beginning, or names itself a language model."""
    plain = text.replace("’", "'")
    return bool(REFUSAL.search(plain) or REGRET.search(plain[:BEGINNING]))


# The name of each rule, and a function that returns whether a candidate breaks the rule.
RULES: dict[str, Callable[[Example, Candidate], bool]] = {
    NOTHING: lambda prompt, c: not c.answer.strip(),
    UNFINISHED: lambda prompt, c: c.finish_reason != "stop" or is_cut_short(c.answer),
    REPETITIVE: lambda prompt, c: is_repetitive(c.answer),
    "echoes the request": lambda prompt, c: is_echo(c.answer, prompt.messages[-1]["content"]),
    "refuses": lambda prompt, c: is_refusal(c.answer),
    "is in another language": lambda prompt, c: (
        languages.difference(prompt.messages[-1]["content"], c.answer) is not None
        and all(check.kind != OTHER_LANGUAGE for check in prompt.checks)
    ),
}


# The rules for an answer that is compared with a right one, which may be a word of the request in any language.
RULES_OF_COMPARED = {name: RULES[name] for name in (NOTHING, UNFINISHED, REPETITIVE)}


def find_broken_rule(prompt: Example, candidate: Candidate) -> str | None:
    """Return the name of the first rule that a candidate breaks, or None."""
    compared = any(check.kind in SOURCE_CHECKS for check in prompt.checks)
    rules = RULES_OF_COMPARED if compared else RULES
    return next((reason for reason, breaks in rules.items() if breaks(prompt, candidate)), None)


def logprob_limits(candidates: Iterable[Candidate | TokenCount]) -> tuple[float, float]:
    """Return the lowest and the highest usual mean log-prob per token. A share of UNUSUAL of the candidates lies
    outside, half of them on each side. Candidates above the limits recite or repeat themselves; those below ramble.
    Without log-probs, the limits are infinite."""
    logprobs = array(
        "d", (c.logprob / c.n_tokens for c in candidates if c.logprob is not None and c.n_tokens)
    )
    if not logprobs:
        return -np.inf, np.inf
    low = np.quantile(logprobs, UNUSUAL / 2, method="lower")
    return float(low), float(np.quantile(logprobs, 1 - UNUSUAL / 2, method="higher"))


def is_within(candidate: Candidate, limits: tuple[float, float]) -> bool:
    """Return whether a candidate's mean log-prob per token is within the limits. A candidate without log-prob is."""
    low, high = limits
    return (
        candidate.logprob is None
        or not candidate.n_tokens
        or low <= candidate.logprob / candidate.n_tokens <= high
    )
