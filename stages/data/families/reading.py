"""Reading: extraction, classification, and answers from a given context, or the word that it holds none."""

import random

from stages.data.tasks import Instance, family
from stages.data.words import ANIMALS, CITIES, COLOURS, FRUITS, NAMES, NOUNS, OBJECTS, TOOLS, sentence
from stages.records import Check


@family(
    "extract",
    "Which city is named here? Answer with the city only: {text}",
    "Extract the name of the city: {text}",
    "{text}\n\nWhat city does this mention? Just its name.",
    "Give me only the city from this text: {text}",
    "Find the city: {text}",
    "One place on the map is named in this. Which? Nothing but its name, please: {text}",
)
def extract_city(rng: random.Random) -> Instance:
    name, city, other = rng.choice(NAMES), rng.choice(CITIES), rng.choice(NAMES)
    item = rng.choice(OBJECTS)
    text = rng.choice(
        [
            f"{name} sent a {item} to {other}, who lives in {city}.",
            f"After three years in {city}, {name} sold the {item}.",
            f"The {item} that {name} found came from {city}.",
            f"{name} and {other} met at a fair in {city}, where {name} bought a {item}.",
        ]
    )
    return Instance({"text": text}, city, [Check("word_count", {"count": 1}), Check("equals", {"text": city})])


@family(
    "extract",
    "List the animals in this text, separated by commas, in the order they come: {text}",
    "Which animals does this mention? Only their names, with commas: {text}",
    "{text}\n\nName the animals above in order, separated by commas.",
    "Pick out the animals and separate them with commas: {text}",
    "Extract every animal, comma-separated: {text}",
    "Leave out everything that is not an animal and keep the rest in order, with commas: {text}",
)
def extract_animals(rng: random.Random) -> Instance:
    animals = rng.sample(ANIMALS, rng.randint(2, 3))
    words = animals + rng.sample(FRUITS, 2) + rng.sample(TOOLS, rng.randint(1, 2))
    rng.shuffle(words)
    reference = ", ".join(word for word in words if word in animals)
    return Instance(
        {"text": ", ".join(words)},
        reference,
        [Check("same_words", {"words": animals}), Check("equals", {"text": reference})],
    )


@family(
    "classify",
    "Is this a fruit, an animal or a tool? Answer with one of these words: {text}",
    "Classify as fruit, animal or tool: {text}",
    "{text}\n\nfruit, animal or tool? One word.",
    "Choose the right label (fruit, animal, tool) for: {text}",
    "Label this word as fruit, animal or tool. {text}",
    "Would you eat it, feed it or work with it? Say fruit, animal or tool: {text}",
)
def classify_noun(rng: random.Random) -> Instance:
    kind = rng.choice(["fruit", "animal", "tool"])
    word = rng.choice(NOUNS[kind])
    text = rng.choice([word, word.capitalize(), f"the {word}", f"{word}s", f"my {word}", f"a box with one {word}"])
    return Instance(
        {"text": text},
        kind,
        [Check("one_of", {"options": ["fruit", "animal", "tool"]}), Check("equals", {"text": kind})],
    )


@family(
    "classify",
    "Which word does not belong with the others? Answer with that word only: {text}",
    "Find the odd one out: {text}",
    "{text}\n\nOne of these is of another kind. Which? One word.",
    "Name the word that does not fit: {text}",
    "Odd one out, please: {text}",
    "All but one of these are alike. Write the one that is not: {text}",
    unseen=True,
)
def odd_one_out(rng: random.Random) -> Instance:
    kinds = rng.sample(["fruit", "animal", "tool", "colour"], 2)
    words = rng.sample([w for w in NOUNS[kinds[0]] if w not in NOUNS[kinds[1]]], 3)
    odd = rng.choice([w for w in NOUNS[kinds[1]] if w not in NOUNS[kinds[0]]])
    text = [*words, odd]
    rng.shuffle(text)
    return Instance(
        {"text": ", ".join(text)}, odd, [Check("one_of", {"options": text}), Check("equals", {"text": odd})]
    )


SENTIMENTS = {
    "positive": "I love the {item}.|The {item} works perfectly.|What a wonderful {item}!|Best {item} I ever had.|"
    "I am so happy with this {item}.|The {item} was worth every penny.",
    "negative": "I hate the {item}.|The {item} broke at once.|What an awful {item}!|Worst {item} I ever had.|"
    "I am very unhappy with this {item}.|The {item} was a waste of money.",
}


@family(
    "classify",
    "Is this review positive or negative? Answer with one word: {text}",
    "Classify the sentiment as positive or negative: {text}",
    "{text}\n\npositive or negative? One word.",
    "Label this review (positive, negative): {text}",
    "Sentiment, positive or negative: {text}",
    "Would the shop be glad to read this? Say positive if so, else negative: {text}",
)
def sentiment(rng: random.Random) -> Instance:
    label = rng.choice(sorted(SENTIMENTS))
    text = rng.choice(SENTIMENTS[label].split("|")).format(item=rng.choice(OBJECTS))
    if rng.random() < 0.5:
        text = f"{text} It is {rng.choice(COLOURS)}."
    return Instance(
        {"text": text},
        label,
        [Check("one_of", {"options": ["positive", "negative"]}), Check("equals", {"text": label})],
    )


NOT_STATED = "not stated"


@family(
    "context",
    'Answer from the text with a single name, or say "not stated" if the text does not tell.\n\n{text}\n\n{question}',
    '{text}\n\n{question} Answer with one name, or "not stated".',
    'Read this: {text} Now: {question} If it is not said, answer "not stated".',
    '{question} Use only this text, and write "not stated" when it has no answer: {text}',
    'Text: {text}\nQuestion: {question}\nAnswer with a name or "not stated".',
    'Trust nothing but this: {text} {question} A name will do, and "not stated" where there is none.',
)
def who_did_it(rng: random.Random) -> Instance:
    people, things = rng.sample(NAMES, 2), rng.sample(OBJECTS, 3)
    verbs = rng.sample(["bought", "found", "sold", "lost", "painted", "hid"], 2)
    text = f"{people[0]} {verbs[0]} the {things[0]}. {people[1]} {verbs[1]} the {things[1]}."
    asked = rng.choice([0, 1, 2])
    if asked == 2:
        question, reference = f"Who {rng.choice(verbs)} the {things[2]}?", NOT_STATED
    else:
        question, reference = f"Who {verbs[asked]} the {things[asked]}?", people[asked]
    return Instance(
        {"text": text, "question": question},
        reference,
        [Check("one_of", {"options": [*people, NOT_STATED]}), Check("equals", {"text": reference})],
    )


@family(
    "context",
    "What is the last word of this sentence? Answer with that word only: {text}",
    "Copy the last word of this sentence, without the full stop: {text}",
    "{text}\n\nWhat is the last word above? Only the word.",
    "Answer with the final word of: {text}",
    "Last word only: {text}",
    "Cover all of this with your hand except the end. Which single word do you see? {text}",
    unseen=True,
)
def last_word(rng: random.Random) -> Instance:
    text = sentence(rng)
    word = text.split()[-1]
    return Instance({"text": text + "."}, word, [Check("word_count", {"count": 1}), Check("equals", {"text": word})])
