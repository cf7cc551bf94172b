"""Constraints on words that an answer must or must not contain, how often, and where."""

import random
import re

from stages.store.text_units import paragraphs, sentences
from stages.tasks.constraint import Side, constraint, count_of, worded
from stages.tasks.words import ADJECTIVES

FREQUENT = "day good help little new often part people place small thing time way work year".split()
COMMON = (  # words for any topic
    "answer always beautiful begin best better bring care careful carefully change choice clear close common day "
    "detail different difficult each easy end enough every example experience family friend future gentle great group "
    "happy heart help history home hour idea important inside interesting keep kind learn life little long matter "
    "moment morning nature need never often open part patient people perfect place possible practice problem question "
    "quick ready reason remember result season share short simple slowly sometimes space special start story strong "
    "surprise thing time together traditional true useful usual value water way wonderful work world year"
).split()
LIKELY = (  # frequent words, which are hard to avoid
    "also always another because best better both different easy even every first good great help however important "
    "into just like make many more most much need new often only other people really should simple small some such "
    "take then these things time use very way well when while work"
).split()
FIRST_PERSON = re.compile(  # without the `I` of `i.e.` and `A.I.`
    r"(?<![^\W_])(?:(?<!\b\w\.)i(?!\.\w\b)|me|my|mine|myself)(?![^\W_])", re.IGNORECASE
)
MARKER = re.compile(r"(?m)^[ \t#*>_+-]*\d{1,2}[.):][*_]*(?=\s|$)")  # marks a numbered item, also in bold or a heading
FIGURE = re.compile(r"(?<![^\W_])\d+(?:[.,:]\d+)*")  # `1,000` and `10:30` are one figure each; the 2 of `H2O` is none


@constraint(
    Side.train, "words", lambda rng, request: {"words": _some(rng, request, COMMON + ADJECTIVES, rng.choice([2, 3]))}
)
@worded("""
    Include the words {words}.
    Make sure that {words} each occur in your answer as words.
    The words {words} must each be used at least once.
    Somewhere in the text, use each of these words just as it stands: {words}.
    I want to find these words in what you write: {words}. Leave none of them out.
""")
def include_words(answer: str, words: list[str]) -> bool:
    return set(words) <= set(_words(answer))


@constraint(Side.train, "words", lambda rng, request: {"words": _some(rng, request, LIKELY, rng.choice([2, 3]))})
@worded("""
    Do not use the words {words}.
    Avoid the words {words} altogether.
    None of the words {words} may appear in your answer.
    Write it without any of these words: {words}.
    The following words are off limits: {words}. Find other ways to say it.
""")
def avoid_words(answer: str, words: list[str]) -> bool:
    return set(words).isdisjoint(_words(answer))


@constraint(Side.train, "words", lambda rng, request: {"word": _one(rng, request), "count": rng.choice([2, 3, 4])})
@worded("""
    Use the word "{word}" at least {count} times.
    The word "{word}" must occur {count} times or more.
    Let "{word}" appear as a word no fewer than {count} times.
    I want to read the word "{word}" in your answer at least {count} times.
    Repeat the word "{word}" so that it is there {count} times at the least.
""")
def word_at_least(answer: str, word: str, count: int) -> bool:
    return _words(answer).count(word) >= count


@constraint(Side.validation, "words", lambda rng, request: {"words": _some(rng, request, COMMON, rng.choice([2, 3]))})
@worded("""
    Use the words {words}, and let each appear for the first time in that order.
    Each of these words must occur, and their first uses must come in the order given: {words}.
    Work in {words}. They have to make their first appearance in just this order.
    Your answer must have in it the words {words}, and none may be used before the one named ahead of it.
    Bring in these words in this order: {words}. No word may appear until the one before it has been used.
""")
def words_in_order(answer: str, words: list[str]) -> bool:
    """Compare the first use of each word."""
    answer_words = _words(answer)
    first = [answer_words.index(word) for word in words if word in answer_words]
    return len(first) == len(words) and first == sorted(first)


