"""Tasks to edit and rewrite a text, or to begin or end it in a given way."""

import random

from stages.tasks.generator import Instance, exactly, family
from stages.tasks.words import ADJECTIVES, ANIMALS, FRUITS, NAMES, OBJECTS, PLACES, TOOLS, VERBS, phrase, sentence


@family("edit")
def replace_word(rng: random.Random) -> Instance:
    old, new = rng.sample(OBJECTS, 2)
    text = rng.choice(
        [
            f"{rng.choice(NAMES)} {rng.choice(list(VERBS.values()))} the {old} {rng.choice(PLACES)}.",
            f"Where is my {old}?",
            f"The {old} stands {rng.choice(PLACES)}.",
            f"Nobody has seen the {old} today.",
            f"{rng.choice(NAMES)} would like a new {old}.",
        ]
    )
    reference = text.replace(f" {old}", f" {new}", 1)
    return Instance({"old": old, "new": new, "text": text}, reference, exactly(reference, "contains", text=new))


@family("edit", unseen=True)
def past_tense(rng: random.Random) -> Instance:
    verb, past = rng.choice(sorted(VERBS.items()))
    subject = rng.choice([f"{rng.choice(NAMES)} and {rng.choice(NAMES)}", "They", "We", "I", "The children"])
    rest = rng.choice(
        [f"the {rng.choice(ADJECTIVES)} {rng.choice(OBJECTS)}.", f"the {rng.choice(OBJECTS)} {rng.choice(PLACES)}."]
    )
    reference = f"{subject} {past} {rest}"
    return Instance({"text": f"{subject} {verb} {rest}"}, reference, exactly(reference, "contains", text=past))


@family("edit")
def plural(rng: random.Random) -> Instance:
    odd = {"mouse": "mice", "child": "children", "foot": "feet", "tooth": "teeth", "goose": "geese", "man": "men"}
    odd |= {"cherry": "cherries", "peach": "peaches", "fox": "foxes", "box": "boxes", "city": "cities", "bus": "buses"}
    regular = [w for w in FRUITS + ANIMALS + TOOLS + OBJECTS if w[-1] not in "shxyo" and w not in odd]
    word = rng.choice([rng.choice(regular), rng.choice(regular), rng.choice(sorted(odd))])
    reference = odd.get(word, f"{word}s")
    reference = {"deer": "deer", "knife": "knives", "watch": "watches"}.get(word, reference)
    return Instance({"text": word}, reference, exactly(reference, "word_count", count=1))


@family("edit")
def remove_word(rng: random.Random) -> Instance:
    word = rng.choice(ADJECTIVES)
    text = f"The {word} {rng.choice(OBJECTS)} stands {rng.choice(PLACES)}."
    reference = text.replace(f" {word}", "", 1)
    return Instance({"word": word, "text": text}, reference, exactly(reference, "lacks", text=word))


@family("edit", unseen=True)
def spelling(rng: random.Random) -> Instance:
    words = [w for w in FRUITS + ANIMALS + TOOLS + OBJECTS if len(w) >= 5]
    word = rng.choice(words)
    places = [i for i in range(1, len(word) - 2) if word[i] != word[i + 1]]
    place = rng.choice(places)
    wrong = word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    return Instance({"text": wrong}, word, exactly(word, "word_count", count=1))


@family("ending", unseen=True)
def end_with(rng: random.Random) -> Instance:
    endings = "Over and out.|That is all.|End of message.|Any questions?|Thank you.|Good night.|See you soon.|Please."
    text, ending = sentence(rng) + ".", rng.choice(endings.split("|"))
    reference = f"{text} {ending}"
    return Instance({"text": text, "ending": ending}, reference, exactly(reference, "ends_with", text=ending))


@family("ending", unseen=True)
def start_with(rng: random.Random) -> Instance:
    starts = "Dear all,|Hello,|Attention:|Good morning,|Listen:|News:|Dear team,|Reminder:"
    text, start = sentence(rng) + ".", rng.choice(starts.split("|"))
    reference = f"{start} {text}"
    return Instance({"text": text, "start": start}, reference, exactly(reference, "starts_with", text=start))


@family("ending")
def twice(rng: random.Random) -> Instance:
    text = phrase(rng)
    reference = f"{text}\n{text}"
    return Instance({"text": text}, reference, exactly(reference, "line_count", count=2))
