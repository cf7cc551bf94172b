"""Tasks with several constraints, with a system prompt that sets a constraint, and with a second turn."""

import json
import random

from stages.store.records import Check, Message
from stages.tasks.generator import Instance, exactly, family, one_of
from stages.tasks.words import items, listed, phrase


def first_turn(request: str, answer: str) -> list[Message]:
    """Return the turns of a first request and its answer."""
    return [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]


@family(
    "combined",
    """
    Make a bullet list ("- ") of these, in capital letters: {text}
    Bullets with a dash, every word in upper case: {text}
    {text} | Give these as dash bullets, all caps.
    List in upper case, one per line, each after "- ": {text}
    As an uppercase dash list: {text}
    Two wishes: a dash before each of these on its own line, and big letters throughout: {text}
    """,
    trains="all_capitals bullets_exactly",
)
def loud_bullets(rng: random.Random) -> Instance:
    words = items(rng, 2, 3)
    reference = "\n".join(f"- {word.upper()}" for word in words)
    return Instance(
        {"text": ", ".join(words)}, reference, [Check("upper"), *exactly(reference, "bullet_count", count=len(words))]
    )


@family(
    "combined",
    """
    Sort these from A to Z and make a bullet list ("- ") of them: {text}
    Bullets with a dash, in alphabetical order: {text}
    {text} | Alphabetical order, one per line, each after "- ".
    As a sorted dash list: {text}
    Dash bullets, sorted: {text}
    Two wishes: alphabetical order, and a dash before each on its own line: {text}
    """,
    unseen=True,
)
def sorted_bullets(rng: random.Random) -> Instance:
    words = items(rng, 2, 3)
    reference = "\n".join(f"- {word}" for word in sorted(words))
    return Instance({"text": ", ".join(words)}, reference, exactly(reference, "bullet_count", count=len(words)))


@family(
    "combined",
    """
    Write this in capital letters inside double quotes: {text}
    All caps and in double quotes: {text}
    {text} | Quote the words above, in upper case.
    Shout this in double quotation marks: {text}
    Uppercase, surrounded by ": {text}
    Two wishes: big letters, and a double quote on both sides: {text}
    """,
    unseen=True,
)
def loud_quote(rng: random.Random) -> Instance:
    text = phrase(rng)
    reference = f'"{text.upper()}"'
    return Instance({"text": text}, reference, [Check("upper"), *exactly(reference, "starts_with", text='"')])


@family(
    "system",
    """
    Which of these comes first in the list: {text}?
    Of {text}, which is named first?
    Tell me the first of {text}.
    {text}: which one is the first?
    What is the first of {text}?
    Somebody counts up {text}. With which do they begin?
    """,
    trains="all_capitals all_lowercase",
)
def system_case(rng: random.Random) -> Instance:
    words = items(rng, 2, 4)
    loud = rng.random() < 0.5
    rule = rng.choice(
        ["Answer with one word in {} letters.", "Reply with a single word, in {} letters.", "One word, {} letters."]
    ).format("capital" if loud else "small")
    reference = words[0].upper() if loud else words[0]
    return Instance(
        {"text": ", ".join(words)},
        reference,
        [Check("upper" if loud else "lower"), *exactly(reference, "word_count", count=1)],
        before=[{"role": "system", "content": rule}],
    )


@family(
    "system",
    """
    Repeat after me: {text}
    Say this: {text}
    {text} | Say that again.
    Copy: {text}
    Write down: {text}
    I whisper something to you, pass it on: {text}
    """,
    unseen=True,
)
def system_prefix(rng: random.Random) -> Instance:
    text = phrase(rng)
    start = rng.choice(["Sure:", "Answer:", "OK,", "Result:", "Here:", "Yes,"])
    rule = rng.choice(
        [
            'Begin every answer with "{}".',
            'Always start with "{}".',
            'Your answers open with "{}" and go on from there.',
        ]
    ).format(start)
    reference = f"{start} {text}"
    return Instance(
        {"text": text},
        reference,
        exactly(reference, "starts_with", text=start),
        before=[{"role": "system", "content": rule}],
    )


@family(
    "system",
    """
    Which things do I have? {text}.
    I own {text}.
    {text} | Those are mine.
    My things: {text}
    Here is what I have: {text}.
    If you looked into my bag, you would see {text}.
    """,
    unseen=True,
)
def system_json(rng: random.Random) -> Instance:
    words = items(rng, 2, 3)
    rule = rng.choice(["Answer with a JSON array of the things named.", "Reply only with a JSON list of the things."])
    return Instance(
        {"text": listed(words)},
        json.dumps(words),
        [Check("is_json"), Check("json", {"value": words})],
        before=[{"role": "system", "content": rule}],
    )


@family(
    "follow_up",
    """
    Now write that in capital letters.
    Once more, all in upper case.
    Say it again in capitals only.
    Make that uppercase.
    The same in all caps, please.
    My eyes are bad. Could it have bigger letters, all of it?
    """,
    trains="all_capitals",
)
def then_uppercase(rng: random.Random) -> Instance:
    words = items(rng, 2, 3)
    text = ", ".join(sorted(words))
    before = first_turn(f"Sort from A to Z: {', '.join(words)}", text)
    return Instance({}, text.upper(), exactly(text.upper(), "upper"), before)


@family(
    "follow_up",
    """
    Which of them is the first? One word.
    Only the first one, please.
    And the first of these is?
    Give me just the first.
    Now leave out all but the first.
    Too much. The one at the top is enough.
    """,
    unseen=True,
)
def then_first(rng: random.Random) -> Instance:
    words = items(rng, 3, 4)
    form = rng.choice([", ".join(words), "\n".join(f"- {w}" for w in words), "\n".join(words)])
    before = first_turn(f"Give me this as a list: {listed(words)}", form)
    return Instance({}, words[0], one_of(words, words[0]), before)


@family(
    "follow_up",
    """
    Now with commas on one line.
    The same on a single line, with commas.
    Put that on one line, separated by commas.
    Commas instead of lines, please.
    One line, comma-separated.
    I have room for one line only. Use commas.
    """,
    unseen=True,
)
def then_commas(rng: random.Random) -> Instance:
    words = items(rng, 2, 4)
    before = first_turn(f"Make a bullet list of {listed(words)}", "\n".join(f"- {w}" for w in words))
    reference = ", ".join(words)
    return Instance({}, reference, exactly(reference, "line_count", count=1), before)
