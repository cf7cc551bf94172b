"""Words, sentences and wordings of generated instructions, from the YAML file beside the module that uses them."""

import random
from collections.abc import Sequence

from stages.config.installation import read_beside


def words_of(module: str) -> dict[str, list[str]]:
    """Return the lists of words under `words` in the YAML file beside a module."""
    return {name: block.split() for name, block in read_beside(module)["words"].items()}


def texts_of(module: str) -> dict[str, tuple[str, ...]]:
    """Return the lists of texts under `texts` in the YAML file beside a module, which has one text per line."""
    return {name: tuple(block.splitlines()) for name, block in read_beside(module)["texts"].items()}


def patterns_of(module: str) -> dict[str, str]:
    """Return the `patterns` in the YAML file beside a module. A line break inside a pattern does not count."""
    return {
        name: pattern.replace("\n", "") for name, pattern in read_beside(module)["patterns"].items()
    }


def split_wordings(text: str, line_break: str) -> tuple[str, ...]:
    """Return one wording per line of a text, in which " | " stands for a line break."""
    return tuple(line.strip().replace(" | ", line_break) for line in text.strip().splitlines())


WORDS, TEXTS = words_of(__file__), texts_of(__file__)
NAMES, CITIES, RELATIVES, NUMBERS = (
    WORDS[kind] for kind in ("names", "cities", "relatives", "numbers")
)
OBJECTS, ADJECTIVES = WORDS["objects"], WORDS["adjectives"]
NOUNS = {
    kind: WORDS[kind]
    for kind in ("fruit", "animal", "colour", "tool", "furniture", "plant", "job", "clothing")
}
FRUITS, ANIMALS, COLOURS, TOOLS, JOBS = (
    NOUNS[kind] for kind in ("fruit", "animal", "colour", "tool", "job")
)
THINGS = FRUITS + ANIMALS + TOOLS + OBJECTS
# Ambiguous words: a kiwi is also a bird, a teal a duck, an orange a fruit, and some fruits are colours.
ALSO = {"kiwi": "animal", "teal": "animal", "orange": "fruit"}
ALSO |= dict.fromkeys(("cherry", "lemon", "lime", "olive", "peach", "plum"), "colour")
VERBS: dict[str, str] = read_beside(__file__)["verbs"]  # present: past
PLACES, TIMES = TEXTS["places"], TEXTS["times"]
# The slots of SENTENCES, in the order in which they are drawn
SLOTS = {
    "name": NAMES, "other": NAMES, "animal": ANIMALS, "thing": OBJECTS, "place": PLACES, "time": TIMES,
    "adjective": ADJECTIVES, "verb": [*VERBS.values()], "relative": RELATIVES, "city": CITIES, "colour": COLOURS,
    "fruit": FRUITS, "juice": FRUITS, "job": JOBS, "workplace": CITIES,
}  # fmt: skip


def article(noun_phrase: str) -> str:
    """Return a noun phrase with its article: `an old book`, `a new book`."""
    return f"{'an' if noun_phrase[0] in 'aeiou' else 'a'} {noun_phrase}"


def fill(rng: random.Random, texts: Sequence[str], **slots: str) -> str:
    """Return one of the texts with its slots filled. `{a_item}` is the slot `item` with its article."""
    return rng.choice(texts).format(
        **slots, **{f"a_{name}": article(value) for name, value in slots.items()}
    )


def items(rng: random.Random, low: int, high: int) -> list[str]:
    """Return different nouns of one kind, in random order."""
    return rng.sample(NOUNS[rng.choice(sorted(NOUNS))], rng.randint(low, high))


def told_apart(*kinds: str) -> dict[str, list[str]]:
    """Return the nouns of each kind that belong to no other of these kinds."""
    return {kind: [word for word in NOUNS[kind] if ALSO.get(word) not in kinds] for kind in kinds}


def spell(number: int) -> str:
    """Return a number from 0 to 99 in words: `twenty-four`."""
    if number < len(NUMBERS):
        return NUMBERS[number]
    tens, ones = divmod(number, 10)
    return WORDS["tens"][tens - 2] + (f"-{NUMBERS[ones]}" if ones else "")


def listed(words: list[str]) -> str:
    """Return words as a list in prose: `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def phrase(rng: random.Random) -> str:
    """Return two to four words in lower case."""
    thing = f"{rng.choice(ADJECTIVES)} {rng.choice(OBJECTS)}"
    return rng.choice([thing, f"the {thing}", f"{thing} and {rng.choice(OBJECTS)}", article(thing)])


def sentence(rng: random.Random) -> str:
    """Return a plain sentence of four to ten words without its full stop, from one of a dozen patterns."""
    return fill(
        rng, TEXTS["sentences"], **{slot: rng.choice(words) for slot, words in SLOTS.items()}
    )
