"""The number that a text ends in, as the result of a worked solution, and the number that a reference is."""

import re

# What GSM8K writes before a result, and LaTeX around it, whose braces may hold others
MARK, BOX = "####", re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}")
NUMERAL = re.compile(r"(?:(?<!\w)[-−])?(?:\d[\d.,/:^]*(?:[eE][-+]?\d+)?|(?<![\w.])\.\d+)")
PLAIN = re.compile(r"-?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)")


def result_of(text: str) -> str:
    """Return what stands behind a text's last mark of a result; the whole text if it has none."""
    if MARK in text:
        return text.rpartition(MARK)[2]
    boxes = BOX.findall(text)
    return boxes[-1] if boxes else text


def numerals(text: str) -> list[str]:
    """Return the numerals of a text, fractions, times and powers whole."""
    found = NUMERAL.findall(result_of(text))
    return [numeral.rstrip(".,/:^").replace("−", "-") for numeral in found]


def value_of(numeral: str) -> float | None:
    """Return the number of a numeral; None for a fraction, a time, a power, or a comma that separates no thousands."""
    return float(numeral.replace(",", "")) if PLAIN.fullmatch(numeral) else None


def last_number(text: str) -> float | None:
    """Return the number that a text ends in, or the one that it marks as its result; None if it is none."""
    if result_of(text) != text:
        return sole_number(text)
    found = numerals(text)
    return value_of(found[-1]) if found else None


def sole_number(text: str) -> float | None:
    """Return the number that a reference is; None if it has none, or several numerals."""
    found = numerals(text)
    return value_of(found[0]) if len(found) == 1 else None
