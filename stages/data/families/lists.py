"""Lists: bullets, numbers, order."""

import random

from stages.data.tasks import Instance, family
from stages.data.words import NUMBERS, items, listed
from stages.records import Check


@family(
    "list",
    'Turn this into a bullet list, one item per line, each starting with "- ": {text}',
    'Make bullet points (use "- ") out of: {text}',
    "{text}\n\nFormat these as bullets with a dash.",
    "List the following as dash bullets, in the same order: {text}",
    'Bullet list with "- " please: {text}',
    "I want a dash and a space before each of these, every one on its own line: {text}",
)
def bullets(rng: random.Random) -> Instance:
    words = items(rng, 3, 6)
    reference = "\n".join(f"- {word}" for word in words)
    return Instance(
        {"text": rng.choice([", ".join(words), listed(words)])},
        reference,
        [Check("bullet_count", {"count": len(words)}), Check("equals", {"text": reference})],
    )


@family(
    "list",
    'Number these items, one per line, as "1. ", "2. " and so on: {text}',
    "Make a numbered list of: {text}",
    "{text}\n\nGive me that as a numbered list, one item per line.",
    "Write the following as a list with numbers (1., 2., …): {text}",
    "Enumerate, each on a line of its own: {text}",
    "Put 1. before the first, 2. before the second and so forth, each on a new line: {text}",
    unseen=True,
)
def numbered_list(rng: random.Random) -> Instance:
    words = items(rng, 3, 6)
    reference = "\n".join(f"{i}. {word}" for i, word in enumerate(words, 1))
    return Instance(
        {"text": ", ".join(words)},
        reference,
        [Check("line_count", {"count": len(words)}), Check("equals", {"text": reference})],
    )


@family(
    "order",
    "Sort these words alphabetically and give them separated by commas: {text}",
    "Put in alphabetical order: {text}",
    "{text}\n\nArrange the words above from A to Z, separated by commas.",
    "Alphabetise this list, keeping the commas: {text}",
    "Order these from A to Z: {text}",
    "How would a dictionary order these? Answer with the words and commas only: {text}",
)
def sort_words(rng: random.Random) -> Instance:
    words = items(rng, 3, 5)
    reference = ", ".join(sorted(words))
    return Instance(
        {"text": ", ".join(words)},
        reference,
        [Check("same_words", {"words": words}), Check("equals", {"text": reference})],
    )


@family(
    "order",
    "Sort these numbers from smallest to largest, separated by commas: {text}",
    "Put in ascending order: {text}",
    "{text}\n\nArrange the numbers above from low to high, separated by commas.",
    "Order these numbers, the smallest first: {text}",
    "Sort ascending: {text}",
    "Which comes first when counting up? Give all of these in that order, with commas: {text}",
)
def sort_numbers(rng: random.Random) -> Instance:
    numbers = rng.sample(range(2, 100), rng.randint(3, 5))
    reference = ", ".join(map(str, sorted(numbers)))
    return Instance(
        {"text": ", ".join(map(str, numbers))},
        reference,
        [Check("same_words", {"words": [str(n) for n in numbers]}), Check("equals", {"text": reference})],
    )


@family(
    "order",
    "Write this list in reverse order, separated by commas: {text}",
    "Reverse the order of these words: {text}",
    "{text}\n\nGive the list above back to front, separated by commas.",
    "List these from last to first, with commas: {text}",
    "Turn this list around, the last item first: {text}",
    "Read this list from its end to its start and write it down that way, with commas: {text}",
    unseen=True,
)
def reverse_list(rng: random.Random) -> Instance:
    words = items(rng, 3, 5)
    reference = ", ".join(reversed(words))
    return Instance(
        {"text": ", ".join(words)},
        reference,
        [Check("same_words", {"words": words}), Check("equals", {"text": reference})],
    )


@family(
    "count",
    "How many items are in this list? Answer with one number word, such as three: {text}",
    "Count these and answer with the number as a word: {text}",
    "{text}\n\nHow many things are named above? One word, please.",
    "Give the number of items, written as a word: {text}",
    "How many words does this list have? Spell the number: {text}",
    "If each of these were put in a box of its own, how many boxes would you need? Just the number word: {text}",
)
def count_items(rng: random.Random) -> Instance:
    words = items(rng, 2, 9)
    reference = NUMBERS[len(words)]
    return Instance(
        {"text": ", ".join(words)},
        reference,
        [Check("one_of", {"options": NUMBERS}), Check("equals", {"text": reference})],
    )


@family(
    "count",
    'How often does the word "{word}" occur here? Answer with a number word: {text}',
    'Count the times "{word}" appears, and answer with one number word: {text}',
    '{text}\n\nHow many times is "{word}" in the list above? Spell the number.',
    'Number of occurrences of "{word}", as a word: {text}',
    'How many of these are "{word}"? One word: {text}',
    'Go through this list and tell me, in one number word, how often you meet "{word}": {text}',
    unseen=True,
)
def count_word(rng: random.Random) -> Instance:
    words = items(rng, 3, 4)
    times = rng.randint(1, 4)
    text = [words[0]] * times + words[1:] + words[1:2]
    rng.shuffle(text)
    reference = NUMBERS[times]
    return Instance(
        {"word": words[0], "text": ", ".join(text)},
        reference,
        [Check("one_of", {"options": NUMBERS}), Check("equals", {"text": reference})],
    )
