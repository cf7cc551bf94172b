"""Tasks to extract words, names, numbers and addresses from a text, and to answer from a text or with "not stated"."""

import random

from stages.tasks.generator import Instance, exact_task, family, one_of
from stages.tasks.words import (
    ANIMALS,
    CITIES,
    COLOURS,
    NAMES,
    OBJECTS,
    TOOLS,
    fill,
    sentence,
    texts_of,
    told_apart,
)

NOT_STATED = "not stated"
TEXTS = texts_of(__file__)


@family("extract")
def extract_city(rng: random.Random) -> Instance:
    name = rng.choice(NAMES)
    city = rng.choice(CITIES)
    other = rng.choice(NAMES)
    item = rng.choice(OBJECTS)
    text = fill(rng, TEXTS["extract_city"], name=name, other=other, city=city, item=item)
    return exact_task(text, city, "word_count", count=1)


@family("extract", unseen=True)
def extract_name(rng: random.Random) -> Instance:
    name = rng.choice(NAMES)
    city = rng.choice(CITIES)
    item = rng.choice(OBJECTS)
    colour = rng.choice(COLOURS)
    text = fill(rng, TEXTS["extract_name"], name=name, city=city, item=item, colour=colour)
    return exact_task(text, name, "word_count", count=1)


@family("extract", unseen=True)
def extract_number(rng: random.Random) -> Instance:
    name, item, number = rng.choice(NAMES), rng.choice(OBJECTS), str(rng.randint(2, 99))
    text = fill(rng, TEXTS["extract_number"], name=name, item=item, number=number)
    return exact_task(text, number, "word_count", count=1)


@family("extract", unseen=True)
def extract_email(rng: random.Random) -> Instance:
    name, item = rng.choice(NAMES), rng.choice(OBJECTS)
    address = f"{name.lower()}@{rng.choice(['mail', 'post', 'work', 'home'])}.{rng.choice(['com', 'org', 'net'])}"
    text = fill(rng, TEXTS["extract_email"], name=name, item=item, address=address)
    return exact_task(text, address, "word_count", count=1)


@family("extract")
def extract_animals(rng: random.Random) -> Instance:
    animals = rng.sample(ANIMALS, rng.randint(1, 2))
    words = animals + rng.sample(told_apart("fruit", "animal")["fruit"], 1) + rng.sample(TOOLS, 1)
    rng.shuffle(words)
    reference = ", ".join(word for word in words if word in animals)
    return exact_task(", ".join(words), reference, "same_words", words=animals)


@family("extract", unseen=True)
def last_word(rng: random.Random) -> Instance:
    text = sentence(rng)
    return exact_task(f"{text}.", text.split()[-1], "word_count", count=1)


@family("extract", unseen=True)
def first_word(rng: random.Random) -> Instance:
    text = sentence(rng)
    return exact_task(f"{text}.", text.split()[0], "word_count", count=1)


def answer_or_none(text: str, question: str, answers: list[str], index: int) -> Instance:
    """Return a question whose answer is the one at `index`, or is not stated if there is none."""
    options = [*answers, NOT_STATED]
    return Instance(
        {"text": text, "question": question}, options[index], one_of(options, options[index])
    )


@family("context")
def who_did_it(rng: random.Random) -> Instance:
    people, things = rng.sample(NAMES, 2), rng.sample(OBJECTS, 3)
    verbs = rng.sample(["bought", "found", "sold", "lost", "painted", "hid"], 2)
    text = f"{people[0]} {verbs[0]} the {things[0]}. {people[1]} {verbs[1]} the {things[1]}."
    index = rng.choice([0, 1, 2])
    question = f"Who {rng.choice(verbs) if index == 2 else verbs[index]} the {things[index]}?"
    return answer_or_none(text, question, people, index)


@family("context")
def where_from(rng: random.Random) -> Instance:
    people, cities = rng.sample(NAMES, 3), rng.sample(CITIES, 2)
    texts = [
        (f"{people[0]} lives in {cities[0]}. {people[1]} lives in {cities[1]}.", "live"),
        (
            f"{people[0]} comes from {cities[0]}, but {people[1]} comes from {cities[1]}.",
            "come from",
        ),
        (f"{cities[0]} is the home of {people[0]}, and {cities[1]} that of {people[1]}.", "live"),
    ]
    (text, asks), index = rng.choice(texts), rng.choice([0, 1, 2])
    return answer_or_none(text, f"Where does {people[index]} {asks}?", cities, index)


@family("context", unseen=True)
def which_colour(rng: random.Random) -> Instance:
    things, colours = rng.sample(OBJECTS, 3), rng.sample(COLOURS, 2)
    text = f"The {things[0]} is {colours[0]}. The {things[1]} is {colours[1]}."
    index = rng.choice([0, 1, 2])
    return answer_or_none(text, f"What colour is the {things[index]}?", colours, index)


@family("context", unseen=True)
def is_it_true(rng: random.Random) -> Instance:
    things, colours = rng.sample(OBJECTS, 2), rng.sample(COLOURS, 2)
    text = f"The {things[0]} is {colours[0]}. The {things[1]} is {colours[1]}."
    about = rng.randrange(2)
    reference = rng.choice(["yes", "no"])
    colour = colours[about] if reference == "yes" else colours[1 - about]
    claim = f"The {things[about]} is {colour}."
    return Instance({"text": text, "question": claim}, reference, one_of(["yes", "no"], reference))
