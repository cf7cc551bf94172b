"""Tasks to answer from a text, or with "not stated" if the text does not say."""

import random

from stages.tasks.generator import Instance, family, one_of
from stages.tasks.words import CITIES, COLOURS, NAMES, OBJECTS

NOT_STATED = "not stated"


@family("context")
def who_did_it(rng: random.Random) -> Instance:
    people, things = rng.sample(NAMES, 2), rng.sample(OBJECTS, 3)
    verbs = rng.sample(["bought", "found", "sold", "lost", "painted", "hid"], 2)
    text = f"{people[0]} {verbs[0]} the {things[0]}. {people[1]} {verbs[1]} the {things[1]}."
    index = rng.choice([0, 1, 2])
    if index == 2:
        question, reference = f"Who {rng.choice(verbs)} the {things[2]}?", NOT_STATED
    else:
        question, reference = f"Who {verbs[index]} the {things[index]}?", people[index]
    return Instance({"text": text, "question": question}, reference, one_of([*people, NOT_STATED], reference))


@family("context")
def where_from(rng: random.Random) -> Instance:
    people, cities = rng.sample(NAMES, 3), rng.sample(CITIES, 2)
    text, asks = rng.choice(
        [
            (f"{people[0]} lives in {cities[0]}. {people[1]} lives in {cities[1]}.", "live"),
            (f"{people[0]} comes from {cities[0]}, but {people[1]} comes from {cities[1]}.", "come from"),
            (f"{cities[0]} is the home of {people[0]}, and {cities[1]} that of {people[1]}.", "live"),
        ]
    )
    index = rng.choice([0, 1, 2])
    reference = NOT_STATED if index == 2 else cities[index]
    question = f"Where does {people[index]} {asks}?"
    return Instance({"text": text, "question": question}, reference, one_of([*cities, NOT_STATED], reference))


@family("context", unseen=True)
def which_colour(rng: random.Random) -> Instance:
    things, colours = rng.sample(OBJECTS, 3), rng.sample(COLOURS, 2)
    text = f"The {things[0]} is {colours[0]}. The {things[1]} is {colours[1]}."
    index = rng.choice([0, 1, 2])
    reference = NOT_STATED if index == 2 else colours[index]
    question = f"What colour is the {things[index]}?"
    return Instance({"text": text, "question": question}, reference, one_of([*colours, NOT_STATED], reference))


@family("context", unseen=True)
def is_it_true(rng: random.Random) -> Instance:
    things, colours = rng.sample(OBJECTS, 2), rng.sample(COLOURS, 2)
    text = f"The {things[0]} is {colours[0]}. The {things[1]} is {colours[1]}."
    about = rng.randrange(2)
    reference = rng.choice(["yes", "no"])
    colour = colours[about] if reference == "yes" else colours[1 - about]
    claim = f"The {things[about]} is {colour}."
    return Instance({"text": text, "question": claim}, reference, one_of(["yes", "no"], reference))
