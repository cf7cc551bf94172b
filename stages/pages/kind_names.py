"""Kinds of task and areas of constraint in words."""

WORDS = {
    # short tasks
    "arithmetic": "arithmetic",
    "case": "upper and lower case",
    "classify": "choosing a label",
    "combined": "two tasks in one",
    "context": "answering from a text",
    "count": "counting",
    "edit": "editing words",
    "ending": "fixed endings",
    "extract": "finding words in a text",
    "follow_up": "a second request",
    "list": "making lists",
    "order": "sorting",
    "pick": "picking one of several",
    "punctuation": "punctuation",
    "structure": "JSON, CSV and forms",
    "system": "instructions of a system message",
    "table": "reading a table",
    # areas of constraints on open requests
    "attachments": "something added to the answer",
    "emphasis": "emphasis",
    "ends": "how an answer begins or ends",
    "formats": "a format for data",
    "keywords": "words to use or to avoid",
    "layout": "paragraphs and headings",
    "lengths": "a length",
    "letters": "letters to use or to avoid",
    "lists": "lists",
    "voice": "person, tone and manner",
    "several": "several constraints at once",
    "request": "no constraint",
}


def in_words(name: str) -> str:
    """What a kind, area or task is called on a page."""
    return WORDS.get(name, name.replace("_", " "))
