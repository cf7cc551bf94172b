"""Generated tasks: references pass their checks, other answers fail them, and nothing held out is trained."""

import json
import random
import re
from collections import Counter
from collections.abc import Callable

import pytest

from stages.config.errors import UserError
from stages.store.records import Example
from stages.tasks import generator
from stages.tasks.checks import share_passed
from stages.tasks.generator import (
    FAMILIES,
    Family,
    Instance,
    collect_families,
    generate,
    known_families,
)
from stages.tasks.words import NOUNS, NUMBERS

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


def number_of(text: str) -> int:
    return int(text) if text.isdigit() else NUMBERS.index(text)


def listing(text: str) -> list[str]:
    return text.split(", ")


def swap_words(slots: dict[str, str]) -> str:
    return slots["text"].replace(slots["old"], slots["new"], 1)


# What a reader would answer to a prompt of each family, from the texts of its slots alone
SOLUTIONS: dict[str, Callable[[dict[str, str]], object]] = {
    "count_items": lambda slots: NUMBERS[len(listing(slots["text"]))],
    "count_word": lambda slots: NUMBERS[listing(slots["text"]).count(slots["word"])],
    "add_words": lambda slots: NUMBERS[number_of(slots["a"]) + number_of(slots["b"])],
    "subtract_words": lambda slots: NUMBERS[number_of(slots["a"]) - number_of(slots["b"])],
    "sort_words": lambda slots: ", ".join(sorted(listing(slots["text"]))),
    "sort_numbers": lambda slots: ", ".join(sorted(listing(slots["text"]), key=int)),
    "reverse_list": lambda slots: ", ".join(listing(slots["text"])[::-1]),
    "pick_last": lambda slots: listing(slots["text"])[-1],
    "largest": lambda slots: max(listing(slots["text"]), key=int),
    "smallest": lambda slots: min(listing(slots["text"]), key=int),
    "replace_word": swap_words,
    "remove_word": lambda slots: slots["text"].replace(f"{slots['word']} ", "", 1),
    "end_with": lambda slots: f"{slots['text']} {slots['ending']}",
    "start_with": lambda slots: f"{slots['start']} {slots['text']}",
    "twice": lambda slots: f"{slots['text']}\n{slots['text']}",
    "uppercase": lambda slots: slots["text"].upper(),
    "lowercase": lambda slots: slots["text"].lower(),
    "title_case": lambda slots: slots["text"].title(),
    "quoted": lambda slots: f'"{slots["text"]}"',
    "bracketed": lambda slots: f"[{slots['text']}]",
    "semicolons": lambda slots: slots["text"].replace(",", ";"),
    "last_word": lambda slots: slots["text"].removesuffix(".").split()[-1],
    "first_word": lambda slots: slots["text"].split()[0],
    "extract_number": lambda slots: re.findall(r"\d+", slots["text"])[0],
    "extract_email": lambda slots: re.findall(r"\w+@\w+\.\w+", slots["text"])[0],
    "one_per_line": lambda slots: slots["text"].replace(", ", "\n"),
    "table_row": lambda slots: f"| {slots['text'].replace(', ', ' | ')} |",
    "loud_quote": lambda slots: f'"{slots["text"].upper()}"',
    "json_list": lambda slots: json.dumps(listing(slots["text"])),
}
PROMPTS = generate(11, {"test": 1500, "unseen_tasks": 1500}, [])


def slots_of(example: Example) -> dict[str, str]:
    phrasing, _ = phrasing_and_instance(example)
    match = PATTERNS[example.task, phrasing].fullmatch(example.messages[-1]["content"])
    assert match
    return match.groupdict()


@pytest.mark.parametrize("name", SOLUTIONS)
def test_a_reference_is_the_answer_that_the_text_asks_for(name: str) -> None:
    examples = [e for e in PROMPTS if e.task == name]
    assert len(examples) > 20
    for example in examples:
        assert example.reference == SOLUTIONS[name](slots_of(example))


def test_a_neighbour_is_one_step_away_within_the_numbers_that_have_words() -> None:
    sides = Counter[str]()
    for example in PROMPTS:
        if example.task == "neighbour":
            slots = slots_of(example)
            step = {"after": 1, "before": -1}[slots["side"]]
            assert NUMBERS.index(str(example.reference)) - number_of(slots["number"]) == step
            sides[slots["side"]] += 1
    assert min(sides.values()) > 10


def test_the_animals_stand_among_nouns_of_two_other_kinds() -> None:
    for example in PROMPTS:
        if example.task == "extract_animals":
            words = listing(slots_of(example)["text"])
            animals = listing(str(example.reference))
            rest = {word for word in words if word not in animals}
            assert [word for word in words if word in NOUNS["animal"]] == animals
            assert len(rest & {*NOUNS["fruit"]}) == len(rest & {*NOUNS["tool"]}) == 1


def test_the_odd_word_is_one_of_four_and_the_others_are_of_one_kind() -> None:
    for example in PROMPTS:
        if example.task == "odd_one_out":
            words = listing(slots_of(example)["text"])
            words.remove(str(example.reference))
            assert len(words) == 3
            assert any({*words} <= {*nouns} for nouns in NOUNS.values())


def test_every_reference_of_a_choice_is_drawn() -> None:
    """A family whose answer is always the same would be learnt without reading the prompt."""
    answers = Counter((e.task, e.reference) for e in PROMPTS)
    for name in ("sentiment", "topic", "question_or_statement", "is_it_true", "classify_noun"):
        counts = [count for (task, _), count in answers.items() if task == name]
        assert len(counts) in (2, 3)
        assert min(counts) > 0.15 * sum(counts)
    for name in ("who_did_it", "where_from", "which_colour"):
        drawn = [e.reference for e in PROMPTS if e.task == name]
        assert 0.15 < drawn.count("not stated") / len(drawn) < 0.55


def one_to_nine(rng: random.Random) -> Instance:
    number = str(rng.randint(1, 9))
    return Instance({"text": number}, number, [])


def test_families_of_ones_own_join_those_that_are_named() -> None:
    with collect_families() as own:
        generator.family("own", phrasings="Repeat {text}.\nSay {text} again.")(one_to_nine)
    assert "one_to_nine" not in FAMILIES
    examples = generate(0, {"sft": 10}, ["uppercase"], own)
    assert Counter(e.task for e in examples) == {"one_to_nine": 5, "uppercase": 5}
    assert {*Counter(e.task for e in generate(0, {"sft": 200}, [], own))} > {
        "one_to_nine",
        "plural",
    }
    with pytest.raises(UserError, match=r"data\.own: .*uppercase"):
        generate(0, {"sft": 1}, [], {"uppercase": own["one_to_nine"]})
    assert len(generate(0, {"sft": 9}, ["one_to_nine"], own)) == 9
    with pytest.raises(UserError, match=r"data\.tasks\.sft: .*one_to_nine"):
        generate(0, {"sft": 10}, ["one_to_nine"], own)


@pytest.mark.parametrize(
    ("counts", "families", "word"),
    [
        ({"sft": 1}, ["upercase"], "uppercase"),
        ({"unseen_tasks": 1}, ["uppercase"], r"data\.tasks\.unseen_tasks=1"),
    ],
)
def test_a_group_that_cannot_be_drawn_is_refused_with_its_key(
    counts: dict[str, int], families: list[str], word: str
) -> None:
    with pytest.raises(UserError, match=word):
        generate(0, counts, families)


def test_a_small_group_without_members_of_its_own_is_no_error_if_it_is_empty() -> None:
    assert generate(0, {"unseen_tasks": 0, "sft": 3}, ["uppercase"])