@constraint(Side.aside, "words", lambda rng, request: {"word": _one(rng, request), "count": rng.choice([2, 3, 4])})
@worded("""
    Use the word "{word}" exactly {count} times.
    The word "{word}" must occur {count} times, no more and no less.
    Let the word "{word}" appear precisely {count} times in all.
    When I count the uses of the word "{word}" in your answer, I must get {count}.
    Your answer has to contain "{word}" as a word {count} times, neither more often nor less often.
""")
def word_exactly(answer: str, word: str, count: int) -> bool:
    return _words(answer).count(word) == count


@constraint(Side.test, "words end", lambda rng, request: {"word": _some(rng, request, COMMON, 1)[0]})
@worded("""
    Use the word "{word}" in the last sentence.
    The last sentence of your answer must contain the word "{word}".
    Close with a sentence that has the word "{word}" in it.
    In the sentence that ends your answer, the word "{word}" must appear.
    Whatever you write, let its final sentence include the word "{word}".
""")
def word_in_last_sentence(answer: str, word: str) -> bool:
    return any(word in _words(sentence) for sentence in sentences(answer)[-1:])


@constraint(Side.aside, "words", count_of(2, 3, 4))
@worded("""
    Include at least {count} numbers written in digits, such as 7 or 2020. The numbering of a list does not count.
    Write {count} or more numbers in digits, like 12 or 3.5, not counting those that number the items of a list.
    Your answer must hold no fewer than {count} numbers in digits (45 or 1990, say). A list's numbering does not count.
    Besides any that number a list, at least {count} numbers must appear as digits, for example 8 or 150.
    Give at least {count} numbers, and write them as digits, as in 60 or 1,000. List numbering is not counted.
""")
def numbers_at_least(answer: str, count: int) -> bool:
    return len(FIGURE.findall(MARKER.sub("", answer))) >= count


@constraint(Side.test, "words voice")
@worded("""
    Do not use "I", "me", "my", "mine" or "myself", nor "I'm" and the like.
    Write without the words "I" (or "I'm", "I've" and so on), "me", "my", "mine" and "myself".
    None of the words "I", "me", "my", "mine" and "myself" may appear, and no short form with "I" such as "I'll".
    Leave yourself out: the words "I", "me", "my", "mine" and "myself" are not allowed, not even in "I'm" or "I'd".
    Avoid these words everywhere in the answer: "I", "me", "my", "mine", "myself". That includes forms such as "I've".
""")
def avoid_first_person(answer: str) -> bool:
    return not FIRST_PERSON.search(answer)


@constraint(Side.aside, "words layout", lambda rng, request: {"word": _one(rng, request)})
@worded("""
    Write at least two paragraphs, with a blank line between them, and use the word "{word}" in every one.
    Every paragraph must contain the word "{word}". Use two paragraphs or more, set apart by blank lines.
    Separate the text by blank lines into two or more paragraphs, each with the word "{word}" in it.
    The word "{word}" has to occur in each paragraph, and there must be at least two, with an empty line between them.
    Divide your answer into paragraphs, at least two, by blank lines. Let none of them do without the word "{word}".
""")
def word_in_every_paragraph(answer: str, word: str) -> bool:
    word_lists = [text for text in map(_words, paragraphs(answer)) if text]
    return len(word_lists) >= 2 and all(word in text for text in word_lists)


def _words(text: str) -> list[str]:
    """Return the words in lower case, without marks of emphasis. The parts of `well-known` and `it's` are words."""
    return re.findall(r"[^\W_]+", text.lower())


def _some(rng: random.Random, request: str, pool: list[str], count: int) -> list[str]:
    """Return different words of the pool that are not in the request."""
    return rng.sample(sorted(set(pool) - set(_words(request))), count)


def _one(rng: random.Random, request: str) -> str:
    return _some(rng, request, FREQUENT, 1)[0]
