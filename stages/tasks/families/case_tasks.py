"""Tasks on letter case, quotation marks, brackets and separators."""

import random

from stages.tasks.generator import Instance, exactly, family
from stages.tasks.words import items, phrase, sentence


@family("case", trains="all_capitals")
def uppercase(rng: random.Random) -> Instance:
    text = phrase(rng)
    return Instance({"text": text}, text.upper(), exactly(text.upper(), "upper"))


@family("case", trains="all_lowercase")
def lowercase(rng: random.Random) -> Instance:
    text = phrase(rng).upper()
    return Instance({"text": text}, text.lower(), exactly(text.lower(), "lower"))


@family("case", unseen=True)
def title_case(rng: random.Random) -> Instance:
    text = phrase(rng)
    title = " ".join(word.capitalize() for word in text.split())
    return Instance({"text": text}, title, exactly(title, "capitalised"))


@family("punctuation", unseen=True)
def end_mark(rng: random.Random) -> Instance:
    name, mark = rng.choice([("a question mark", "?"), ("an exclamation mark", "!"), ("a full stop", ".")])
    text = sentence(rng)
    return Instance({"text": text, "name": name}, text + mark, exactly(text + mark, "ends_with", text=mark))


@family("punctuation", unseen=True)
def quoted(rng: random.Random) -> Instance:
    text = rng.choice([phrase(rng), sentence(rng) + "."])
    return Instance({"text": text}, f'"{text}"', exactly(f'"{text}"', "starts_with", text='"'))


@family("punctuation", unseen=True)
def bracketed(rng: random.Random) -> Instance:
    text = phrase(rng)
    return Instance({"text": text}, f"[{text}]", exactly(f"[{text}]", "starts_with", text="["))


@family("punctuation", unseen=True)
def semicolons(rng: random.Random) -> Instance:
    words = items(rng, 3, 5)
    reference = "; ".join(words)
    return Instance({"text": ", ".join(words)}, reference, exactly(reference, "contains", text=";"))
