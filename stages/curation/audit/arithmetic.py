"""Sums that a text works out, such as `3 + 4 * 2 = 11`, and a search for wrong results."""

import re
from fractions import Fraction

NUMBER = r"\$?\s?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?%?"
EQUATION = re.compile(rf"({NUMBER}(?:\s?[-+*/×÷−]\s?{NUMBER}|\sx\s{NUMBER})+)\s*=\s*(-?{NUMBER})")
TERM = re.compile(rf"({NUMBER})|([-+*/×÷−x])")
# An equation next to these characters is part of a longer expression.
BEFORE = re.compile(r"([-+*/×÷−^(.,:_=<>\[&|~\d]|\b[b-zB-HJ-Z]|\d and)$")
AFTER = re.compile(r"\w|\s*[-+*/×÷−^:=_(\[&|]|[.,]\d|\s?[a-z]\b| \d{3}\b|\s*cents?\b")
FRACTION = re.compile(r"/\s*\d+\s*/")  # "25 / 1/3" means 75, so a division by a fraction is ambiguous


def find_wrong_sum(text: str) -> str | None:
    """Return the first equation of plain numbers that does not hold, or None. Rounded results count as right.
    Equations that may be part of algebra, code, a time or a date are skipped."""
    for match in EQUATION.finditer(text):
        before, after = text[: match.start()].rstrip(" $"), text[match.end() :]
        if BEFORE.search(before) or AFTER.match(after) or FRACTION.search(match[1]):
            continue
        value = evaluate(match[1])
        scales = (Fraction(1), Fraction(100), Fraction(1, 100)) if "%" in match[0] else (Fraction(1),)
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
