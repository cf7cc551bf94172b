"""Tasks to edit and rewrite a text, or to begin or end it in a given way."""

import random

from stages.tasks.generator import Instance, exactly, family
from stages.tasks.words import ADJECTIVES, ANIMALS, FRUITS, NAMES, OBJECTS, PLACES, TOOLS, VERBS, phrase, sentence


@family(
    "edit",
    """
    Replace the word "{old}" with "{new}" and change nothing else: {text}
    Swap "{old}" for "{new}": {text}
    {text} | Rewrite this with "{new}" instead of "{old}".
    In this sentence, put "{new}" where "{old}" stands: {text}
    Substitute "{new}" for "{old}" here: {text}
    Somebody wrote "{old}" and meant "{new}". Correct the sentence: {text}
    """,
)
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


@family(
    "edit",
    """
    Put this sentence into the past tense: {text}
    Rewrite in the past tense: {text}
    {text} | Say this as something that already happened.
    Change the verb to the past tense: {text}
    Past tense, please: {text}
    Imagine that this was years ago, and write the sentence again: {text}
    """,
    unseen=True,
)
def past_tense(rng: random.Random) -> Instance:
    verb, past = rng.choice(sorted(VERBS.items()))
    subject = rng.choice([f"{rng.choice(NAMES)} and {rng.choice(NAMES)}", "They", "We", "I", "The children"])
    rest = rng.choice(
        [f"the {rng.choice(ADJECTIVES)} {rng.choice(OBJECTS)}.", f"the {rng.choice(OBJECTS)} {rng.choice(PLACES)}."]
    )
    reference = f"{subject} {past} {rest}"
    return Instance({"text": f"{subject} {verb} {rest}"}, reference, exactly(reference, "contains", text=past))


@family(
    "edit",
    """
    Write the plural of: {text}
    More than one {text}: which word is it? One word.
    {text} | Plural, please. One word.
    Give the plural form of "{text}".
    One {text}, two what? Answer with the word.
    I have one {text} and get another. What do I have two of? One word.
    """,
)
def plural(rng: random.Random) -> Instance:
    odd = {"mouse": "mice", "child": "children", "foot": "feet", "tooth": "teeth", "goose": "geese", "man": "men"}
    odd |= {"cherry": "cherries", "peach": "peaches", "fox": "foxes", "box": "boxes", "city": "cities", "bus": "buses"}
    regular = [w for w in FRUITS + ANIMALS + TOOLS + OBJECTS if w[-1] not in "shxyo" and w not in odd]
    word = rng.choice([rng.choice(regular), rng.choice(regular), rng.choice(sorted(odd))])
    reference = odd.get(word, f"{word}s")
    reference = {"deer": "deer", "knife": "knives", "watch": "watches"}.get(word, reference)
    return Instance({"text": word}, reference, exactly(reference, "word_count", count=1))


@family(
    "edit",
    """
    Remove the word "{word}" and keep the rest as it is: {text}
    Delete "{word}" from: {text}
    {text} | Write this again without "{word}".
    Leave out "{word}": {text}
    Drop the word "{word}" here: {text}
    One word is too much, namely "{word}". Give me the sentence without it: {text}
    """,
)
def remove_word(rng: random.Random) -> Instance:
    word = rng.choice(ADJECTIVES)
    text = f"The {word} {rng.choice(OBJECTS)} stands {rng.choice(PLACES)}."
    reference = text.replace(f" {word}", "", 1)
    return Instance({"word": word, "text": text}, reference, exactly(reference, "lacks", text=word))


@family(
    "edit",
    """
    Fix the spelling of this word: {text}
    Correct the word: {text}
    {text} | Two letters changed places. Write the word as it should be.
    How is this spelled right? {text}
    Spelling mistake, one word: {text}
    My keyboard mixed up two letters of this word. Which word did I mean? {text}
    """,
    unseen=True,
)
def spelling(rng: random.Random) -> Instance:
    words = [w for w in FRUITS + ANIMALS + TOOLS + OBJECTS if len(w) >= 5]
    word = rng.choice(words)
    places = [i for i in range(1, len(word) - 2) if word[i] != word[i + 1]]
    place = rng.choice(places)
    wrong = word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    return Instance({"text": wrong}, word, exactly(word, "word_count", count=1))


@family(
    "ending",
    """
    Repeat this and then add, on the same line, the words "{ending}": {text}
    Copy the sentence and finish with "{ending}": {text}
    {text} | Write it again and end with "{ending}".
    Say this once more, with "{ending}" at the end: {text}
    Append "{ending}" to: {text}
    Whatever you write must close with "{ending}"; before that, copy this: {text}
    """,
    unseen=True,
)
def end_with(rng: random.Random) -> Instance:
    endings = "Over and out.|That is all.|End of message.|Any questions?|Thank you.|Good night.|See you soon.|Please."
    text, ending = sentence(rng) + ".", rng.choice(endings.split("|"))
    reference = f"{text} {ending}"
    return Instance({"text": text, "ending": ending}, reference, exactly(reference, "ends_with", text=ending))


@family(
    "ending",
    """
    Begin with "{start}" and then copy this: {text}
    Put "{start}" before: {text}
    {text} | Write it again, starting with "{start}".
    Say this once more, with "{start}" at the start: {text}
    Prefix with "{start}": {text}
    Greet first, with "{start}"; then repeat this: {text}
    """,
    unseen=True,
)
def start_with(rng: random.Random) -> Instance:
    starts = "Dear all,|Hello,|Attention:|Good morning,|Listen:|News:|Dear team,|Reminder:"
    text, start = sentence(rng) + ".", rng.choice(starts.split("|"))
    reference = f"{start} {text}"
    return Instance({"text": text, "start": start}, reference, exactly(reference, "starts_with", text=start))


@family(
    "ending",
    """
    Write this twice, on two lines: {text}
    Repeat on a second line: {text}
    {text} | The same line two times, please.
    Two copies, one below the other: {text}
    Double this, each on its own line: {text}
    I did not hear it the first time. Say it, and say it again on the next line: {text}
    """,
)
def twice(rng: random.Random) -> Instance:
    text = phrase(rng)
    reference = f"{text}\n{text}"
    return Instance({"text": text}, reference, exactly(reference, "line_count", count=2))
