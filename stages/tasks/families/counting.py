"""Tasks to count, word problems with small numbers, and tasks to sort, and to pick by position or size."""

import random

from stages.tasks.generator import Instance, exact_task, exactly, family, one_of
from stages.tasks.words import NUMBERS, items, spell

PLACES = ["first", "second", "third"]
FORMS = [NUMBERS, [str(n) for n in range(21)]]  # small numbers in words, and in digits


def in_words(slots: dict[str, str], number: int) -> Instance:
    """Return a task with a small number in words as its answer."""
    return Instance(slots, NUMBERS[number], one_of(NUMBERS, NUMBERS[number]))


@family("count")
def count_items(rng: random.Random) -> Instance:
    words = items(rng, 1, 6)
    return in_words({"text": ", ".join(words)}, len(words))


@family("count", unseen=True)
def count_word(rng: random.Random) -> Instance:
    words = items(rng, 2, 3)
    times = rng.randint(1, 4)
    text = [words[0]] * times + words[1:]
    rng.shuffle(text)
    return in_words({"word": words[0], "text": ", ".join(text)}, times)


@family("arithmetic", unseen=True)
def add_words(rng: random.Random) -> Instance:
    a, b = rng.randint(1, 9), rng.randint(1, 6)
    forms = rng.choice(FORMS)
    return in_words({"a": forms[a], "b": forms[b]}, a + b)


@family("arithmetic", unseen=True)
def subtract_words(rng: random.Random) -> Instance:
    a = rng.randint(2, 12)
    b = rng.randint(1, a - 1)
    forms = rng.choice(FORMS)
    return in_words({"a": forms[a], "b": forms[b]}, a - b)


@family("arithmetic", unseen=True)
def neighbour(rng: random.Random) -> Instance:
    number = rng.randint(1, 19)
    side, step = rng.choice([("after", 1), ("before", -1)])
    return in_words({"number": rng.choice(FORMS)[number], "side": side}, number + step)


@family("arithmetic")
def spell_number(rng: random.Random) -> Instance:
    number = rng.randint(0, 99)
    reference = spell(number)
    return Instance({"number": str(number)}, reference, exactly(reference, "lower"))


@family("order")
def sort_words(rng: random.Random) -> Instance:
    words = items(rng, 2, 4)
    return exact_task(", ".join(words), ", ".join(sorted(words)), "same_words", words=words)


@family("order", unseen=True)
def sort_numbers(rng: random.Random) -> Instance:
    numbers = [str(n) for n in rng.sample(range(1, 100), rng.randint(2, 4))]
    return exact_task(
        ", ".join(numbers), ", ".join(sorted(numbers, key=int)), "same_words", words=numbers
    )


@family("order", unseen=True)
def reverse_list(rng: random.Random) -> Instance:
    words = items(rng, 2, 4)
    return exact_task(", ".join(words), ", ".join(reversed(words)), "same_words", words=words)


@family("pick")
def pick_by_place(rng: random.Random) -> Instance:
    words = items(rng, 3, 5)
    index = rng.randrange(3)
    return Instance(
        {"text": ", ".join(words), "place": PLACES[index]},
        words[index],
        one_of(words, words[index]),
    )


@family("pick", unseen=True)
def pick_last(rng: random.Random) -> Instance:
    words = items(rng, 3, 5)
    return Instance({"text": ", ".join(words)}, words[-1], one_of(words, words[-1]))


@family("pick")
def largest(rng: random.Random) -> Instance:
    numbers = [str(n) for n in rng.sample(range(1, 100), rng.randint(2, 4))]
    reference = max(numbers, key=int)
    return Instance({"text": ", ".join(numbers)}, reference, one_of(numbers, reference))


@family("pick")
def smallest(rng: random.Random) -> Instance:
    numbers = [str(n) for n in rng.sample(range(1, 100), rng.randint(2, 4))]
    reference = min(numbers, key=int)
    return Instance({"text": ", ".join(numbers)}, reference, one_of(numbers, reference))
