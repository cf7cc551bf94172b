"""Generated tasks: references pass their checks, other answers fail them, and nothing held out is trained."""

import random
import re
from collections import Counter

import pytest

from stages.store.records import Example
from stages.tasks.checks import share_passed
from stages.tasks.generator import FAMILIES, Family, generate, known_families

COUNTS = {
    "test": 600,
    "unseen_phrasings": 300,
    "unseen_tasks": 200,
    "rephrased": 60,
    "validation": 200,
    "preference": 1200,
    "sft": 900,
}
EXAMPLES = generate(7, COUNTS, [])
TRAINED = [e for e in EXAMPLES if e.split in ("sft", "preference")]
HELD_OUT = [e for e in EXAMPLES if e.split in ("validation", "test")]


def test_every_reference_passes_its_own_checks() -> None:
    assert all(share_passed(e.checks, str(e.reference)) == 1 for e in EXAMPLES)


def corrupted(text: str, rng: random.Random) -> str:
    """One edit: a character that is no white space (which JSON ignores) dropped, doubled or replaced."""
    place = rng.choice([i for i, c in enumerate(text) if not c.isspace()])
    edit = rng.choice(["", text[place] * 2, rng.choice("abcxyzQ7,.")])
    return text[:place] + edit + text[place + 1 :]


@pytest.mark.parametrize("name", sorted(known_families()))
def test_checks_reject_what_is_no_answer(name: str) -> None:
    """At least 98% of empty, echoed, another prompt's and one-edit-corrupted answers (DESIGN's contract on labels)."""
    rng = random.Random(name)
    family = FAMILIES[name]
    examples = generate(3, {"unseen_tasks" if family.unseen else "test": 150}, [name])
    wrong = Counter[str]()
    for example in examples:
        other = rng.choice([e for e in examples if e.reference != example.reference])
        damaged = corrupted(str(example.reference), rng)
        answers = {
            "empty": "",
            "echo": example.messages[-1]["content"],
            "another": str(other.reference),
        }
        if damaged.strip() != example.reference:
            answers["one edit"] = damaged
        for kind, answer in answers.items():
            wrong[kind] += share_passed(example.checks, answer) == 1
    assert all(count <= 0.02 * len(examples) for count in wrong.values()), wrong


def pattern_of(phrasing: str) -> re.Pattern[str]:
    """Return the expression that matches a prompt in this phrasing, with a group for each slot."""
    pattern = ""
    for literal, slot in re.findall(r"([^{]*)(?:{(\w+)})?", phrasing):
        pattern += re.escape(literal)
        if slot:
            pattern += f"(?P={slot})" if f"<{slot}>" in pattern else f"(?P<{slot}>.+)"
    return re.compile(pattern, re.DOTALL)


def all_phrasings(family: Family) -> tuple[str, ...]:
    return family.phrasings + family.further


PATTERNS = {
    (name, phrasing): pattern_of(phrasing)
    for name, family in known_families().items()
    for phrasing in all_phrasings(family)
}


def phrasing_and_instance(example: Example) -> tuple[str, tuple[str, ...]]:
    """Return a prompt's phrasing, and its instance: the family, the turns before it and what fills the slots. They are
    read from the text alone."""
    text = example.messages[-1]["content"]
    before = [turn["content"] for turn in example.messages[:-1]]
    matches = list[tuple[str, tuple[str, ...]]]()
    for phrasing in all_phrasings(FAMILIES[example.task]):
        match = PATTERNS[example.task, phrasing].fullmatch(text)
        if match:
            slots = sorted(match.groupdict().items())
            matches.append((phrasing, (example.task, *before, *map(str, slots))))
    [match] = matches
    return match


def phrasings_of(*groups: str) -> dict[str, set[str]]:
    """Return by family the phrasings of these groups' prompts. A split other than the test is its own group."""
    phrasings = {name: set[str]() for name in FAMILIES}
    for example in EXAMPLES:
        group = example.group if example.split == "test" else example.split
        if group in groups:
            phrasings[example.task].add(phrasing_and_instance(example)[0])
    return phrasings


def test_every_group_has_as_many_prompts_as_it_should_and_no_prompt_is_in_two() -> None:
    texts = Counter(str(e.messages) for e in EXAMPLES)
    assert max(texts.values()) == 1
    instances = COUNTS | {"rephrased": 0}
    n_rephrased = sum(e.group == "rephrased" for e in EXAMPLES)
    assert len(EXAMPLES) == sum(instances.values()) + n_rephrased
    assert n_rephrased > COUNTS["rephrased"], "every phrasing of each instance"


def test_no_instance_of_a_test_or_validation_prompt_is_trained_in_any_phrasing() -> None:
    held_out = {phrasing_and_instance(e)[1] for e in HELD_OUT}
    assert [e for e in TRAINED if phrasing_and_instance(e)[1] in held_out] == []
    assert {e.request for e in TRAINED}.isdisjoint({e.request for e in HELD_OUT})


def test_families_of_the_unseen_tasks_are_in_no_other_group() -> None:
    unseen = {e.task for e in EXAMPLES if e.group == "unseen_tasks"}
    assert unseen == {name for name, family in FAMILIES.items() if family.unseen}
    assert unseen.isdisjoint(e.task for e in EXAMPLES if e.group != "unseen_tasks")


def test_a_held_out_phrasing_is_in_no_trained_prompt() -> None:
    """Nor is any phrasing of preference prompts in a demonstration, nor the one of validation in either."""
    held_out = phrasings_of("unseen_phrasings")
    demonstrated = phrasings_of("sft")
    preferred = phrasings_of("preference")
    validated = phrasings_of("validation")
    n_further = 0
    for name, family in FAMILIES.items():
        if family.unseen:
            continue
        trained = {*family.phrasings[:-1]}
        assert held_out[name] == {family.phrasings[-1]}
        assert demonstrated[name] <= trained
        assert preferred[name] <= trained | {*family.further[:-1]}
        assert validated[name] <= trained | {*family.further[-1:]}
        n_further += len(preferred[name] - trained) + len(validated[name] - trained)
    assert n_further > 0
