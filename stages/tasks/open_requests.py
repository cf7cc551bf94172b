"""Open requests under constraints: what is written is the model's choice, how it is written is checked.

A request is drawn first, then none to three constraints that do not clash. A kind of constraint is trained, or tuned
on, or tested: no prompt of another side asks for it.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stages.config.blocks.data import SPLIT_OF_GROUP
from stages.config.errors import UserError
from stages.store.records import AND, Check, Example, content_id, prompt_id
from stages.store.text_units import lower_words, plain_words
from stages.tasks.constraint import Constraint, Side, clash, known_constraints
from stages.tasks.topics import GROUPS

# Per act: its name and topics, then its wordings, "|" between them. None limits length, form or words: others do that.
WORDINGS = """
# explain PROCESSES: Explain {topic}.|Can you tell me {topic}?|I have never understood {topic}. What is behind it?|
Somebody at school asked {topic}. What is the answer?|I would like to know {topic}.|Please explain to me {topic}.
# describe SUBJECTS: Describe {topic}.|Write a description of {topic}.|How would you describe {topic}?|
Help a reader imagine {topic}.|What comes to mind when you think of {topic}?|I would like to hear about {topic}.
# advise SKILLS: Give me some advice on {topic}.|What would you tell a beginner about {topic}?|
I need help with {topic}. What do you suggest?|A friend asked me for tips on {topic}. What should I say?|
Which mistakes do people make when {topic}, and how can I avoid them?|I am not good at {topic}. What would help?
# list_ideas IDEAS: Name some ideas for {topic}.|What could make {topic} easier? Collect some ideas.|
I am looking for ideas for {topic}.|Which things might help with {topic}?|Think of tricks that are useful for {topic}.|
Suggest a few ways of going about {topic}.
# compare COMPARED: Compare {a} with {b}.|How do {a} and {b} differ?|What sets {a} apart from {b}?|
What do {a} and {b} have in common, and where do they differ?|Somebody asked me about {a} and {b}. Compare them.|
Tell me what you like about {a} and what you like about {b}.
# letter OCCASIONS: Write a letter {topic}.|Draft an email {topic}.|Help me write a letter {topic}.|
I need the text of an email {topic}.|What could I write in an email {topic}? Give me the text.|
Compose a friendly letter for this occasion: {topic}.
# story TALES: Write a story about {topic}.|Tell me a story about {topic}.|Make up a tale about {topic}.|
Invent a story in which we meet {topic}.|I would like to read a story about {topic}. Can you write it?|
My daughter wants a bedtime story, and it has to be about {topic}.
# post POSTS: Write a blog post about {topic}.|Draft a post for social media about {topic}.|
I want to tell my followers about {topic}. Write the post.|My blog needs something new: a post about {topic}.|
What could I post online about {topic}? Write it for me.|Turn this into a post for a blog: {topic}.
# recipe DISHES: Give me a recipe for {topic}.|How do I make {topic}?|Write down a recipe for {topic}.|
I want to make {topic} tonight. What do I need, and what do I do?|Teach me to make {topic}.|
Friends are coming over, and I would like to serve them {topic}. Do you know a recipe?
# plan GOALS: Make a plan for {topic}.|How should I go about {topic}? Plan it for me.|Help me plan {topic}.|
I have set my heart on {topic}. What would a good plan be?|Draw up a plan that leads to this: {topic}.|
My project is {topic}. Which steps should I plan?
# role ROLES: You are {role}. A visitor asks {question}. What do you say?|
Speak as {role}, and let a guest know {question}.|Imagine that you are {role}, and tell a visitor {question}.|
Play {role}: I come along and want to know {question}.|Answer as {role} would when asked {question}.|
Pretend to be {role}. Somebody would like to hear {question}.
# summarise TEXTS: Summarise this text:\n{text}|{text}\nSum this up for me.|What is the essence of this text?\n{text}|
What are the main points of the following text?\n{text}|I have no time to read this. What is it about?\n{text}|
Here is a text:\n{text}\nWhat is the gist of it?
# rewrite TEXTS: Rewrite this text for young children:\n{text}|Turn this into a news item:\n{text}|
{text}\nTell this again as gossip over a garden fence.|How would a fairy tale put this?\n{text}|
Rewrite the following in the formal style of an official report:\n{text}|
Here is a text:\n{text}\nRewrite it more politely, as a kind host would tell it to guests.
# review REVIEWED: Write a review of {topic}.|What would a customer say about {topic}? Write the review.|
Imagine that you have tried {topic}, and review it.|Somebody was disappointed with {topic}. Write the review.|
Review {topic} for a local magazine.|Write the review that a delighted customer might leave for {topic}.
"""
STOP = """
about after again against along also always among another anyone around asked asking asks away because becomes been
before begin being beside besides both came come comes could does doing down during each evening ever every everything
find finds first five four from full gets getting give gives goes good have here into itself just keep keeping keeps
kept know knows last learn learning left less like long look looking looks made make makes making many month more most
much must need needs never next nobody nothing often once only other others over part people place same seems several
since some stays still such take takes taking tell telling tells than that their them then there these they thing
things this those three through time turn under until used using very want wants week weekend weekends weeks went were
what when where whether which while whose will with without work working works would year years
""".split()
# A word without the ending of a plural or a gerund; three letters stay, a vowel among them: not `spr` for `spring`.
BARE = re.compile(
    r"(?=.{0,2}[aeiouy])(.{3,}?)((?<=(.))\3ing|ing|ies|(?<=[sxh])es|(?<![su])s|(?<![aeiou])y|(?<=....)e)$"
)
ACTS: dict[str, tuple[tuple[str, ...], list[str]]] = {
    head.split()[0]: (tuple(form.strip() for form in forms.split("|")), GROUPS[head.split()[1]])
    for head, _, forms in (act.strip().partition(": ") for act in WORDINGS.split("#")[1:])
}
# Whose kinds each group of prompts asks for. Test kinds of areas that have no trained kind are a group of their own.
SIDES: dict[str, Side | None] = {
    "open_test": Side.train,
    "unseen_kinds": Side.test,
    "unseen_areas": Side.test,
    "open_plain": None,
    "open_validation": Side.validation,
    "open_preference": Side.train,
    "open_sft": Side.train,
}
TRAINED = ("open_preference", "open_sft")  # their prompts have none to three constraints; others one, plain ones none
HOW_MANY = {0: 0.15, 1: 0.5, 2: 0.25, 3: 0.1}  # constraints, and the share of prompts that have them
FIRST = 0.15  # share of prompts that tell the constraints before the request
NO_TOPIC = "language"  # what claims this names the topic in other words than the request


@dataclass(frozen=True)
class Request:
    """topics: per thing that an answer must be about, stems of which at least one must begin a word of the answer."""

    act: str
    text: str
    topics: tuple[tuple[str, ...], ...]


def request(rng: random.Random) -> Request:
    """Draw an act, then a topic, then a wording."""
    act = rng.choice([*ACTS])
    wordings, topics = ACTS[act]
    topic = rng.choice(topics)
    slots, about = {"topic": topic, "text": topic}, [topic]
    if act == "compare":
        about = topic.split(" and ")
        slots = dict(zip("ab", about, strict=True))
    if act == "role":
        role, question = topic.split(": ")
        slots, about = {"role": role, "question": question}, [question]
    return Request(act, rng.choice(wordings).format(**slots), tuple(stems(thing) for thing in about))


def stems(topic: str) -> tuple[str, ...]:
    """The words of a topic of 4 letters or more that are no stop words: without their endings, cut to 6 letters."""
    content = [word for word in plain_words(topic) if len(word) >= 4 and word not in STOP]
    return tuple(dict.fromkeys(BARE.sub(r"\1", word)[:6] for word in content))


def on_topic(answer: str, topics: Sequence[Sequence[str]]) -> bool:
    """Whether for every thing at least one of its stems begins a word of the answer. Case is ignored."""
    said = plain_words(answer)
    return all(any(word.startswith(tuple(thing)) for word in said) for thing in topics)


def echoes(answer: str, text: str) -> bool:
    """Whether an answer hardly does more than repeat a request. Case and marks are ignored.

    A word of the answer is repeated if it is in a run of at least 4 words, or in an answer of fewer words, that stands
    in the request as it is. An answer echoes if words of it are repeated and those that are not are fewer than 4, or
    less than 20 % of it.
    """
    said, asked = lower_words(answer), lower_words(text)
    size = min(4, len(said))
    runs = {tuple(asked[i : i + size]) for i in range(len(asked) - size + 1)}
    starts = [i for i in range(len(said) - size + 1) if tuple(said[i : i + size]) in runs]
    own = len(said) - len({i + k for i in starts for k in range(size)})
    return own < len(said) and (own < 4 or own < 0.2 * len(said))


def generate(seed: int, counts: Mapping[str, int]) -> list[Example]:
    """Examples per group (the keys of SIDES), kinds in turn, no prompt twice. They have checks, and no reference.

    Raises:
        UserError: where a group wants more prompts than there are.
    """
    examples: dict[str, Example] = {}
    for group in SIDES:
        kinds = members(group)
        for i in range(counts.get(group, 0)):
            for attempt in range(1000):
                rng = random.Random(f"{seed}/{group}/{i}/{attempt}")
                drawn = example(group, request(rng), draw(rng, kinds, i, group in TRAINED), rng)
                if drawn.id not in examples:
                    break
            else:
                raise UserError(f"data.tasks.{group}={counts[group]}: there are too few open requests. Ask for fewer.")
            examples[drawn.id] = drawn
    return list(examples.values())


def members(group: str) -> list[Constraint]:
    """The kinds that a group's prompts ask for; of plain ones, none."""
    kinds = [c for c in known_constraints().values() if c.side is SIDES[group]]
    trained = {c.area for c in known_constraints().values() if c.side is Side.train}
    if SIDES[group] is not Side.test:
        return kinds
    return [c for c in kinds if (c.area in trained) == (group == "unseen_kinds")]


