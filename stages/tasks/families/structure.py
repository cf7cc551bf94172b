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


@family(
    "structure",
    """
    Return a JSON object with the keys name, city and age for: {text}
    Write this as JSON (name, city, age): {text}
    {text} | Extract name, city and age as one JSON object.
    Answer only with JSON that has the fields name, city and age. {text}
    As a JSON object with name, city and age: {text}
    My program reads name, city and age from a JSON object. Produce it for this person: {text}
    """,
    trains="json_object",
)
def json_person(rng: random.Random) -> Instance:
    facts, text = person(rng)
    return Instance({"text": text}, json.dumps(facts), [Check("is_json"), Check("json", {"value": facts})])


@family(
    "structure",
    """
    Write these as a JSON array of strings: {text}
    Make a JSON list of: {text}
    {text} | As a JSON array, please.
    Answer only with a JSON array that holds: {text}
    JSON, one string per item: {text}
    My program wants a list in JSON. Give it these: {text}
    """,
    unseen=True,
)
def json_list(rng: random.Random) -> Instance:
    words = items(rng, 2, 4)
    return Instance({"text": ", ".join(words)}, json.dumps(words), [Check("is_json"), Check("json", {"value": words})])


@family(
    "structure",
    """
    Write one CSV line with item, colour and price (no spaces after the commas): {text}
    Give this as a line of CSV in the order item,colour,price: {text}
    {text} | As CSV: item,colour,price. One line, no header.
    Make a CSV row (item,colour,price) from: {text}
    CSV, please, columns item, colour, price, without a header: {text}
    For my spreadsheet, put item, colour and price on one line with bare commas between them: {text}
    """,
)
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


@family(
    "structure",
    """
    Write this as two lines, "Name: …" and "City: …": {text}
    Give me Name: and City:, a line each, for: {text}
    {text} | Fill in: Name: and City:, one per line.
    Two lines, Name: first and City: second, from: {text}
    Put the name after "Name: " and, on the next line, the city after "City: ". | {text}
    A form asks for Name: and below it City:. Fill it in for this person: {text}
    """,
    trains="key_value_lines",
)
def form(rng: random.Random) -> Instance:
    facts, text = person(rng)
    reference = f"Name: {facts['name']}\nCity: {facts['city']}"
    return Instance({"text": text}, reference, exactly(reference, "line_count", count=2))
