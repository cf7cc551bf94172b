"""Tasks to sort, and to pick by position or size."""

import random

from stages.tasks.generator import Instance, exactly, family, one_of
from stages.tasks.words import items

PLACES = ["first", "second", "third"]


@family("order")
def sort_words(rng: random.Random) -> Instance:
    words = items(rng, 2, 4)
    reference = ", ".join(sorted(words))
    return Instance({"text": ", ".join(words)}, reference, exactly(reference, "same_words", words=words))


@family("order", unseen=True)
def sort_numbers(rng: random.Random) -> Instance:
    numbers = [str(n) for n in rng.sample(range(1, 100), rng.randint(2, 4))]
    reference = ", ".join(sorted(numbers, key=int))
    return Instance({"text": ", ".join(numbers)}, reference, exactly(reference, "same_words", words=numbers))


@family("order", unseen=True)
def reverse_list(rng: random.Random) -> Instance:
    words = items(rng, 2, 4)
    reference = ", ".join(reversed(words))
    return Instance({"text": ", ".join(words)}, reference, exactly(reference, "same_words", words=words))


@family("pick")
def pick_by_place(rng: random.Random) -> Instance:
    words = items(rng, 3, 5)
    index = rng.randrange(3)
    return Instance({"text": ", ".join(words), "place": PLACES[index]}, words[index], one_of(words, words[index]))


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
