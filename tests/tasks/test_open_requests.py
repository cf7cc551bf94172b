"""Open requests with constraints: the kinds in each group, and the answers that pass no prompt's checks."""

from collections import Counter

import pytest

from stages.config.blocks.data import OPEN_GROUPS, SPLIT_OF_GROUP
from stages.evaluation.retention import asked_length
from stages.store.records import Example
from stages.tasks.checks import share_passed
from stages.tasks.constraint import known_constraints, may_clash
from stages.tasks.open_requests import HOW_MANY, SIDES, TRAINED, generate, kinds_of_group

CONSTRAINTS = known_constraints()
COUNTS = dict.fromkeys(SIDES, 120) | dict.fromkeys(TRAINED, 600)


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return generate(7, COUNTS)


def kinds_of(example: Example) -> list[str]:
    return [check.kind for check in example.checks if check.kind in CONSTRAINTS]


def test_a_prompt_asks_for_kinds_of_its_side_alone(examples: list[Example]) -> None:
    for e in examples:
        assert {CONSTRAINTS[kind].side for kind in kinds_of(e)} <= {SIDES[e.group]}
        assert SPLIT_OF_GROUP[e.group] == e.split


def test_every_group_of_open_requests_has_its_side() -> None:
    assert {*SIDES} == {*OPEN_GROUPS}
    assert {*TRAINED} <= {*SIDES}


def test_prompts_differ_and_the_seed_decides_them(examples: list[Example]) -> None:
    assert len({e.id for e in examples}) == len(examples) == sum(COUNTS.values())
    assert generate(7, COUNTS) == examples
    assert {e.id for e in generate(8, COUNTS)}.isdisjoint(e.id for e in examples[:50])


def test_constraints_of_a_prompt_never_clash(examples: list[Example]) -> None:
    for e in examples:
        kinds = [CONSTRAINTS[kind] for kind in kinds_of(e)]
        assert not any(may_clash(one, other) for i, one in enumerate(kinds) for other in kinds[:i])


def test_no_held_out_request_is_trained(examples: list[Example]) -> None:
    trained = {e.request for e in examples if e.group in TRAINED}
    assert [e for e in examples if e.group not in TRAINED and e.request in trained] == []


def test_no_trained_prompt_contains_the_text_of_a_held_out_request(examples: list[Example]) -> None:
    """Plain prompts are a request alone, without a constraint."""
    plain = [e.messages[0]["content"] for e in examples if e.group == "open_plain"]
    trained = [e.messages[0]["content"] for e in examples if e.group in TRAINED]
    assert len(plain) == COUNTS["open_plain"]
    assert [text for text in plain for prompt in trained if text in prompt] == []


def test_requested_lengths_leave_the_trained_prompts_as_they_are(examples: list[Example]) -> None:
    lengths = [e for e in examples if e.group == "open_lengths"]
    assert all(asked_length(e) for e in lengths) and len({e.task for e in lengths}) == 2
    assert [e for e in examples if e not in lengths] == generate(7, COUNTS | {"open_lengths": None})


def test_trained_prompts_have_the_mix_and_others_one_constraint(examples: list[Example]) -> None:
    counts = Counter(len(kinds_of(e)) for e in examples if e.split in ("sft", "preference"))
    for many, share in HOW_MANY.items():
        assert counts[many] / counts.total() == pytest.approx(share, abs=0.05)
    held_out = [e for e in examples if e.split in ("validation", "test")]
    assert {len(kinds_of(e)) for e in held_out if e.group != "open_plain"} == {1}
    assert {len(kinds_of(e)) for e in held_out if e.group == "open_plain"} == {0}


def test_kinds_of_a_test_have_as_many_prompts_each(examples: list[Example]) -> None:
    for group in ("unseen_kinds", "unseen_areas"):
        counts = Counter(e.task for e in examples if e.group == group)
        assert max(counts.values()) - min(counts.values()) <= 1
        assert counts.keys() == {kind.name for kind in kinds_of_group(group)}


def test_no_answer_passes_that_is_empty_an_echo_or_off_topic(examples: list[Example]) -> None:
    for e in examples:
        prompt = e.messages[-1]["content"]
        assert share_passed(e.checks, "") == 0
        assert share_passed(e.checks, prompt) < 1
        assert share_passed(e.checks, prompt.split()[0]) < 1
        assert share_passed(e.checks, "Nobody knows.") < 1


def test_requested_ranges_of_words_are_round_numbers(examples: list[Example]) -> None:
    ranges = [c.params for e in examples for c in e.checks if c.kind == "words_between"]
    assert {params["low"] for params in ranges} == {20, 30, 40, 50}
    assert {params["high"] - params["low"] for params in ranges} == {15, 20, 30}
