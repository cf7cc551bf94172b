"""Constraints on capital letters."""

import re

from stages.store.text_units import sentences, words
from stages.tasks.constraint import Side, constraint, count_of, worded

COMMON = "always best careful day important life often people simple small time way world".split()


@constraint(Side.train, "case")
@worded("""
    Write the whole answer in capital letters.
    Use capital letters only, with no lower-case letter anywhere.
    Every letter of your answer must be a capital.
    I would like the answer in capitals from the first letter to the last.
    Please answer as if the caps lock key were stuck: all letters are capitals.
    Lower-case letters are not allowed; put everything in upper case.
""")
def all_capitals(answer: str) -> bool:
    return answer.isupper()


@constraint(Side.train, "case")
@worded("""
    Write the whole answer in lower-case letters.
    Do not use any capital letter, not even at the start of a sentence or in a name.
    Every letter of your answer must be lower case.
    Capitals are not allowed anywhere in the answer, so start each sentence with a small letter too.
    I would like only small letters, from the first one to the last.
    Please keep all letters in lower case.
""")
def all_lowercase(answer: str) -> bool:
    return answer.islower()


@constraint(Side.train, "case", count_of(2, 3, 4))
@worded("""
    Write at least {count} words of two or more letters fully in capitals, but not the whole answer.
    Stress at least {count} words by writing them in capitals; each has two letters or more, and the rest is not all \
in capitals.
    At least {count} of the words, none of them a single letter, must be in capitals only. Do not put everything in \
capitals.
    The answer should have {count} or more words in full capitals (words of one letter do not count), while some \
letters stay lower case.
    In an answer that is not all in capitals, include {count} or more words of at least two letters that are.
""")
def capital_words_at_least(answer: str, count: int) -> bool:
    return sum(map(_capital, words(answer))) >= count and any(map(str.islower, answer))


@constraint(Side.validation, "case start")
@worded("""
    Begin with a full sentence written wholly in capitals, and write at least one more; no other sentence may be \
all in capitals.
    Open the answer with one complete sentence in capital letters, then with one or more others, none of them \
wholly in capitals.
    The answer starts with a full sentence in which every letter is a capital. At least one more follows, and \
no other is all in capitals.
    Put the whole of the opening sentence in capitals, end it with its mark, and go on with at least one more, \
each in the usual mix of capitals and small letters.
    Write two or more sentences, and put just one wholly in capitals: the full sentence that opens the answer.
""")
def capital_first_sentence(answer: str) -> bool:
    first, *rest = sentences(answer) or [""]
    # without a closing mark, the line is a heading
    return first.isupper() and first[-1] in ".!?…" and bool(rest) and not any(map(str.isupper, rest))


@constraint(Side.aside, "case end")
@worded("""
    Write the very last word of the answer, which must have at least two letters, in capitals. Do not write every \
word so.
    The answer should end with a word of two or more letters in full capitals, but not all of it may be in capitals.
    Put the final word wholly in capitals; it needs two letters or more, and some of the other letters are lower case.
    Finish on a word in capital letters only (at least two letters long), without putting the whole answer in capitals.
    Let the last word, of at least two letters, stand in capitals from its first letter to its last. The whole \
answer must not be in capitals.
""")
def last_word_capitals(answer: str) -> bool:
    return any(map(_capital, words(answer)[-1:])) and not answer.isupper()


@constraint(Side.aside, "case start")
@worded("""
    Write the very first word of the answer, which must have at least two letters, in capitals. Do not write every \
word so.
    The answer should begin with a word of two or more letters in full capitals, but not all of it may be in capitals.
    Put the opening word wholly in capitals; it needs two letters or more, and some of the other letters are lower \
case.
    Start on a word in capital letters only (at least two letters long), without putting the whole answer in capitals.
    Let the first word, of at least two letters, stand in capitals from its first letter to its last. The whole \
answer must not be in capitals.
""")
def first_word_capitals(answer: str) -> bool:
    answer_words = words(re.sub(r"^\d+[.)]\s+", "", answer))  # without the number of a list item
    return any(map(_capital, answer_words[:1])) and not answer.isupper()


@constraint(Side.aside, "case")
@worded("""
    Begin every word with a capital letter.
    Every word of the answer must start with a capital, even the small ones such as "a" or "of".
    Write it as some titles are written: the first letter of each and every word is a capital.
    No word may begin with a small letter.
    I would like each word, however short, to have a capital as its first letter.
""")
def capital_every_word(answer: str) -> bool:
    heads = [word.lstrip("_")[:1] for word in words(answer)]
    return any(map(str.isupper, heads)) and all(head.isupper() or not head.isalpha() for head in heads)


@constraint(Side.aside, "case words", lambda rng, request: {"word": rng.choice(COMMON)})
@worded("""
    Use the word "{word}", and write it in capitals wherever it occurs.
    The word "{word}" must occur in your answer, each time in capital letters only.
    Mention "{word}" at least once. Whenever you write that word, put all of its letters in capitals.
    Include the word "{word}" and never write it with a small letter: always in full capitals.
    Every time the word "{word}" occurs, it has to be in capitals, and it has to occur.
""")
def word_in_capitals(answer: str, word: str) -> bool:
    uses = [token for token in (part.strip("_") for part in words(answer)) if token.lower() == word]
    return bool(uses) and all(map(str.isupper, uses))


def _capital(word: str) -> bool:
    return word.isupper() and sum(map(str.isalpha, word)) > 1
