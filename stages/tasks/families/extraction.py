"""Tasks to extract words, names, numbers and addresses from a text."""

import random

from stages.tasks.generator import Instance, exactly, family
from stages.tasks.words import ANIMALS, CITIES, COLOURS, NAMES, OBJECTS, TOOLS, article, sentence, told_apart


@family("extract")
def extract_city(rng: random.Random) -> Instance:
    name, city, other, item = rng.choice(NAMES), rng.choice(CITIES), rng.choice(NAMES), rng.choice(OBJECTS)
    text = rng.choice(
        [
            f"{name} sent {article(item)} to {other}, who lives in {city}.",
            f"After three years in {city}, {name} sold the {item}.",
            f"The {item} that {name} found came from {city}.",
            f"{name} and {other} met at a fair in {city}, where {name} bought {article(item)}.",
            f"The train to {city} was late, so {name} read a book about the {item}.",
        ]
    )
    return Instance({"text": text}, city, exactly(city, "word_count", count=1))


@family("extract", unseen=True)
def extract_name(rng: random.Random) -> Instance:
    name, city, item, colour = rng.choice(NAMES), rng.choice(CITIES), rng.choice(OBJECTS), rng.choice(COLOURS)
    text = rng.choice(
        [
            f"In {city}, {name} bought the {colour} {item}.",
            f"The {colour} {item} belongs to {name}.",
            f"Nobody but {name} knows the way to {city}.",
            f"It was {name} who brought the {item} from {city}.",
            f"On Monday {name} lost {article(item)}.",
        ]
    )
    return Instance({"text": text}, name, exactly(name, "word_count", count=1))


@family("extract", unseen=True)
def extract_number(rng: random.Random) -> Instance:
    name, item, number = rng.choice(NAMES), rng.choice(OBJECTS), str(rng.randint(2, 99))
    text = rng.choice(
        [
            f"The {item} costs {number} dollars.",
            f"{name} paid {number} dollars for {article(item)}.",
            f"For {number} dollars {name} sold the {item}.",
            f"Nobody gives more than {number} dollars for {article(item)}.",
        ]
    )
    return Instance({"text": text}, number, exactly(number, "word_count", count=1))


@family("extract", unseen=True)
def extract_email(rng: random.Random) -> Instance:
    name, item = rng.choice(NAMES), rng.choice(OBJECTS)
    address = f"{name.lower()}@{rng.choice(['mail', 'post', 'work', 'home'])}.{rng.choice(['com', 'org', 'net'])}"
    text = rng.choice(
        [
            f"To ask about the {item}, write to {address} before Friday.",
            f"My new address is {address}, says {name}.",
            f"Please send the {item} and tell {address} when it left.",
            f"{name} ({address}) has lost {article(item)}.",
        ]
    )
    return Instance({"text": text}, address, exactly(address, "word_count", count=1))


@family("extract")
def extract_animals(rng: random.Random) -> Instance:
    animals = rng.sample(ANIMALS, rng.randint(1, 2))
    words = animals + rng.sample(told_apart("fruit", "animal")["fruit"], 1) + rng.sample(TOOLS, 1)
    rng.shuffle(words)
    reference = ", ".join(word for word in words if word in animals)
    return Instance({"text": ", ".join(words)}, reference, exactly(reference, "same_words", words=animals))


@family("extract", unseen=True)
def last_word(rng: random.Random) -> Instance:
    text = sentence(rng)
    word = text.split()[-1]
    return Instance({"text": text + "."}, word, exactly(word, "word_count", count=1))


@family("extract", unseen=True)
def first_word(rng: random.Random) -> Instance:
    text = sentence(rng)
    word = text.split()[0]
    return Instance({"text": text + "."}, word, exactly(word, "word_count", count=1))
