"""Sums that a text works out: `3 + 4 * 2 = 11`. Those that come out wrong."""

import re
from fractions import Fraction

NUMBER = r"\$?\s?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?%?"
EQUATION = re.compile(rf"({NUMBER}(?:\s?[-+*/×÷−]\s?{NUMBER}|\sx\s{NUMBER})+)\s*=\s*(-?{NUMBER})")
TERM = re.compile(rf"({NUMBER})|([-+*/×÷−x])")
# Beside these, variables among them, an equation is part of something longer.
BEFORE = re.compile(r"([-+*/×÷−^(.,:_=<>\[&|~\d]|\b[b-zB-HJ-Z]|\d and)$")
AFTER = re.compile(r"\w|\s*[-+*/×÷−^:=_(\[&|]|[.,]\d|\s?[a-z]\b| \d{3}\b|\s*cents?\b")
FRACTION = re.compile(r"/\s*\d+\s*/")  # 25 / 1/3 is meant to be 75


def wrong(text: str) -> str | None:
    """The first equation of plain numbers that does not hold. What is rounded holds; so does what may be read as part
    of something longer: algebra, code, times and dates."""
    for found in EQUATION.finditer(text):
        before, after = text[: found.start()].rstrip(" $"), text[found.end() :]
        if BEFORE.search(before) or AFTER.match(after) or FRACTION.search(found[1]):
            continue
        value = worked_out(found[1])
        scales = (Fraction(1), Fraction(100), Fraction(1, 100)) if "%" in found[0] else (Fraction(1),)
        if value is not None and not any(same(value * scale, found[2]) for scale in scales):
            return found[0]
    return None


def number(written: str) -> Fraction:
    plain = Fraction(re.sub(r"[$,%\s]", "", written))
    return plain / 100 if written.endswith("%") else plain


def worked_out(sum_: str) -> Fraction | None:
    """The value of a sum without brackets; None where it divides by zero."""
    terms, sign = [Fraction(0)], ""
    for value, operator in TERM.findall(sum_):
        if operator:
            sign = operator
        elif sign in ("+", "-", "−", ""):
            terms.append(number(value) if sign in ("+", "") else -number(value))
        elif sign in ("/", "÷"):
            if not number(value):
                return None
            terms[-1] /= number(value)
        else:
            terms[-1] *= number(value)
    return sum(terms, Fraction(0))


def same(value: Fraction, written: str) -> bool:
    """Whether a number is the value, or the value rounded or cut to as many places as it has."""
    said = number(written)
    places = len(written.rstrip("%").partition(".")[2]) + 2 * written.endswith("%")
    step = Fraction(1, 10**places)
    return value == said or ((value / step).denominator != 1 and abs(value - said) < step)
