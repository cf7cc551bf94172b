"""Tasks to classify a text with a label word."""

import random

from stages.tasks.generator import Instance, family, one_of
from stages.tasks.words import CITIES, COLOURS, NAMES, OBJECTS, fill, texts_of, told_apart

TEXTS = texts_of(__file__)


def kind_of_noun(rng: random.Random, kinds: list[str], *contexts: str) -> Instance:
    """Return the task to name the kind of a noun, which is alone or in one of the contexts."""
    kind = rng.choice(kinds)
    word = rng.choice(told_apart(*kinds)[kind])
    text = rng.choice(
        [word, word.capitalize(), f"the {word}", f"the old {word}", f"my {word}", *contexts]
    )
    return Instance({"text": text.format(word)}, kind, one_of(kinds, kind))


@family("classify")
def classify_noun(rng: random.Random) -> Instance:
    return kind_of_noun(rng, ["fruit", "animal", "tool"], "a box with the {}")


@family("classify", unseen=True)
def classify_other(rng: random.Random) -> Instance:
    return kind_of_noun(rng, ["plant", "furniture", "job"])


@family("classify", unseen=True)
def odd_one_out(rng: random.Random) -> Instance:
    kinds = rng.sample(["fruit", "animal", "tool", "colour"], 2)
    nouns = told_apart(*kinds)
    words, odd = rng.sample(nouns[kinds[0]], 3), rng.choice(nouns[kinds[1]])
    text = [*words, odd]
    rng.shuffle(text)
    return Instance({"text": ", ".join(text)}, odd, one_of(text, odd))


@family("classify")
def sentiment(rng: random.Random) -> Instance:
    labels = ["negative", "positive"]
    label = rng.choice(labels)
    text = rng.choice(TEXTS[label]).format(item=rng.choice(OBJECTS))
    if rng.random() < 0.5:
        text = f"{text} It is {rng.choice(COLOURS)}."
    return Instance({"text": text}, label, one_of(labels, label))


@family("classify")
def topic(rng: random.Random) -> Instance:
    labels = ["food", "sport", "weather"]
    label = rng.choice(labels)
    text = rng.choice(TEXTS[label]).format(a=rng.randint(2, 60), b=rng.randint(1, 9))
    return Instance({"text": text}, label, one_of(labels, label))


@family("classify", unseen=True)
def question_or_statement(rng: random.Random) -> Instance:
    name, item, city = rng.choice(NAMES), rng.choice(OBJECTS), rng.choice(CITIES)
    label = rng.choice(["question", "statement"])
    text = fill(rng, TEXTS[label], name=name, item=item, city=city)
    return Instance({"text": text}, label, one_of(["question", "statement"], label))
