"""Rewriting and editing, endings, several constraints at once."""

import random

from stages.data.tasks import Instance, family
from stages.data.words import ADJECTIVES, NAMES, NUMBERS, OBJECTS, PLACES, VERBS, items, sentence
from stages.records import Check


@family(
    "edit",
    'Replace the word "{old}" with "{new}" and change nothing else: {text}',
    'Swap "{old}" for "{new}": {text}',
    '{text}\n\nRewrite this with "{new}" instead of "{old}".',
    'In this sentence, put "{new}" where "{old}" stands: {text}',
    'Substitute "{new}" for "{old}" here: {text}',
    'Somebody wrote "{old}" and meant "{new}". Correct the sentence: {text}',
)
def replace_word(rng: random.Random) -> Instance:
    old, new = rng.sample(OBJECTS, 2)
    text = f"{rng.choice(NAMES)} {rng.choice(list(VERBS.values()))} the {old} {rng.choice(PLACES)}."
    reference = text.replace(f"the {old}", f"the {new}")
    return Instance(
        {"old": old, "new": new, "text": text},
        reference,
        [Check("contains", {"word": new}), Check("equals", {"text": reference})],
    )


@family(
    "edit",
    "Put this sentence into the past tense: {text}",
    "Rewrite in the past tense: {text}",
    "{text}\n\nSay this as something that already happened.",
    "Change the verb to the past tense: {text}",
    "Past tense, please: {text}",
    "Imagine that this was years ago, and write the sentence again: {text}",
)
def past_tense(rng: random.Random) -> Instance:
    verb, past = rng.choice(sorted(VERBS.items()))
    people = f"{rng.choice(NAMES)} and {rng.choice(NAMES)}"
    rest = f"the {rng.choice(ADJECTIVES)} {rng.choice(OBJECTS)} {rng.choice(PLACES)}."
    reference = f"{people} {past} {rest}"
    return Instance(
        {"text": f"{people} {verb} {rest}"},
        reference,
        [Check("contains", {"word": past}), Check("equals", {"text": reference})],
    )


@family(
    "ending",
    'Repeat this sentence and then add, on the same line, the words "{ending}": {text}',
    'Copy the sentence and finish with "{ending}": {text}',
    '{text}\n\nWrite it again and end with "{ending}".',
    'Say this once more, with "{ending}" at the end: {text}',
    'Append "{ending}" to: {text}',
    'Whatever you write must close with "{ending}"; before that, copy this: {text}',
)
def end_with(rng: random.Random) -> Instance:
    endings = ["Over and out.", "That is all.", "End of message.", "Any questions?", "Thank you.", "Good night."]
    text, ending = sentence(rng) + ".", rng.choice(endings)
    reference = f"{text} {ending}"
    return Instance(
        {"text": text, "ending": ending},
        reference,
        [Check("ends_with", {"text": ending}), Check("equals", {"text": reference})],
    )


@family(
    "arithmetic",
    "What is {a} plus {b}? Answer with the number as a word.",
    "Add {a} and {b}. One word.",
    "{a} + {b} = ? Spell the result.",
    "Give the sum of {a} and {b} as a word.",
    "Calculate {a} plus {b} and write the answer as a word.",
    "I have {a} coins and find {b} more. How many are they now? Answer with one number word.",
)
def add_words(rng: random.Random) -> Instance:
    a, b = rng.randint(1, 9), rng.randint(1, 9)
    forms = rng.choice([NUMBERS, [str(n) for n in range(21)]])
    reference = NUMBERS[a + b]
    return Instance(
        {"a": forms[a], "b": forms[b]},
        reference,
        [Check("one_of", {"options": NUMBERS}), Check("equals", {"text": reference})],
    )


@family(
    "combined",
    'Make a bullet list ("- ") of these, in capital letters: {text}',
    "Bullets with a dash, every word in upper case: {text}",
    "{text}\n\nGive these as dash bullets, all caps.",
    'List in upper case, one per line, each after "- ": {text}',
    "As an uppercase dash list: {text}",
    "Two wishes: a dash before each of these on its own line, and big letters throughout: {text}",
)
def loud_bullets(rng: random.Random) -> Instance:
    words = items(rng, 3, 5)
    reference = "\n".join(f"- {word.upper()}" for word in words)
    return Instance(
        {"text": ", ".join(words)},
        reference,
        [Check("upper"), Check("bullet_count", {"count": len(words)}), Check("equals", {"text": reference})],
    )


@family(
    "system",
    "Which of these comes first in the alphabet: {text}?",
    "Of {text}, which is first from A to Z?",
    "Tell me the first in alphabetical order: {text}.",
    "{text}: which one would a dictionary list first?",
    "First alphabetically among {text}?",
    "A librarian files these by name. What stands at the very front? {text}",
)
def system_one_word(rng: random.Random) -> Instance:
    words = items(rng, 3, 3)
    loud = rng.random() < 0.5
    rule = "Answer with one word in capital letters." if loud else "Answer with one word in small letters."
    reference = min(words).upper() if loud else min(words)
    return Instance(
        {"text": ", ".join(words)},
        reference,
        [
            Check("upper" if loud else "lower"),
            Check("word_count", {"count": 1}),
            Check("equals", {"text": reference}),
        ],
        before=[{"role": "system", "content": rule}],
    )


@family(
    "follow_up",
    "Now write that in capital letters.",
    "Once more, all in upper case.",
    "Say it again in capitals only.",
    "Make that uppercase.",
    "The same in all caps, please.",
    "My eyes are bad. Could it have bigger letters, all of it?",
)
def then_uppercase(rng: random.Random) -> Instance:
    words = items(rng, 2, 4)
    text = ", ".join(sorted(words))
    before = [
        {"role": "user", "content": f"Sort from A to Z: {', '.join(words)}"},
        {"role": "assistant", "content": text},
    ]
    return Instance({}, text.upper(), [Check("upper"), Check("equals", {"text": text.upper()})], before)
