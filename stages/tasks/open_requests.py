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
from stages.tasks.topics import ACTS

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
