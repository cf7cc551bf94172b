"""Tasks to count, and word problems with small numbers."""

import random

from stages.tasks.generator import Instance, exactly, family, one_of
from stages.tasks.words import NUMBERS, items


@family(
    "count",
    """
    How many items are in this list? Answer with one number word, such as three: {text}
    Count these and answer with the number as a word: {text}
    {text} | How many things are named above? One word, please.
    Give the number of items, written as a word: {text}
    How many words does this list have? Spell the number: {text}
    If each of these were put in a box of its own, how many boxes would you need? Just the number word: {text}
    """,
)
def count_items(rng: random.Random) -> Instance:
    words = items(rng, 1, 6)
    reference = NUMBERS[len(words)]
    return Instance({"text": ", ".join(words)}, reference, one_of(NUMBERS, reference))


@family(
    "count",
    """
    How often does the word "{word}" occur here? Answer with a number word: {text}
    Count the times "{word}" appears, and answer with one number word: {text}
    {text} | How many times is "{word}" in the list above? Spell the number.
    Number of occurrences of "{word}", as a word: {text}
    How many of these are "{word}"? One word: {text}
    Go through this list and tell me, in one number word, how often you meet "{word}": {text}
    """,
    unseen=True,
)
def count_word(rng: random.Random) -> Instance:
    words = items(rng, 2, 3)
    times = rng.randint(1, 4)
    text = [words[0]] * times + words[1:]
    rng.shuffle(text)
    reference = NUMBERS[times]
    return Instance({"word": words[0], "text": ", ".join(text)}, reference, one_of(NUMBERS, reference))


@family(
    "arithmetic",
    """
    What is {a} plus {b}? Answer with the number as a word.
    Add {a} and {b}. One word.
    {a} + {b} = ? Spell the result.
    Give the sum of {a} and {b} as a word.
    Calculate {a} plus {b} and write the answer as a word.
    I have {a} coins and find {b} more. How many are they now? Answer with one number word.
    """,
    unseen=True,
)
def add_words(rng: random.Random) -> Instance:
    a, b = rng.randint(1, 9), rng.randint(1, 6)
    forms = rng.choice([NUMBERS, [str(n) for n in range(21)]])
    reference = NUMBERS[a + b]
    return Instance({"a": forms[a], "b": forms[b]}, reference, one_of(NUMBERS, reference))


@family(
    "arithmetic",
    """
    What is {a} minus {b}? Answer with the number as a word.
    Take {b} away from {a}. One word.
    {a} - {b} = ? Spell the result.
    Subtract {b} from {a} and answer with a word.
    Calculate {a} minus {b} and write the answer as a word.
    Of {a} eggs, {b} are eaten. How many are left? Answer with one number word.
    """,
    unseen=True,
)
def subtract_words(rng: random.Random) -> Instance:
    a = rng.randint(2, 12)
    b = rng.randint(1, a - 1)
    forms = rng.choice([NUMBERS, [str(n) for n in range(21)]])
    reference = NUMBERS[a - b]
    return Instance({"a": forms[a], "b": forms[b]}, reference, one_of(NUMBERS, reference))


@family(
    "arithmetic",
    """
    Which number comes {side} {number}? Answer with a number word.
    Name the number right {side} {number}, as a word.
    {number}: what comes directly {side} it when counting? One word.
    Counting up, what is just {side} {number}? Spell it.
    The number {side} {number}, as a word, please.
    House numbers go up by one in my street. Which stands {side} number {number}? Answer with a number word.
    """,
    unseen=True,
)
def neighbour(rng: random.Random) -> Instance:
    number = rng.randint(1, 19)
    side, step = rng.choice([("after", 1), ("before", -1)])
    forms = rng.choice([NUMBERS, [str(n) for n in range(21)]])
    reference = NUMBERS[number + step]
    return Instance({"number": forms[number], "side": side}, reference, one_of(NUMBERS, reference))


@family(
    "arithmetic",
    """
    Write the number {number} as a word.
    How do you spell {number}? Only the word.
    {number} | In letters, please.
    Spell out {number}.
    Turn the figure {number} into a word: {number}
    On a cheque you must write the amount in letters. What do you write for {number}?
    """,
)
def spell_number(rng: random.Random) -> Instance:
    number = rng.randint(0, 99)
    tens = "twenty thirty forty fifty sixty seventy eighty ninety".split()
    reference = NUMBERS[number] if number <= 20 else tens[number // 10 - 2]
    if number > 20 and number % 10:
        reference += f"-{NUMBERS[number % 10]}"
    return Instance({"number": str(number)}, reference, exactly(reference, "lower"))
