"""Constraints on punctuation marks between and inside words."""

import re

from stages.store.text_units import lines
from stages.tasks.constraint import Side, constraint, count_of, worded

SHORTENED = re.compile(
    r"n['’‘ʼ]t\b|\w['’‘ʼ](?:re|ve|ll|m|d)\b|"
    r"\b(?:it|that|there|here|what|who|where|how|let|he|she)['’‘ʼ]s\b",
    re.IGNORECASE,
)
RANGE = re.compile(r"(?<=\d)[ \t]*[-–—][ \t]*(?=\d)")
DASH = re.compile(r"(?<=[\w\"'”’»)*`.,!?%])[ \t]*(?:[–—]|-{2,3}|(?<=[ \t])-(?=\s))\s*(?=[\w\"'“‘«(*`$])")


@constraint(Side.train, "commas")
@worded("""
    Do not use any commas.
    Write your whole answer without a single comma.
    Commas are not allowed anywhere in your answer.
    Please leave out all commas, even in lists and numbers.
    Your answer must contain no commas at all.
""")
def no_commas(answer: str) -> bool:
    return not re.search("[,，،、]", answer)


@constraint(Side.train, "exclamations", count_of(2, 3, 4))
@worded("""
    Use exactly {count} exclamation marks.
    Your answer must contain {count} exclamation marks, no more and no fewer.
    Include exclamation marks in your answer, {count} of them exactly.
    When all the exclamation marks in your answer are counted, there should be exactly {count}.
    I want to see precisely {count} exclamation marks in the whole answer.
""")
def exclamations_exactly(answer: str, count: int) -> bool:
    return len(re.findall("[!！]", answer)) == count


@constraint(Side.train, "colons", count_of(2, 3, 4))
@worded("""
    Use at least {count} colons.
    Your answer should contain {count} or more colons.
    Make sure that a colon (":") appears at least {count} times in your answer.
    Write your answer so that it has no fewer than {count} colons.
    Include colons in what you write: at least {count} of them.
""")
def colons_at_least(answer: str, count: int) -> bool:
    return len(re.findall("[:：]", answer)) >= count


@constraint(Side.validation, "brackets", count_of(2, 3))
@worded("""
    Add at least {count} remarks in round brackets (such as this).
    Your answer must have {count} or more asides, each in its own pair of parentheses.
    At least {count} times, interrupt your answer with a short remark in parentheses.
    Include no fewer than {count} comments in round brackets.
    Use round brackets ( ) for extra remarks, and do so at least {count} times.
""")
def parentheses_at_least(answer: str, count: int) -> bool:
    inside = re.findall(r"(?<!\])\(([^()]*)\)", answer)  # after a square bracket, the parentheses contain a link
    return sum(bool(re.search(r"\w\w", remark)) for remark in inside) >= count  # not "(s)" or "(1)"


@constraint(Side.test, "questions", count_of(2, 3, 4))
@worded("""
    Use exactly {count} question marks.
    Your answer must contain {count} question marks, not one more and not one less.
    Put question marks in your answer, {count} in all and no other number.
    The number of question marks in your answer has to be exactly {count}.
    There should be precisely {count} question marks in what you write.
""")
def questions_exactly(answer: str, count: int) -> bool:
    return len(re.findall("[?？]", answer)) == count


@constraint(Side.test, "words")
@worded("""
    Do not use contractions such as "don't" or "it's"; possessives such as "Anna's" are fine.
    Write every contraction out in full: "do not" instead of "don't", "we will" instead of "we'll".
    Your answer must be free of contractions, that is, of words like "can't", "you're" or "that's".
    Avoid every word in which an apostrophe makes two words into one, such as "isn't" or "I've".
    No contractions, please: spell out forms such as "they're" and "what's" as two words.
""")
def no_contractions(answer: str) -> bool:
    """Allow `'s` after a noun, because it may be a possessive."""
    return not SHORTENED.search(answer.replace("_", " "))


@constraint(Side.aside, "colons end")
@worded("""
    Use exactly one ellipsis, written as "..." or as the single character "…".
    Your answer must contain one ellipsis ("..." or "…") and no second one.
    Somewhere in your answer, let a sentence trail off with "..." or "…". Do this only once.
    Put "..." or "…" into your answer a single time, no more and no less.
    There should be an ellipsis (three dots, "..." or "…") in exactly one place of your answer.
""")
def ellipsis_once(answer: str) -> bool:
    """Allow a full stop after the ellipsis."""
    return re.findall(r"\.{3,}|…+\.?", answer) in (["..."], ["...."], ["…"], ["…."])


@constraint(Side.test, "end layout exclamations questions")
@worded("""
    Use no full stops at all. Use question marks, exclamation marks or line breaks instead, at least one of them.
    The character "." must not occur in your answer; let at least one "!", "?" or new line do its work.
    Write without any full stops, and end at least one sentence with "!" or "?" or by starting a new line.
    Replace every full stop by a question mark, an exclamation mark or a line break, so that no "." is left.
    Full stops are forbidden. Separate what you say with at least one exclamation mark, question mark or line break.
""")
def no_full_stops(answer: str) -> bool:
    return not re.search("[.。．]", answer) and (bool(re.search("[!?！？]", answer)) or len(lines(answer)) > 1)


@constraint(Side.aside, "brackets", count_of(2, 3))
@worded("""
    Use at least {count} dashes between words (" - ", "–" or "—"); hyphens inside a word do not count.
    Set parts of your sentences off with dashes (" - ", "–" or "—") between words, at least {count} dashes in all.
    Your answer must have {count} or more dashes between words, written " - ", "–" or "—"; list markers do not count.
    At least {count} times, put a dash between two words, with spaces around it ( - ) or as a long dash (—).
    Include no fewer than {count} dashes that stand between words: " - ", "–" or "—", not hyphens as in "well-known".
""")
def dashes_at_least(answer: str, count: int) -> bool:
    """Ignore the dash of a range such as 10–20, which is not between words."""
    return len(DASH.findall(RANGE.sub(" ", answer.replace("_", "")))) >= count
