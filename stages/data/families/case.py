"""Letter case."""

import random

from stages.data.tasks import Instance, family
from stages.data.words import sentence
from stages.records import Check


@family(
    "case",
    "Rewrite this sentence in capital letters: {text}",
    "Put the following into all caps.\n\n{text}",
    "Please write in upper case only: {text}",
    "{text}\n\nReturn the sentence above with every letter capitalised.",
    'Convert to uppercase: "{text}"',
    "I need this shouted, so make all its letters big: {text}",
)
def uppercase(rng: random.Random) -> Instance:
    text = sentence(rng) + "."
    return Instance({"text": text}, text.upper(), [Check("upper"), Check("equals", {"text": text.upper()})])


@family(
    "case",
    "Rewrite this in small letters: {text}",
    "Make the following all lower case.\n\n{text}",
    "{text}\n\nGive me that line without any capital letters.",
    'Convert to lowercase: "{text}"',
    "Please turn this into lower-case text: {text}",
    "Stop shouting. Say the same thing in small letters only: {text}",
)
def lowercase(rng: random.Random) -> Instance:
    text = sentence(rng).upper() + "."
    return Instance({"text": text}, text.lower(), [Check("lower"), Check("equals", {"text": text.lower()})])


@family(
    "case",
    "Write this as a title, with a capital at the start of every word: {text}",
    "Capitalise the first letter of each word: {text}",
    "{text}\n\nTurn the line above into title case.",
    "Give every word in this line an initial capital: {text}",
    "Title case, please: {text}",
    "This will be a headline. Begin each of its words with a big letter: {text}",
    unseen=True,
)
def title_case(rng: random.Random) -> Instance:
    text = sentence(rng).lower()
    title = " ".join(word.capitalize() for word in text.split())
    return Instance({"text": text}, title, [Check("capitalised"), Check("equals", {"text": title})])
