"""Tests of prompt ids: they never change, since existing nodes depend on them."""

import pytest

from stages.store.records import Message, content_id, prompt_id
from stages.store.splits import conversation_of, draw_order, draw_split

TEXTS = ("Say it.", 'a "quoted"\\ word', "ä é 😀 \u2028", "tab\tand\x00zero", "")


@pytest.mark.parametrize("text", TEXTS)
def test_a_prompt_has_the_id_of_its_turns_as_json(text: str) -> None:
    turns: list[Message] = [{"role": "user", "content": text}]
    plain = [["user", " ".join(text.lower().split())]]
    assert prompt_id(turns) == content_id(plain)
    spread: list[Message] = [{"role": "user", "content": f"  {text.upper()}\n"}]
    assert prompt_id(spread) == prompt_id(turns), "whatever its case and white space"


@pytest.mark.parametrize(
    "other", ["Zu\u0308rich", "Z\u200bürich", "\ufeffZürich", "Zü\u00adrich", "ZÜRICH "]
)
def test_prompts_that_look_alike_are_one_prompt(other: str) -> None:
    turns = [[{"role": "user", "content": text}] for text in ("Zürich", other)]
    assert prompt_id(turns[0]) == prompt_id(turns[1])


def test_a_system_message_does_not_decide_the_split_of_a_conversation() -> None:
    """It may hold the time of day, which differs between the rows of one conversation."""
    ask = {"role": "user", "content": "Hello"}
    systems = [[{"role": "system", "content": f"It is {hour}:00."}] for hour in range(3)]
    talks: list[list[Message]] = [
        [ask],
        [*systems[0], ask],
        [
            *systems[1],
            ask,
            {"role": "assistant", "content": "Hi"},
            {"role": "user", "content": "?"},
        ],
    ]
    assert len({conversation_of(prompt_id(talk), talk, None) for talk in talks}) == 1
    of_groups = {conversation_of(prompt_id(talk), talk, "g") for talk in talks}
    assert len(of_groups) == 1
    assert conversation_of(prompt_id(systems[0]), systems[0], None) == prompt_id(systems[0])


def test_prompts_of_a_split_are_drawn_from_every_source() -> None:
    """A source that gives 10% of its prompts to the test gives those with the highest ids."""
    ids = [prompt_id([{"role": "user", "content": str(i)}]) for i in range(3_000)]
    last = {i for i in ids[:2_500] if draw_split(i, {"sft": 0.9, "test": 0.1}) == "test"}
    whole = [*last, *ids[2_500:]]
    assert last.isdisjoint(sorted(whole)[:200])
    drawn = sorted(whole, key=draw_order)[:200]
    assert len(last.intersection(drawn)) == pytest.approx(200 * len(last) / len(whole), abs=25)
