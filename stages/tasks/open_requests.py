"""Open requests with constraints: the model chooses the content, and checks test the form. A request is drawn first,
then none to three constraints that do not clash. A kind of constraint has one use: training, validation or testing."""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stages.config.blocks.data import SPLIT_OF_GROUP
from stages.config.errors import UserError
from stages.config.installation import read_beside
from stages.store.records import KIND_SEPARATOR, Check, Example, content_id, prompt_id
from stages.store.text_units import lower_words, plain_words
from stages.tasks.constraint import Constraint, Side, known_constraints, may_clash
from stages.tasks.words import words_of


def parts(block: str) -> list[str]:
    """Return the parts of a block that are separated by "|", each on one line."""
    return [" ".join(part.split()).replace(r"\n", "\n") for part in block.split("|")]


# The acts of open requests, each with its wordings and topics
READ = read_beside(__file__)
TOPICS = {name: parts(block) for name, block in READ["topics"].items()}
TOPICS["IDEAS"] = TOPICS["SKILLS"] + TOPICS["GOALS"]
ACTS = {
    name: (tuple(parts(act["wordings"])), TOPICS[act["topics"]])
    for name, act in READ["acts"].items()
}
STOP = words_of(__file__)["stop"]
# Removes the ending of a plural or gerund. At least three letters with a vowel stay: not `spr` for `spring`.
BARE = re.compile(
    r"(?=.{0,2}[aeiouy])(.{3,}?)((?<=(.))\3ing|ing|ies|(?<=[sxh])es|(?<![su])s|(?<![aeiou])y|(?<=....)e)$"
)
SIDES: dict[str, Side | None] = {
    group: side and Side(side) for group, side in READ["sides"].items()
}
# Groups with none to three constraints; other groups have one, `open_plain` none
TRAINED = ("open_preference", "open_sft")
LENGTHS = ("words_at_least", "words_at_most")  # the kinds in `open_lengths`
HOW_MANY = {0: 0.15, 1: 0.5, 2: 0.25, 3: 0.1}  # share of prompts by number of constraints
CONSTRAINTS_FIRST = 0.15  # share of prompts with the constraints before the request
NO_TOPIC = "language"  # claim of kinds whose answers name the topic in another language


@dataclass(frozen=True)
class Request:
    """An open request. `topics`: for each thing that an answer must mention, stems of which one suffices."""

    act: str
    text: str
    topics: tuple[tuple[str, ...], ...]


def request(rng: random.Random) -> Request:
    """Return a request from a random act, topic and wording."""
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
    return Request(
        act, rng.choice(wordings).format(**slots), tuple(stems(thing) for thing in about)
    )


def stems(topic: str) -> tuple[str, ...]:
    """Return the stems, of at most 6 letters, of a topic's words with 4 letters or more that are not stop words."""
    content = [word for word in plain_words(topic) if len(word) >= 4 and word not in STOP]
    return tuple(dict.fromkeys(BARE.sub(r"\1", word)[:6] for word in content))


def on_topic(answer: str, topics: Sequence[Sequence[str]]) -> bool:
    """Return whether an answer mentions every topic: a word begins with one of the topic's stems. Case is ignored."""
    answer_words = plain_words(answer)
    return all(any(word.startswith(tuple(thing)) for word in answer_words) for thing in topics)


def is_echo(answer: str, text: str) -> bool:
    """Return whether an answer mostly repeats a request. Case and punctuation are ignored. A word is repeated if it is
    in a run of 4 words that the request also has; a shorter answer is one run. An answer is an echo if it has repeated
    words, and its new words are fewer than 4 or less than 20%."""
    answer_words, request_words = lower_words(answer), lower_words(text)
    size = min(4, len(answer_words))
    runs = {tuple(request_words[i : i + size]) for i in range(len(request_words) - size + 1)}
    starts = [
        i for i in range(len(answer_words) - size + 1) if tuple(answer_words[i : i + size]) in runs
    ]
    n_new = len(answer_words) - len({i + k for i in starts for k in range(size)})
    return n_new < len(answer_words) and (n_new < 4 or n_new < 0.2 * len(answer_words))


