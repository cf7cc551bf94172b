"""Tasks on lists and tables: bullets, numbers, lines and rows."""

import random

from stages.tasks.generator import Instance, exactly, family
from stages.tasks.words import items, listed


@family(
    "list",
    """
    Turn this into a bullet list, one item per line, each starting with "- ": {text}
    Make bullet points (use "- ") out of: {text}
    {text} | Format these as bullets with a dash.
    List the following as dash bullets, in the same order: {text}
    Bullet list with "- " please: {text}
    I want a dash and a space before each of these, every one on its own line: {text}
    """,
    trains="bullets_exactly",
)
def bullets(rng: random.Random) -> Instance:
    words = items(rng, 2, 5)
    reference = "\n".join(f"- {word}" for word in words)
    return Instance(
        {"text": rng.choice([", ".join(words), listed(words)])},
        reference,
        exactly(reference, "bullet_count", count=len(words)),
    )


@family(
    "list",
    """
    Number these items, one per line, as "1. ", "2. " and so on: {text}
    Make a numbered list of: {text}
    {text} | Give me that as a numbered list, one item per line.
    Write the following as a list with numbers (1., 2., …): {text}
    Enumerate, each on a line of its own: {text}
    Put 1. before the first, 2. before the second and so forth, each on a new line: {text}
    """,
    trains="numbered_exactly",
)
def numbered_list(rng: random.Random) -> Instance:
    words = items(rng, 2, 5)
    reference = "\n".join(f"{i}. {word}" for i, word in enumerate(words, 1))
    return Instance({"text": ", ".join(words)}, reference, exactly(reference, "line_count", count=len(words)))


@family(
    "list",
    """
    Write each of these on a line of its own, without commas: {text}
    One item per line, please: {text}
    {text} | Put every word above on a new line.
    Break this list into lines: {text}
    Split at the commas, one line each: {text}
    Stack these on top of each other, nothing else on the line: {text}
    """,
    unseen=True,
)
def one_per_line(rng: random.Random) -> Instance:
    words = items(rng, 2, 5)
    reference = "\n".join(words)
    return Instance({"text": ", ".join(words)}, reference, exactly(reference, "line_count", count=len(words)))


@family(
    "list",
    """
    Write these as one phrase with commas and "and" before the last: {text}
    Join with commas and a final "and": {text}
    {text} | Read these out as in a sentence: commas, then "and".
    Make a single phrase of the following, with "and" at the end: {text}
    Say it in one go (a, b and c): {text}
    How would you name all of these in the middle of a sentence? {text}
    """,
)
def join_with_and(rng: random.Random) -> Instance:
    words = items(rng, 3, 5)
    separator = rng.choice([" / ", "; ", " | ", "\n"])
    return Instance({"text": separator.join(words)}, listed(words), exactly(listed(words), "contains", text=" and "))


@family(
    "table",
    """
    Make one row of a Markdown table from: {text}
    Write these as a table row with "|" between and around them: {text}
    {text} | As a row of a Markdown table.
    Put the following into the cells of one table row, between bars ("|"): {text}
    A Markdown table row, please: {text}
    Walls, that is |, on both sides of every one of these, on one line: {text}
    """,
    unseen=True,
)
def table_row(rng: random.Random) -> Instance:
    words = items(rng, 2, 4)
    reference = f"| {' | '.join(words)} |"
    return Instance({"text": ", ".join(words)}, reference, exactly(reference, "starts_with", text="|"))
