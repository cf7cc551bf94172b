"""Tasks to edit and rewrite a text: words, letter case, punctuation marks, its beginning or its end."""

import random

from stages.tasks.generator import Instance, exact_task, exactly, family
from stages.tasks.words import (
    ADJECTIVES,
    NAMES,
    OBJECTS,
    PLACES,
    THINGS,
    VERBS,
    items,
    phrase,
    sentence,
    texts_of,
)

TEXTS = texts_of(__file__)


@family("edit")
def replace_word(rng: random.Random) -> Instance:
    old, new = rng.sample(OBJECTS, 2)
    name, verb, place = rng.choice(NAMES), rng.choice([*VERBS.values()]), rng.choice(PLACES)
    slots = {
        "name": name,
        "verb": verb,
        "place": place,
        "elsewhere": rng.choice(PLACES),
        "other": rng.choice(NAMES),
    }
    text = rng.choice(TEXTS["replace_word"]).format(old=old, **slots)
    reference = text.replace(f" {old}", f" {new}", 1)
    return Instance(
        {"old": old, "new": new, "text": text}, reference, exactly(reference, "contains", text=new)
    )


@family("edit", unseen=True)
def past_tense(rng: random.Random) -> Instance:
    verb, past = rng.choice(sorted(VERBS.items()))
    subject = rng.choice(
        [f"{rng.choice(NAMES)} and {rng.choice(NAMES)}", "They", "We", "I", "The children"]
    )
    described = f"the {rng.choice(ADJECTIVES)} {rng.choice(OBJECTS)}."
    rest = rng.choice([described, f"the {rng.choice(OBJECTS)} {rng.choice(PLACES)}."])
    return exact_task(f"{subject} {verb} {rest}", f"{subject} {past} {rest}", "contains", text=past)


@family("edit")
def plural(rng: random.Random) -> Instance:
    odd = {
        "mouse": "mice",
        "child": "children",
        "foot": "feet",
        "tooth": "teeth",
        "goose": "geese",
        "man": "men",
    }
    odd |= {
        "cherry": "cherries",
        "peach": "peaches",
        "fox": "foxes",
        "box": "boxes",
        "city": "cities",
        "bus": "buses",
    }
    regular = [w for w in THINGS if w[-1] not in "shxyo" and w not in odd]
    word = rng.choice([rng.choice(regular), rng.choice(regular), rng.choice(sorted(odd))])
    reference = odd.get(word, f"{word}s")
    reference = {"deer": "deer", "knife": "knives", "watch": "watches"}.get(word, reference)
    return exact_task(word, reference, "word_count", count=1)


@family("edit")
def remove_word(rng: random.Random) -> Instance:
    word = rng.choice(ADJECTIVES)
    text = f"The {word} {rng.choice(OBJECTS)} stands {rng.choice(PLACES)}."
    reference = text.replace(f" {word}", "", 1)
    return Instance({"word": word, "text": text}, reference, exactly(reference, "lacks", text=word))


@family("edit", unseen=True)
def spelling(rng: random.Random) -> Instance:
    word = rng.choice([w for w in THINGS if len(w) >= 5])
    place = rng.choice([i for i in range(1, len(word) - 2) if word[i] != word[i + 1]])
    wrong = word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    return exact_task(wrong, word, "word_count", count=1)


@family("ending", unseen=True)
def end_with(rng: random.Random) -> Instance:
    text, ending = sentence(rng) + ".", rng.choice(TEXTS["endings"])
    reference = f"{text} {ending}"
    return Instance(
        {"text": text, "ending": ending}, reference, exactly(reference, "ends_with", text=ending)
    )


@family("ending", unseen=True)
def start_with(rng: random.Random) -> Instance:
    text, start = sentence(rng) + ".", rng.choice(TEXTS["starts"])
    reference = f"{start} {text}"
    return Instance(
        {"text": text, "start": start}, reference, exactly(reference, "starts_with", text=start)
    )


@family("ending")
def twice(rng: random.Random) -> Instance:
    text = phrase(rng)
    return exact_task(text, f"{text}\n{text}", "line_count", count=2)


@family("case", trains="all_capitals")
def uppercase(rng: random.Random) -> Instance:
    text = phrase(rng)
    return exact_task(text, text.upper(), "upper")


@family("case", trains="all_lowercase")
def lowercase(rng: random.Random) -> Instance:
    text = phrase(rng).upper()
    return exact_task(text, text.lower(), "lower")


@family("case", unseen=True)
def title_case(rng: random.Random) -> Instance:
    text = phrase(rng)
    return exact_task(text, " ".join(word.capitalize() for word in text.split()), "capitalised")


@family("punctuation", unseen=True)
def end_mark(rng: random.Random) -> Instance:
    name, mark = rng.choice(
        [("a question mark", "?"), ("an exclamation mark", "!"), ("a full stop", ".")]
    )
    text = sentence(rng)
    return Instance(
        {"text": text, "name": name}, text + mark, exactly(text + mark, "ends_with", text=mark)
    )


@family("punctuation", unseen=True)
def quoted(rng: random.Random) -> Instance:
    text = rng.choice([phrase(rng), sentence(rng) + "."])
    return exact_task(text, f'"{text}"', "starts_with", text='"')


@family("punctuation", unseen=True)
def bracketed(rng: random.Random) -> Instance:
    text = phrase(rng)
    return exact_task(text, f"[{text}]", "starts_with", text="[")


@family("punctuation", unseen=True)
def semicolons(rng: random.Random) -> Instance:
    words = items(rng, 3, 5)
    return exact_task(", ".join(words), "; ".join(words), "contains", text=";")
