"""Tasks with several constraints, with a system prompt that sets a constraint, and with a second turn."""

import json
import random

from stages.store.records import Check, Message
from stages.tasks.generator import Instance, as_json, exact_task, exactly, family, one_of
from stages.tasks.words import fill, items, listed, phrase, texts_of

TEXTS = texts_of(__file__)


def first_turn(request: str, answer: str) -> list[Message]:
    """Return the turns of a first request and its answer."""
    return [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]


def system(rule: str) -> list[Message]:
    """Return the turn of a system prompt."""
    return [{"role": "system", "content": rule}]


@family("combined", trains="all_capitals bullets_exactly")
def loud_bullets(rng: random.Random) -> Instance:
    words = items(rng, 2, 3)
    reference = "\n".join(f"- {word.upper()}" for word in words)
    checks = [Check("upper"), *exactly(reference, "bullet_count", count=len(words))]
    return Instance({"text": ", ".join(words)}, reference, checks)


@family("combined", unseen=True)
def sorted_bullets(rng: random.Random) -> Instance:
    words = items(rng, 2, 3)
    reference = "\n".join(f"- {word}" for word in sorted(words))
    return exact_task(", ".join(words), reference, "bullet_count", count=len(words))


@family("combined", unseen=True)
def loud_quote(rng: random.Random) -> Instance:
    text = phrase(rng)
    reference = f'"{text.upper()}"'
    return Instance(
        {"text": text}, reference, [Check("upper"), *exactly(reference, "starts_with", text='"')]
    )


@family("system", trains="all_capitals all_lowercase")
def system_case(rng: random.Random) -> Instance:
    words = items(rng, 2, 4)
    loud = rng.random() < 0.5
    rule = fill(rng, TEXTS["system_case"], size="capital" if loud else "small")
    reference = words[0].upper() if loud else words[0]
    checks = [Check("upper" if loud else "lower"), *exactly(reference, "word_count", count=1)]
    return Instance({"text": ", ".join(words)}, reference, checks, system(rule))


@family("system", unseen=True)
def system_prefix(rng: random.Random) -> Instance:
    text = phrase(rng)
    start = rng.choice(["Sure:", "Answer:", "OK,", "Result:", "Here:", "Yes,"])
    rule = fill(rng, TEXTS["system_prefix"], start=start)
    reference = f"{start} {text}"
    return Instance(
        {"text": text}, reference, exactly(reference, "starts_with", text=start), system(rule)
    )


@family("system", unseen=True)
def system_json(rng: random.Random) -> Instance:
    words = items(rng, 2, 3)
    rule = rng.choice(TEXTS["system_json"])
    return Instance({"text": listed(words)}, json.dumps(words), as_json(words), system(rule))


@family("follow_up", trains="all_capitals")
def then_uppercase(rng: random.Random) -> Instance:
    words = items(rng, 2, 3)
    text = ", ".join(sorted(words))
    before = first_turn(f"Sort from A to Z: {', '.join(words)}", text)
    return Instance({}, text.upper(), exactly(text.upper(), "upper"), before)


@family("follow_up", unseen=True)
def then_first(rng: random.Random) -> Instance:
    words = items(rng, 3, 4)
    form = rng.choice([", ".join(words), "\n".join(f"- {w}" for w in words), "\n".join(words)])
    before = first_turn(f"Give me this as a list: {listed(words)}", form)
    return Instance({}, words[0], one_of(words, words[0]), before)


@family("follow_up", unseen=True)
def then_commas(rng: random.Random) -> Instance:
    words = items(rng, 2, 4)
    before = first_turn(
        f"Make a bullet list of {listed(words)}", "\n".join(f"- {w}" for w in words)
    )
    reference = ", ".join(words)
    return Instance({}, reference, exactly(reference, "line_count", count=1), before)
