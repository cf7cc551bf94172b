"""Mistakes that code can prove: sums with a wrong result, such as `3 + 4 * 2 = 12`, and answers without the form that
their request plainly asks for, which is a number of items, a length limit, or JSON."""

import json
import re
from fractions import Fraction

from stages.config.installation import read_beside
from stages.store.text_units import bullet_items, numbered_items, sentences, words

NUMBER = r"\$?\s?(?:\d{1,3}(?:,\d{3}){1,99}|\d{1,99})(?:\.\d{1,99})?%?"
# `++` and the look behind: a long sum without a result is not tried from every term in every way.
EQUATION = re.compile(
    rf"(?<!\d)({NUMBER}(?:\s?[-+*/×÷−]\s?{NUMBER}|\sx\s{NUMBER})++)\s*=\s*(-?{NUMBER})"
)
TERM = re.compile(rf"({NUMBER})|([-+*/×÷−x])")
# An equation next to these characters is part of a longer expression.
BEFORE = re.compile(r"([-+*/×÷−^(.,:_=<>\[&|~\d]|\b[b-zB-HJ-Z]|\d and)$")
AFTER = re.compile(r"\w|\s*[-+*/×÷−^:=_(\[&|]|[.,]\d|\s?[a-z]\b| \d{3}\b|\s*cents?\b")
# "25 / 1/3" means 75, so a division by a fraction is ambiguous
FRACTION = re.compile(r"/\s*\d+\s*/")
SMALL = [
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
]
COUNT = rf"(\d{{1,3}}|{'|'.join(SMALL)})"
PATTERNS = {
    name: text.replace("\n", "").replace("COUNT", COUNT)
    for name, text in read_beside(__file__).items()
}
ITEMS, UNSURE, AT_MOST, ANY_COUNT = (re.compile(text, re.IGNORECASE) for text in PATTERNS.values())
SLACK = 1.2  # tolerated ratio to the limit of words, because tools count words differently
COUNTED = {"word": words, "sentence": sentences}


def find_wrong_sum(text: str) -> str | None:
    """Return the first equation of plain numbers that does not hold, or None. Rounded results count as right.
    Equations that may be part of algebra, code, a time or a date are skipped."""
    for match in EQUATION.finditer(text):
        before, after = text[: match.start()].rstrip(" $"), text[match.end() :]
        if BEFORE.search(before) or AFTER.match(after) or FRACTION.search(match[1]):
            continue
        value = evaluate(match[1])
        scales = (
            (Fraction(1), Fraction(100), Fraction(1, 100)) if "%" in match[0] else (Fraction(1),)
        )
        if value is not None and not any(is_rounded(value * scale, match[2]) for scale in scales):
            return match[0]
    return None


def parse_number(numeral: str) -> Fraction:
    plain = Fraction(re.sub(r"[$,%\s]", "", numeral))
    return plain / 100 if numeral.endswith("%") else plain


def evaluate(expression: str) -> Fraction | None:
    """Return the value of an expression without brackets, or None for a division by zero."""
    terms, sign = [Fraction(0)], ""
    for value, operator in TERM.findall(expression):
        if operator:
            sign = operator
        elif sign in ("+", "-", "−", ""):
            terms.append(parse_number(value) if sign in ("+", "") else -parse_number(value))
        elif sign in ("/", "÷"):
            if not parse_number(value):
                return None
            terms[-1] /= parse_number(value)
        else:
            terms[-1] *= parse_number(value)
    return sum(terms, Fraction(0))


def is_rounded(value: Fraction, numeral: str) -> bool:
    """Return whether a numeral is the value, exactly or rounded or truncated to the numeral's decimal places."""
    number = parse_number(numeral)
    places = len(numeral.rstrip("%").partition(".")[2]) + 2 * numeral.endswith("%")
    step = Fraction(1, 10**places)
    return value == number or ((value / step).denominator != 1 and abs(value - number) < step)


def parse_count(word: str) -> int:
    return int(word) if word.isdigit() else SMALL.index(word.lower()) + 1


def wrong_count(request: str, answer: str) -> str | None:
    """Return the number of list items, if the request asks for another number."""
    match = ITEMS.search(request)
    n_items = len(numbered_items(answer)) or len(bullet_items(answer))
    nested = bool(bullet_items(answer)) and "\n\n" in answer.strip()
    if (
        not match
        or len(ANY_COUNT.findall(request)) > 1
        or UNSURE.search(request)
        or n_items < 2
        or nested
    ):
        return None
    n_requested = parse_count(match[1])
    return (
        f"{n_items} items of {n_requested}" if n_requested > 1 and n_items != n_requested else None
    )


def excess_length(request: str, answer: str) -> str | None:
    """Return the number of words or sentences, if it exceeds the limit in the request."""
    for count, unit, count_or_fewer, unit_or_fewer in AT_MOST.findall(request):
        limit = parse_count(count or count_or_fewer)
        kind = (unit or unit_or_fewer).lower().rstrip("s")
        if (length := len(COUNTED[kind](answer))) > (limit * SLACK if kind == "word" else limit):
            return f"{length} {kind}s of {limit}"
    return None


def invalid_json(request: str, answer: str) -> str | None:
    """Return the parser's error, if the request asks for JSON and the answer begins like JSON."""
    text = answer.strip()
    if not re.search(r"\bJSON\b", request) or text[:1] not in ("{", "["):
        return None
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"no JSON: {error}"
    return None
