"""Tasks with machine-readable answers: JSON, CSV, keys with values."""

import json
import random

from stages.store.records import Check
from stages.tasks.generator import Instance, exactly, family
from stages.tasks.words import CITIES, COLOURS, NAMES, OBJECTS, article, items


def person(rng: random.Random) -> tuple[dict[str, str | int], str]:
    """Return somebody's name, city and age, and a sentence that states them."""
    facts: dict[str, str | int] = {"name": rng.choice(NAMES), "city": rng.choice(CITIES), "age": rng.randint(18, 90)}
    template = rng.choice(
        [
            "{name} lives in {city} and is {age} years old.",
            "{name}, {age}, is from {city}.",
            "At {age}, {name} moved to {city}.",
            "{city} is home to {name}, who is {age}.",
            "Meet {name} from {city}, aged {age}.",
        ]
    )
    return facts, template.format(**facts)


@family("structure", trains="json_object")
def json_person(rng: random.Random) -> Instance:
    facts, text = person(rng)
    return Instance({"text": text}, json.dumps(facts), [Check("is_json"), Check("json", {"value": facts})])


@family("structure", unseen=True)
def json_list(rng: random.Random) -> Instance:
    words = items(rng, 2, 4)
    return Instance({"text": ", ".join(words)}, json.dumps(words), [Check("is_json"), Check("json", {"value": words})])


@family("structure")
def csv_row(rng: random.Random) -> Instance:
    item, colour, price = rng.choice(OBJECTS), rng.choice(COLOURS), rng.randint(2, 99)
    text = rng.choice(
        [
            f"The {colour} {item} costs {price} dollars.",
            f"For {price} dollars you get {article(item)} in {colour}.",
            f"{article(item).capitalize()}, {colour}, at {price} dollars.",
            f"I paid {price} dollars for {article(f'{colour} {item}')}.",
        ]
    )
    reference = f"{item},{colour},{price}"
    return Instance({"text": text}, reference, exactly(reference, "comma_count", count=2))


@family("structure", trains="key_value_lines")
def form(rng: random.Random) -> Instance:
    facts, text = person(rng)
    reference = f"Name: {facts['name']}\nCity: {facts['city']}"
    return Instance({"text": text}, reference, exactly(reference, "line_count", count=2))