def draw(rng: random.Random, kinds: list[Constraint], i: int, several: bool) -> list[Constraint]:
    """The i-th prompt's constraints: one, the kinds in turn; or as many as HOW_MANY has it, the first of them so."""
    if not kinds:
        return []
    first = kinds[i % len(kinds)]
    count = rng.choices([*HOW_MANY], [*HOW_MANY.values()])[0] if several else 1
    chosen = [first] if count else []
    for kind in rng.sample(kinds, len(kinds)):
        if len(chosen) < count and not any(clash(kind, c) for c in chosen):
            chosen.append(kind)
    return rng.sample(chosen, len(chosen))


def example(group: str, asked: Request, kinds: list[Constraint], rng: random.Random) -> Example:
    """The request with its constraints, and the checks of an answer: every constraint, and the topic."""
    params = [kind.draw(rng, asked.text) for kind in kinds]
    checks = [kind.check(given) for kind, given in zip(kinds, params, strict=True)]
    if not any(NO_TOPIC in kind.claims for kind in kinds):
        checks.append(Check("on_topic", {"topics": [list(stems) for stems in asked.topics]}))
    sentences = [kind.word(rng, given) for kind, given in zip(kinds, params, strict=True)]
    messages = [{"role": "user", "content": joined(asked.text, sentences, rng)}]
    return Example(
        id=prompt_id(messages),
        messages=messages,
        reference=None,
        source="open",
        task=AND.join(sorted(kind.name for kind in kinds)) or asked.act,
        split=SPLIT_OF_GROUP[group],
        kind=kinds[0].area if len(kinds) == 1 else "several" if kinds else "request",
        group=group,
        request=content_id(asked.text),
        checks=checks,
    )


def joined(text: str, sentences: list[str], rng: random.Random) -> str:
    """A request and the sentences that constrain its answer, in one of the forms that people give them."""
    if not sentences:
        return text
    several = "\n".join(f"- {sentence}" for sentence in sentences) if len(sentences) > 1 else sentences[0]
    told = rng.choice([" ".join(sentences), several])
    if rng.random() < FIRST:
        return f"{told}\n\n{text}"
    apart = ["\n", "\n\n"] if "\n" in told + text else [" ", "\n", "\n\n"]
    return f"{text}{rng.choice(apart)}{told}"
