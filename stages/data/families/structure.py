"""Machine-readable answers: JSON, CSV."""

import json
import random

from stages.data.tasks import Instance, family
from stages.data.words import CITIES, COLOURS, NAMES, OBJECTS
from stages.records import Check


@family(
    "structure",
    "Return a JSON object with the keys name, city and age for: {text}",
    "Write this as JSON (name, city, age): {text}",
    "{text}\n\nExtract name, city and age as one JSON object.",
    "Answer only with JSON that has the fields name, city and age. {text}",
    "As a JSON object with name, city and age: {text}",
    "My program reads name, city and age from a JSON object. Produce it for this person: {text}",
)
def json_person(rng: random.Random) -> Instance:
    person = {"name": rng.choice(NAMES), "city": rng.choice(CITIES), "age": rng.randint(18, 90)}
    text = rng.choice(
        [
            "{name} lives in {city} and is {age} years old.",
            "{name}, {age}, is from {city}.",
            "At {age}, {name} moved to {city}.",
            "{city} is home to {name}, who is {age}.",
        ]
    ).format(**person)
    return Instance({"text": text}, json.dumps(person), [Check("is_json"), Check("json", {"value": person})])


@family(
    "structure",
    "Write one CSV line with item, colour and price (no spaces after the commas): {text}",
    "Give this as a line of CSV in the order item,colour,price: {text}",
    "{text}\n\nAs CSV: item,colour,price. One line, no header.",
    "Make a CSV row (item,colour,price) from: {text}",
    "CSV, please, columns item, colour, price, without a header: {text}",
    "For my spreadsheet, put item, colour and price on one line with bare commas between them: {text}",
)
def csv_row(rng: random.Random) -> Instance:
    item, colour, price = rng.choice(OBJECTS), rng.choice(COLOURS), rng.randint(2, 99)
    text = rng.choice(
        [
            f"The {colour} {item} costs {price} dollars.",
            f"For {price} dollars you get a {item} in {colour}.",
            f"A {item}, {colour}, at {price} dollars.",
        ]
    )
    reference = f"{item},{colour},{price}"
    return Instance(
        {"text": text}, reference, [Check("comma_count", {"count": 2}), Check("equals", {"text": reference})]
    )
