"""Tasks on letter case, quotation marks, brackets and separators."""

import random

from stages.tasks.generator import Instance, exactly, family
from stages.tasks.words import items, phrase, sentence


@family(
    "case",
    """
    Rewrite in capital letters: {text}
    Put the following into all caps. | {text}
    Please write in upper case only: {text}
    {text} | Return the words above with every letter capitalised.
    Convert to uppercase: "{text}"
    I need this shouted, so make all its letters big: {text}
    """,
    trains="all_capitals",
)
def uppercase(rng: random.Random) -> Instance:
    text = phrase(rng)
    return Instance({"text": text}, text.upper(), exactly(text.upper(), "upper"))


@family(
    "case",
    """
    Rewrite in small letters: {text}
    Make the following all lower case. | {text}
    {text} | Give me that without any capital letters.
    Convert to lowercase: "{text}"
    Please turn this into lower-case text: {text}
    Stop shouting. Say the same thing in small letters only: {text}
    """,
    trains="all_lowercase",
)
def lowercase(rng: random.Random) -> Instance:
    text = phrase(rng).upper()
    return Instance({"text": text}, text.lower(), exactly(text.lower(), "lower"))


@family(
    "case",
    """
    Write this as a title, with a capital at the start of every word: {text}
    Capitalise the first letter of each word: {text}
    {text} | Turn the line above into title case, small words too.
    Give every word in this line an initial capital: {text}
    Title case for every word, please: {text}
    This will be a headline. Begin each of its words with a big letter: {text}
    """,
    unseen=True,
)
def title_case(rng: random.Random) -> Instance:
    text = phrase(rng)
    title = " ".join(word.capitalize() for word in text.split())
    return Instance({"text": text}, title, exactly(title, "capitalised"))


@family(
    "punctuation",
    """
    End this sentence with {name}: {text}
    Add {name} at the end of: {text}
    {text} | Copy the line above and close it with {name}.
    Finish the following with {name}. | {text}
    Punctuate with {name}: {text}
    The last sign is missing here; it should be {name}: {text}
    """,
    unseen=True,
)
def end_mark(rng: random.Random) -> Instance:
    name, mark = rng.choice([("a question mark", "?"), ("an exclamation mark", "!"), ("a full stop", ".")])
    text = sentence(rng)
    return Instance({"text": text, "name": name}, text + mark, exactly(text + mark, "ends_with", text=mark))


@family(
    "punctuation",
    """
    Put double quotes around: {text}
    Write this in double quotation marks: {text}
    {text} | Repeat that line inside double quotes.
    Quote the following. | {text}
    Surround with " on both sides: {text}
    Somebody said this. Show it as direct speech, nothing but the words in double quotes: {text}
    """,
    unseen=True,
)
def quoted(rng: random.Random) -> Instance:
    text = rng.choice([phrase(rng), sentence(rng) + "."])
    return Instance({"text": text}, f'"{text}"', exactly(f'"{text}"', "starts_with", text='"'))


@family(
    "punctuation",
    """
    Put square brackets around: {text}
    Write this in square brackets: {text}
    {text} | Repeat that line inside square brackets.
    Bracket the following with [ and ]. | {text}
    Surround with square brackets: {text}
    In my notes, asides stand between [ and ]. Make this an aside: {text}
    """,
    unseen=True,
)
def bracketed(rng: random.Random) -> Instance:
    text = phrase(rng)
    return Instance({"text": text}, f"[{text}]", exactly(f"[{text}]", "starts_with", text="["))


@family(
    "punctuation",
    """
    Separate these with semicolons instead of commas: {text}
    Replace the commas by semicolons: {text}
    {text} | Write the list above with ; where there is a comma.
    Use semicolons between the items: {text}
    Change , to ; in: {text}
    My spreadsheet splits at semicolons. Prepare this line for it: {text}
    """,
    unseen=True,
)
def semicolons(rng: random.Random) -> Instance:
    words = items(rng, 3, 5)
    reference = "; ".join(words)
    return Instance({"text": ", ".join(words)}, reference, exactly(reference, "contains", text=";"))
