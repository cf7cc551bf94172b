"""Instructions with a reference answer and checks, generated from a seed by task families. A family is a function of a
random generator. The last phrasing of each family is held out from training, and so are whole families: the FLAN
experiment (arXiv:2109.01652) in miniature. A prompt that needs no reference answer costs little, so those of split
preference have further phrasings, which no demonstration has; validation has one more that nothing trains on."""

import importlib
import inspect
import pkgutil
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from stages.config.blocks.data import SPLIT_OF_GROUP
from stages.config.errors import UserError, suggest
from stages.config.installation import read_beside
from stages.store.records import Check, Example, Message, content_id, prompt_id
from stages.tasks import families as family_modules
from stages.tasks.words import split_wordings


@dataclass
class Instance:
    """An instruction without its phrasing: the slots' values, its reference and checks, and the turns `before` it."""

    slots: dict[str, str]
    reference: str
    checks: list[Check]
    before: list[Message] = field(default_factory=list)


@dataclass(frozen=True)
class Family:
    name: str
    kind: str
    phrasings: tuple[str, ...]
    # phrasings of preference prompts alone; the last is of validation prompts alone
    further: tuple[str, ...]
    unseen: bool
    # kinds of constraint that its instructions also train (`constraint.py`)
    trains: tuple[str, ...]
    make: Callable[[random.Random], Instance]

    def phrasings_of(self, group: str) -> tuple[str, ...]:
        """Return the phrasings from which those of a group's prompts are drawn, with equal chances."""
        trained, held_out = self.phrasings[:-1], self.phrasings[-1:]
        if group == "unseen_phrasings":
            return held_out
        if group == "preference":
            return trained + self.further[:-1]
        # As in the test, about half of the validation prompts have phrasings that are trained.
        return trained + self.further[-1:] * len(trained) if group == "validation" else trained


FAMILIES: dict[str, Family] = {}
# Groups of prompts, in the order of generation. Tests come first, so that a prompt drawn twice belongs to the test.
TRAINED = ("preference", "sft")
GROUPS = ("test", "unseen_phrasings", "unseen_tasks", "rephrased", "validation", *TRAINED)


def family(
    kind: str, phrasings: str | None = None, unseen: bool = False, trains: str = ""
) -> Callable[[Callable[[random.Random], Instance]], Callable[[random.Random], Instance]]:
    """Register the decorated function as a family.

    Args:
        kind: the group it is shown under.
        phrasings: one per line, " | " for a blank line; the last is kept out of training. By default, those under the
            function's name in the YAML file beside its module, and further ones under `further`.
        unseen: keeps the family out of training altogether.
        trains: the kinds of constraint on open answers that it asks for as well."""

    def register(make: Callable[[random.Random], Instance]) -> Callable[[random.Random], Instance]:
        name = make.__name__
        texts: Any = read_beside(inspect.getfile(make)) if phrasings is None else {name: phrasings}
        forms = split_wordings(texts[name], "\n\n")
        further = split_wordings(texts.get("further", {}).get(name, ""), "\n\n")
        FAMILIES[name] = Family(name, kind, forms, further, unseen, tuple(trains.split()), make)
        return make

    return register


def one_of(options: list[str], right: str) -> list[Check]:
    """Return the checks of an answer from a list: `one_of` the options, and equal to the right one."""
    return [Check("one_of", {"options": options}), Check("equals", {"text": right})]


def exactly(right: str, kind: str, **params: Any) -> list[Check]:
    """Return the checks of an exact answer: a property of the right answer, and equality with it."""
    return [Check(kind, params), Check("equals", {"text": right})]


def exact_task(text: str, right: str, kind: str, /, **params: Any) -> Instance:
    """Return the instance of a task on a text with one exact answer, which has a property."""
    return Instance({"text": text}, right, exactly(right, kind, **params))


def as_json(right: Any) -> list[Check]:
    """Return the checks of an answer in JSON: that it is JSON, and its value."""
    return [Check("is_json"), Check("json", {"value": right})]


def known_families() -> dict[str, Family]:
    """Return every family by name, from the modules in `families/`."""
    for module in pkgutil.iter_modules(family_modules.__path__):
        importlib.import_module(f"{family_modules.__name__}.{module.name}")
    return dict(sorted(FAMILIES.items()))


@contextmanager
def collect_families() -> Iterator[dict[str, Family]]:
    """Yield the families that are registered inside the context, without adding them to the built-in families."""
    known_families()
    builtin, registered = dict(FAMILIES), dict[str, Family]()
    FAMILIES.clear()
    try:
        yield registered
        registered |= FAMILIES
    finally:
        FAMILIES.clear()
        FAMILIES.update(builtin)


def generate(
    seed: int,
    counts: Mapping[str, int],
    families: list[str],
    own: Mapping[str, Family] | None = None,
) -> list[Example]:
    """Return examples of each group in GROUPS, with families in turn and no prompt twice. No trained prompt is another
    phrasing of a test or validation prompt. `own`: the user's families.
    Raise UserError for an unknown or duplicate family, or a group without a family."""
    chosen = known_families()
    for name in own or {}:
        if name in chosen:
            raise UserError(f"data.own: the task family {name!r} already exists. Rename yours.")
    chosen |= own or {}
    for name in families:
        if name not in chosen:
            raise UserError(
                f"data.tasks.families: {name!r} is not a task family.{suggest(name, chosen)}"
            )
    if families:
        chosen = {name: chosen[name] for name in sorted({*families, *(own or {})})}
    examples, held_out = dict[str, Example](), set[str]()
    for group in GROUPS:
        if group == TRAINED[0]:
            held_out = {example.request for example in examples.values()}
        members = [f for f in chosen.values() if f.unseen == (group == "unseen_tasks")]
        if counts.get(group, 0) and not members:
            raise UserError(
                f"data.tasks.{group}={counts[group]}: data.tasks.families has no family for this group. Add one."
            )
        for i in range(counts.get(group, 0)):
            drawn = draw(
                members[i % len(members)],
                group,
                f"{seed}/{group}/{i // len(members)}",
                examples,
                held_out,
            )
            examples |= {example.id: example for example in drawn}
    return list(examples.values())


def draw(
    family: Family, group: str, key: str, earlier: Mapping[str, Example], held_out: set[str]
) -> list[Example]:
    """Return an instance in one phrasing, or in all phrasings for group `rephrased`. Its prompts are none of the
    `earlier` ones, which are given by id, and its request is none of `held_out`."""
    for attempt in range(1000):
        rng = random.Random(f"{key}/{family.name}/{attempt}")
        instance = family.make(rng)
        phrasings = (
            family.phrasings if group == "rephrased" else (rng.choice(family.phrasings_of(group)),)
        )
        drawn = [example(family, group, instance, phrasing) for phrasing in phrasings]
        if not any(e.id in earlier or e.request in held_out for e in drawn):
            return drawn
    raise UserError(
        f"data.tasks.{group}: the family {family.name} has too few different prompts. Lower the number."
    )


def example(family: Family, group: str, instance: Instance, phrasing: str) -> Example:
    messages = [*instance.before, {"role": "user", "content": phrasing.format(**instance.slots)}]
    return Example(
        id=prompt_id(messages),
        messages=messages,
        reference=instance.reference,
        source="tasks",
        task=family.name,
        split=SPLIT_OF_GROUP[group],
        kind=family.kind,
        group=group if SPLIT_OF_GROUP[group] == "test" and group != "test" else "seen",
        request=content_id(family.name, instance.slots, instance.before),
        checks=instance.checks,
    )
