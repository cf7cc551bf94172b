"""Tasks on lists and tables: bullets, numbers, lines and rows."""

import random

from stages.tasks.generator import Instance, exactly, family
from stages.tasks.words import items, listed


@family("list", trains="bullets_exactly")
def bullets(rng: random.Random) -> Instance:
    words = items(rng, 2, 5)
    reference = "\n".join(f"- {word}" for word in words)
    return Instance(
        {"text": rng.choice([", ".join(words), listed(words)])},
        reference,
        exactly(reference, "bullet_count", count=len(words)),
    )


@family("list", trains="numbered_exactly")
def numbered_list(rng: random.Random) -> Instance:
    words = items(rng, 2, 5)
    reference = "\n".join(f"{i}. {word}" for i, word in enumerate(words, 1))
    return Instance({"text": ", ".join(words)}, reference, exactly(reference, "line_count", count=len(words)))


@family("list", unseen=True)
def one_per_line(rng: random.Random) -> Instance:
    words = items(rng, 2, 5)
    reference = "\n".join(words)
    return Instance({"text": ", ".join(words)}, reference, exactly(reference, "line_count", count=len(words)))


@family("list")
def join_with_and(rng: random.Random) -> Instance:
    words = items(rng, 3, 5)
    separator = rng.choice([" / ", "; ", " | ", "\n"])
    return Instance({"text": separator.join(words)}, listed(words), exactly(listed(words), "contains", text=" and "))


@family("table", unseen=True)
def table_row(rng: random.Random) -> Instance:
    words = items(rng, 2, 4)
    reference = f"| {' | '.join(words)} |"
    return Instance({"text": ", ".join(words)}, reference, exactly(reference, "starts_with", text="|"))
