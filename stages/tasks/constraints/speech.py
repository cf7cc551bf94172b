"""Constraints on speaker, addressee, language and figures of speech, and on additions such as a postscript."""

import re
from collections.abc import Callable

from stages.store.text_units import lines, paragraphs, unmarked
from stages.tasks.constraint import Draw
from stages.tasks.words import NAMES, patterns_of, words_of

KNOWN = {language: frozenset(frequent) for language, frequent in words_of(__file__).items()}
# Exceptions: "I would like a boat" and "as soon as it rains" are not comparisons.
LIKING = frozenset(
    {"i", "you", "we", "they", "would", "d", "to", "who", "people", "may", "might", "not", "t"}
)
AS_AS = re.compile(patterns_of(__file__)["as_as"])
UNITS = "k?m|cm|k?g|ml|(?:kilo)?met(?:re|er)s|feet|miles|degrees|calories|(?:kilo)?grams|lit(?:re|er)s|dollars|euros"
CHECKS: dict[str, Callable[..., bool]] = {
    "second_person": lambda answer, count: _times("you|your|yours|yourself", answer) >= count,
    # The I of "A.I." or "i.e." does not count.
    "first_person": lambda answer, count: _times(r"(?<!\w\.)i(?!\.\w)|me|my|mine", answer) >= count,
    # The possessive in "Anna's garden" does not address Anna.
    "address_by_name": lambda answer, name: _times(rf"{re.escape(name)}(?!['’]s)", answer) > 0,
    "no_you": lambda answer: _times("you|your|yours|yourself|yourselves", answer) == 0,
    "hashtags": lambda answer, count: (
        len(re.findall(r"(?<![\w#&/])#(?=\w*[^\W\d_])\w+", answer)) >= count
    ),
}
DRAWS: dict[str, Draw] = {"address_by_name": lambda rng, request: {"name": rng.choice(NAMES)}}


def in_language(answer: str, language: str) -> bool:
    """Require three frequent words of the language, more than of any other, and two thirds of all frequent words."""
    answer_words = re.findall(r"[^\W\d_]+", answer.lower())
    counts = {
        name: sum(word in frequent for word in answer_words) for name, frequent in KNOWN.items()
    }
    own = counts.pop(language)
    all_known = sum(any(word in frequent for frequent in KNOWN.values()) for word in answer_words)
    return own >= 3 and own > max(counts.values()) and 3 * own >= 2 * all_known


def thank_reader(answer: str) -> bool:
    """Ignore "thanks to the wind", which does not thank the reader."""
    to_others = r"\s+to\s+(?!(?:you|all|everyone)\b|(?:\w+\s+)?readers?\b)"
    return _times(rf"thank\s+you|thanks\b(?!{to_others})", answer) > 0


def name_a_year(answer: str) -> bool:
    year = rf"(?<![\w$€£#])(?<!\s\d\.)(?:1\d{{3}}|20\d\d)(?![\w%]|[.,]\d|[ -]?(?:{UNITS})\b)"
    return bool(re.search(year, answer.replace("_", " ")))


def comparison_used(answer: str) -> bool:
    plain = answer.replace("_", " ")
    starts = [
        match.start() for match in re.finditer(r"\blike\s+(?:a|an|the)\b", plain, re.IGNORECASE)
    ]
    before = [
        re.search(r"(\w+)\s+$", plain[max(0, start - 20) : start].lower()) for start in starts
    ]
    return any(not word or word[1] not in LIKING for word in before) or bool(AS_AS.search(plain))


def _times(pattern: str, answer: str) -> int:
    """Return how often a pattern occurs as whole words. Case and the underscores of emphasis are ignored."""
    return len(re.findall(rf"\b(?:{pattern})\b", answer.replace("_", " "), re.IGNORECASE))


def placeholders(answer: str, count: int) -> bool:
    inside = [part.strip() for part in re.findall(r"\[([^\[\]\n]+)\](?!\()", answer)]
    # "[x]" is a ticked box
    named = [part for part in inside if any(map(str.isalpha, part)) and part.lower() != "x"]
    return len(named) >= count


def postscript(answer: str, marker: str) -> bool:
    ends = lines(answer)[1:][-1:] + paragraphs(answer)[1:][-1:]
    return any(_labelled(end, re.escape(marker)) for end in ends)


def rating(answer: str) -> bool:
    number = r"(?<![\w/.,−-])(?:10|[0-9])"
    return bool(
        re.search(
            rf"{number} ?(?:/|out of) ?10(?![\w/]|[.,][0-9])", unmarked(answer), re.IGNORECASE
        )
    )


def _labelled(text: str, label: str) -> bool:
    """Return whether the text begins with the pattern `label` and continues. Bold and italic marks are ignored."""
    return bool(re.match(rf"[*_]*{label}[\W_]*[^\W_]", text, re.IGNORECASE))
