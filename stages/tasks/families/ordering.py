"""Tasks to sort, and to pick by position or size."""

import random

from stages.tasks.generator import Instance, exactly, family, one_of
from stages.tasks.words import items

PLACES = ["first", "second", "third"]


@family(
    "order",
    """
    Sort these words alphabetically and give them separated by commas: {text}
    Put in alphabetical order: {text}
    {text} | Arrange the words above from A to Z, separated by commas.
    Alphabetise this list, keeping the commas: {text}
    Order these from A to Z: {text}
    How would a dictionary order these? Answer with the words and commas only: {text}
    """,
)
def sort_words(rng: random.Random) -> Instance:
    words = items(rng, 2, 4)
    reference = ", ".join(sorted(words))
    return Instance({"text": ", ".join(words)}, reference, exactly(reference, "same_words", words=words))


@family(
    "order",
    """
    Sort these numbers from smallest to largest, separated by commas: {text}
    Put in ascending order: {text}
    {text} | Arrange the numbers above from low to high, separated by commas.
    Order these numbers, the smallest first: {text}
    Sort ascending: {text}
    Which comes first when counting up? Give all of these in that order, with commas: {text}
    """,
    unseen=True,
)
def sort_numbers(rng: random.Random) -> Instance:
    numbers = rng.sample(range(1, 100), rng.randint(2, 4))
    reference = ", ".join(map(str, sorted(numbers)))
    return Instance(
        {"text": ", ".join(map(str, numbers))},
        reference,
        exactly(reference, "same_words", words=[str(n) for n in numbers]),
    )


@family(
    "order",
    """
    Write this list in reverse order, separated by commas: {text}
    Reverse the order of these words: {text}
    {text} | Give the list above back to front, separated by commas.
    List these from last to first, with commas: {text}
    Turn this list around, the last item first: {text}
    Read this list from its end to its start and write it down that way, with commas: {text}
    """,
    unseen=True,
)
def reverse_list(rng: random.Random) -> Instance:
    words = items(rng, 2, 4)
    reference = ", ".join(reversed(words))
    return Instance({"text": ", ".join(words)}, reference, exactly(reference, "same_words", words=words))


@family(
    "pick",
    """
    What is the {place} item of this list? Answer with that word only: {text}
    Give me the {place} word: {text}
    {text} | Which is the {place} of these? One word.
    Only the {place} one: {text}
    Name the {place} thing in the list: {text}
    Count along this list and stop at the {place}. What is it? {text}
    """,
)
def pick_by_place(rng: random.Random) -> Instance:
    words = items(rng, 3, 5)
    index = rng.randrange(3)
    return Instance({"text": ", ".join(words), "place": PLACES[index]}, words[index], one_of(words, words[index]))


@family(
    "pick",
    """
    What is the last item of this list? Answer with that word only: {text}
    Give me the last word: {text}
    {text} | Which comes last? One word.
    Only the last one: {text}
    Name the final thing in the list: {text}
    When you have read all of these, which did you read at the very end? {text}
    """,
    unseen=True,
)
def pick_last(rng: random.Random) -> Instance:
    words = items(rng, 3, 5)
    return Instance({"text": ", ".join(words)}, words[-1], one_of(words, words[-1]))


@family(
    "pick",
    """
    Which of these numbers is the largest? Answer with the number only: {text}
    Give the biggest number: {text}
    {text} | What is the highest number above? Only that.
    The maximum of: {text}
    Find the largest: {text}
    If these were prices, which would hurt your purse most? Only the number: {text}
    """,
)
def largest(rng: random.Random) -> Instance:
    numbers = [str(n) for n in rng.sample(range(1, 100), rng.randint(2, 4))]
    reference = max(numbers, key=int)
    return Instance({"text": ", ".join(numbers)}, reference, one_of(numbers, reference))


@family(
    "pick",
    """
    Which of these numbers is the smallest? Answer with the number only: {text}
    Give the lowest number: {text}
    {text} | What is the smallest number above? Only that.
    The minimum of: {text}
    Find the smallest: {text}
    If these were prices, which would you like best? Only the number: {text}
    """,
)
def smallest(rng: random.Random) -> Instance:
    numbers = [str(n) for n in rng.sample(range(1, 100), rng.randint(2, 4))]
    reference = min(numbers, key=int)
    return Instance({"text": ", ".join(numbers)}, reference, one_of(numbers, reference))
