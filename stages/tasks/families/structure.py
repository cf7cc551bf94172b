"""Tasks with structured answers: JSON, CSV, keys with values, lists and tables."""

import json
import random

from stages.tasks.generator import Instance, as_json, exact_task, family
from stages.tasks.words import (
    CITIES,
    COLOURS,
    NAMES,
    OBJECTS,
    article,
    fill,
    items,
    listed,
    texts_of,
)

TEXTS = texts_of(__file__)


def person(rng: random.Random) -> tuple[dict[str, str | int], str]:
    """Return somebody's name, city and age, and a sentence that states them."""
    facts: dict[str, str | int] = {
        "name": rng.choice(NAMES),
        "city": rng.choice(CITIES),
        "age": rng.randint(18, 90),
    }
    return facts, rng.choice(TEXTS["person"]).format(**facts)


@family("structure", trains="json_object")
def json_person(rng: random.Random) -> Instance:
    facts, text = person(rng)
    return Instance({"text": text}, json.dumps(facts), as_json(facts))


@family("structure", unseen=True)
def json_list(rng: random.Random) -> Instance:
    words = items(rng, 2, 4)
    return Instance({"text": ", ".join(words)}, json.dumps(words), as_json(words))


@family("structure")
def csv_row(rng: random.Random) -> Instance:
    item, colour, price = rng.choice(OBJECTS), rng.choice(COLOURS), rng.randint(2, 99)
    text = fill(
        rng,
        TEXTS["csv_row"],
        item=item,
        start=article(item).capitalize(),
        colour=colour,
        price=str(price),
    )
    return exact_task(text, f"{item},{colour},{price}", "comma_count", count=2)


@family("structure", trains="key_value_lines")
def form(rng: random.Random) -> Instance:
    facts, text = person(rng)
    return exact_task(text, f"Name: {facts['name']}\nCity: {facts['city']}", "line_count", count=2)


@family("list", trains="bullets_exactly")
def bullets(rng: random.Random) -> Instance:
    words = items(rng, 2, 5)
    reference = "\n".join(f"- {word}" for word in words)
    text = rng.choice([", ".join(words), listed(words)])
    return exact_task(text, reference, "bullet_count", count=len(words))


@family("list", trains="numbered_exactly")
def numbered_list(rng: random.Random) -> Instance:
    words = items(rng, 2, 5)
    reference = "\n".join(f"{i}. {word}" for i, word in enumerate(words, 1))
    return exact_task(", ".join(words), reference, "line_count", count=len(words))


@family("list", unseen=True)
def one_per_line(rng: random.Random) -> Instance:
    words = items(rng, 2, 5)
    return exact_task(", ".join(words), "\n".join(words), "line_count", count=len(words))


@family("list")
def join_with_and(rng: random.Random) -> Instance:
    words = items(rng, 3, 5)
    separator = rng.choice([" / ", "; ", " | ", "\n"])
    return exact_task(separator.join(words), listed(words), "contains", text=" and ")


@family("table", unseen=True)
def table_row(rng: random.Random) -> Instance:
    words = items(rng, 2, 4)
    return exact_task(", ".join(words), f"| {' | '.join(words)} |", "starts_with", text="|")
