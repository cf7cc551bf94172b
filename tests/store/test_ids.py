"""Tests of prompt ids: they never change, since existing nodes depend on them, and convert to numbers without loss."""

import json

import pytest

from stages.curation.joining import ids_to_numbers, numbers_to_ids
from stages.store.records import Message, content_id, prompt_id

TEXTS = ("Say it.", 'a "quoted"\\ word', "ä é 😀 \u2028", "tab\tand\x00zero", "")


@pytest.mark.parametrize("text", TEXTS)
def test_a_prompt_has_the_id_of_its_turns_as_json(text: str) -> None:
    turns: list[Message] = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": text}]
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
