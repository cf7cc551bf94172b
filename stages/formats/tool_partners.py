"""Find the call that each result of a tool belongs to. Templates pair calls and results by place, and files need not."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

CALL_ID_KEYS = ("id", "call_id", "toolUseId", "toolCallId")
# `id` comes last: of a turn, it may be the message's
RESULT_ID_KEYS = ("tool_call_id", "tool_use_id", "toolUseId", "toolCallId", "call_id", "id")


NAME_KEYS = ("name", "toolName")


class Link(NamedTuple):
    """What a file says of a call, or of the call that a result belongs to: its id and the function's name. Both may be
    empty."""

    id: str = ""
    name: str = ""

    @property
    def label(self) -> str:
        """The name or the id, for a person; empty if there is neither."""
        return self.name or self.id


def link_of_call(call: Any) -> Link:
    """Return the link of a call as OpenAI, Anthropic, Gemini or Bedrock writes it."""
    if not isinstance(call, dict):
        return Link()
    function = call.get("function")
    named = function if isinstance(function, dict) else call
    return Link(first_text(call, CALL_ID_KEYS), first_text(named, NAME_KEYS))


def link_of_result(result: Mapping[str, Any]) -> Link:
    """Return the link of a tool's turn, or of a part with a result."""
    return Link(first_text(result, RESULT_ID_KEYS), first_text(result, NAME_KEYS))


def first_text(values: Mapping[str, Any], keys: Sequence[str]) -> str:
    """Return the first value under these keys that is a text or a number; empty if there is none."""
    for key in keys:
        value = values.get(key)
        if isinstance(value, str | int) and str(value).strip():
            return str(value)
    return ""


def have_same_id(call: Link, result: Link) -> bool:
    return bool(call.id) and call.id == result.id


def have_same_name(call: Link, result: Link) -> bool:
    return may_be_partners(call, result) and bool(call.name) and call.name == result.name


def may_be_partners(call: Link, result: Link) -> bool:
    """Return True unless both have ids, which alone decide then."""
    return not (call.id and result.id)


# The first agreement that a result has with a call decides. With the last one, places decide.
AGREEMENTS: tuple[Callable[[Link, Link], bool], ...] = (
    have_same_id,
    have_same_name,
    may_be_partners,
)


def find_partners(calls: Sequence[Link], results: Sequence[Link]) -> dict[int, int]:
    """Return the index of the call by the index of each result that has one."""
    free_calls = dict(enumerate(calls))
    call_of_result = dict[int, int]()
    for agree in AGREEMENTS:
        for index, result in enumerate(results):
            if index in call_of_result:
                continue
            partners = [number for number, call in free_calls.items() if agree(call, result)]
            if partners:
                call_of_result[index] = partners[0]
                del free_calls[partners[0]]
    return call_of_result


def partner_error(
    calls: Sequence[Link], results: Sequence[Link], call_of_result: Mapping[int, int]
) -> str:
    """Return the error that a call has no result, or a result no call; empty if all have partners. Results without an id
    may belong to calls that are written as text, which nobody can count."""
    for index, result in enumerate(results):
        is_known = calls or result.id
        if is_known and index not in call_of_result:
            return f"a tool's result{of(result)} has no call"
    is_one_for_all = len(results) == 1 and not results[0].label
    if is_one_for_all:  # LLaMA-Factory writes the results of all calls as one text
        return ""
    answered = {*call_of_result.values()}
    for number, call in enumerate(calls):
        if number not in answered:
            return f"the tool call{of(call)} has no result"
    return ""


def of(link: Link) -> str:
    return f" {link.label!r:.40}" if link.label else ""
