"""Tasks to classify a text with a label word."""

import random

from stages.tasks.generator import Instance, family, one_of
from stages.tasks.words import CITIES, COLOURS, NAMES, NOUNS, OBJECTS, told_apart


@family("classify")
def classify_noun(rng: random.Random) -> Instance:
    kinds = ["fruit", "animal", "tool"]
    kind = rng.choice(kinds)
    word = rng.choice(told_apart(*kinds)[kind])
    text = rng.choice(
        [word, word.capitalize(), f"the {word}", f"the old {word}", f"my {word}", f"a box with the {word}"]
    )
    return Instance({"text": text}, kind, one_of(kinds, kind))


@family("classify", unseen=True)
def classify_other(rng: random.Random) -> Instance:
    kinds = ["plant", "furniture", "job"]
    kind = rng.choice(kinds)
    word = rng.choice(NOUNS[kind])
    text = rng.choice([word, word.capitalize(), f"the {word}", f"the old {word}", f"my {word}"])
    return Instance({"text": text}, kind, one_of(kinds, kind))


@family("classify", unseen=True)
def odd_one_out(rng: random.Random) -> Instance:
    kinds = rng.sample(["fruit", "animal", "tool", "colour"], 2)
    nouns = told_apart(*kinds)
    words, odd = rng.sample(nouns[kinds[0]], 3), rng.choice(nouns[kinds[1]])
    text = [*words, odd]
    rng.shuffle(text)
    return Instance({"text": ", ".join(text)}, odd, one_of(text, odd))


SENTIMENTS = {
    "positive": "I love the {item}.|The {item} works perfectly.|What a wonderful {item}!|Best {item} I ever had.|"
    "I am so happy with this {item}.|The {item} was worth every penny.|This {item} made my day.|A lovely {item}.",
    "negative": "I hate the {item}.|The {item} broke at once.|What an awful {item}!|Worst {item} I ever had.|"
    "I am very unhappy with this {item}.|The {item} was a waste of money.|I sent the {item} back.|A useless {item}.",
}


@family("classify")
def sentiment(rng: random.Random) -> Instance:
    label = rng.choice(sorted(SENTIMENTS))
    text = rng.choice(SENTIMENTS[label].split("|")).format(item=rng.choice(OBJECTS))
    if rng.random() < 0.5:
        text = f"{text} It is {rng.choice(COLOURS)}."
    return Instance({"text": text}, label, one_of(sorted(SENTIMENTS), label))


TOPICS = {
    "sport": "The match ended {a} to {b}.|Her team won the cup after {a} years.|He ran {a} miles before the race.|"
    "The goalkeeper saved {a} shots.|They trained {a} days for the final.",
    "food": "Boil the rice for {a} minutes.|The soup needs {a} carrots and salt.|We baked {a} loaves of bread.|"
    "Add {a} spoons of sugar to the dough.|The cafe serves {a} kinds of cake.",
    "weather": "It will rain for {a} days.|The snow lies {a} inches deep.|Storms are expected at {a} o'clock.|"
    "Tomorrow brings {a} hours of sun.|Fog closed the road for {a} hours.",
}


@family("classify")
def topic(rng: random.Random) -> Instance:
    label = rng.choice(sorted(TOPICS))
    text = rng.choice(TOPICS[label].split("|")).format(a=rng.randint(2, 60), b=rng.randint(1, 9))
    return Instance({"text": text}, label, one_of(sorted(TOPICS), label))


@family("classify", unseen=True)
def question_or_statement(rng: random.Random) -> Instance:
    name, item, city = rng.choice(NAMES), rng.choice(OBJECTS), rng.choice(CITIES)
    questions = [f"Where is the {item}", f"Did {name} go to {city}", f"Who took the {item}", f"Is {name} in {city}"]
    statements = [f"The {item} is here", f"{name} went to {city}", f"{name} took the {item}", f"{name} is in {city}"]
    label = rng.choice(["question", "statement"])
    text = rng.choice(questions if label == "question" else statements)
    return Instance({"text": text}, label, one_of(["question", "statement"], label))
