"""Tests of prompt ids: they never change, since existing nodes depend on them, and convert to numbers without loss."""

import json

import pytest

from stages.curation.joining import ids_to_numbers, numbers_to_ids
from stages.store.records import Message, content_id, prompt_id
from stages.store.splits import draw_order, draw_split

TEXTS = ("Say it.", 'a "quoted"\\ word', "ä é 😀 \u2028", "tab\tand\x00zero", "")


@pytest.mark.parametrize("text", TEXTS)
def test_a_prompt_has_the_id_of_its_turns_as_json(text: str) -> None:
    turns: list[Message] = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": text},
    ]
    plain = [[turn["role"], " ".join(turn["content"].lower().split())] for turn in turns]
    assert prompt_id(turns) == content_id(plain) == content_id(json.loads(json.dumps(plain)))
    assert prompt_id([]) == content_id([])
    spread = [{**turn, "content": f"  {turn['content'].upper()}\n"} for turn in turns]
    assert prompt_id(spread) == prompt_id(turns), "whatever its case and white space"


def test_ids_are_numbers_and_back() -> None:
    ids = ["0" * 16, "f" * 16, "00000000000000ab", *map(content_id, TEXTS)]
    assert ids_to_numbers(ids).tolist() == [int(each, 16) for each in ids]
    assert numbers_to_ids(ids_to_numbers(ids)) == ids
    assert numbers_to_ids(ids_to_numbers([])) == []


def test_prompts_of_a_split_are_drawn_from_every_source() -> None:
    """A source that gives 10% of its prompts to the test gives those with the highest ids."""
    ids = [prompt_id([{"role": "user", "content": str(i)}]) for i in range(3_000)]
    last = [i for i in ids[:2_500] if draw_split(i, {"sft": 0.9, "test": 0.1}) == "test"]
    every = ids[2_500:]
    assert not {*last}.intersection(sorted([*last, *every])[:200])
    drawn = {*sorted([*last, *every], key=draw_order)[:200]}
    assert len(drawn.intersection(last)) == pytest.approx(
        200 * len(last) / len([*last, *every]), abs=25
    )