def generate(seed: int, counts: Mapping[str, int]) -> list[Example]:
    """Return examples of each group in SIDES, with kinds in turn, no prompt twice, and checks but no reference. No
    trained prompt has a held-out one's request. Raise UserError if a group needs more prompts than exist."""
    examples: dict[str, Example] = {}
    for group in SIDES:
        excluded = {
            e.request for e in examples.values() if (group in TRAINED) != (e.group in TRAINED)
        }
        kinds = kinds_of_group(group)
        for i in range(counts.get(group) or 0):
            for attempt in range(1000):
                rng = random.Random(f"{seed}/{group}/{i}/{attempt}")
                drawn = example(group, request(rng), draw(rng, kinds, i, group in TRAINED), rng)
                if drawn.id not in examples and drawn.request not in excluded:
                    break
            else:
                raise UserError(
                    f"data.tasks.{group}={counts[group]}: there are too few different requests. Lower it."
                )
            examples[drawn.id] = drawn
    return list(examples.values())


def kinds_of_group(group: str) -> list[Constraint]:
    """Return the kinds of constraint in a group's prompts."""
    kinds = [c for c in known_constraints().values() if c.side is SIDES[group]]
    if group == "open_lengths":
        return [c for c in kinds if c.name in LENGTHS]
    trained = {c.area for c in known_constraints().values() if c.side is Side.train}
    if SIDES[group] is not Side.test:
        return kinds
    return [c for c in kinds if (c.area in trained) == (group == "unseen_kinds")]


def draw(rng: random.Random, kinds: list[Constraint], i: int, several: bool) -> list[Constraint]:
    """Return the i-th prompt's constraints: the next kind in turn; if `several`, HOW_MANY that do not clash."""
    if not kinds:
        return []
    count = rng.choices([*HOW_MANY], [*HOW_MANY.values()])[0] if several else 1
    chosen = [kinds[i % len(kinds)]] if count else []
    for kind in rng.sample(kinds, len(kinds)):
        if len(chosen) < count and not any(may_clash(kind, c) for c in chosen):
            chosen.append(kind)
    return rng.sample(chosen, len(chosen))


def example(
    group: str, open_request: Request, kinds: list[Constraint], rng: random.Random
) -> Example:
    """Return the example of a request with constraints. Its checks are the constraints, the topic, and own words."""
    params = [kind.draw(rng, open_request.text) for kind in kinds]
    checks = [Check(kind.name, values) for kind, values in zip(kinds, params, strict=True)]
    if not any(NO_TOPIC in kind.claims for kind in kinds):
        checks.append(Check("on_topic", {"topics": [list(stems) for stems in open_request.topics]}))
    sentences = [kind.word(rng, values) for kind, values in zip(kinds, params, strict=True)]
    messages = [{"role": "user", "content": join_request(open_request.text, sentences, rng)}]
    checks.append(Check("own_words", {"text": messages[0]["content"]}))
    return Example(
        id=prompt_id(messages),
        messages=messages,
        reference=None,
        source="open",
        task=KIND_SEPARATOR.join(sorted(kind.name for kind in kinds)) or open_request.act,
        split=SPLIT_OF_GROUP[group],
        kind=kinds[0].area if len(kinds) == 1 else "several" if kinds else "request",
        group=group,
        request=content_id(open_request.text),
        checks=checks,
    )


def join_request(text: str, sentences: list[str], rng: random.Random) -> str:
    """Return a request joined with the sentences of its constraints, in a random layout."""
    if not sentences:
        return text
    listing = (
        "\n".join(f"- {sentence}" for sentence in sentences) if len(sentences) > 1 else sentences[0]
    )
    constraints = rng.choice([" ".join(sentences), listing])
    if rng.random() < CONSTRAINTS_FIRST:
        return f"{constraints}\n\n{text}"
    separators = ["\n", "\n\n"] if "\n" in constraints + text else [" ", "\n", "\n\n"]
    return f"{text}{rng.choice(separators)}{constraints}"
