"""Faults of template, tokenizer and stops: what was trained is not what a server will send."""

from stages.config.errors import UserError
from stages.extras.examine.findings.finding import Finding, NotEnough
from stages.extras.examine.findings.sides import Examined, Side
from stages.models.contract import Contract, load_or_derive_contract
from stages.models.rendering import ContractError
from stages.store.records import Message
from stages.store.text_units import count_shared_prefix

SHOWN = 40  # characters of a difference


def template_missing(examined: Examined) -> list[Finding]:
    if examined.after.tokenizer.chat_template:
        return []
    start = "one" if examined.from_chat else "none either"
    seen = f"its tokenizer has no chat template, and {examined.before.title} has {start}"
    return examined.fact("template_missing", seen)


def template_changed(examined: Examined) -> list[Finding]:
    if not (examined.before.tokenizer.chat_template and examined.after.tokenizer.chat_template):
        return []
    compared = 0
    contracts = [template_of(side) for side in (examined.before, examined.after)]
    for conversation in examined.conversations:
        before, after = (rendered(contract, conversation) for contract in contracts)
        if before is None or after is None:
            continue
        compared += 1
        if before == after:
            continue
        start = count_shared_prefix(before, after)
        old, new = before[start:][:SHOWN], after[start:][:SHOWN]
        seen = f"its template writes {new!r} where that of {examined.before.title} writes {old!r}"
        return examined.fact("template_changed", seen)
    if not compared:
        raise NotEnough("one of both templates refuses every conversation: add rows to label.path")
    return []


def template_of(side: Side) -> Contract | None:
    """Return the contract of the template that came; None if that cannot be used at all."""
    try:
        return load_or_derive_contract(side.came)
    except (ContractError, UserError):
        return None


def rendered(contract: Contract | None, conversation: list[Message]) -> str | None:
    """Return a conversation in the template that came; None if that refuses it."""
    if contract is None:
        return None
    try:
        return contract.render(conversation)
    except ContractError:
        return None


def tokenizer_changed(examined: Examined) -> list[Finding]:
    for conversation in examined.conversations:
        for turn in conversation:
            before, after = (
                side.tokenizer(turn["content"], add_special_tokens=False).input_ids
                for side in (examined.before, examined.after)
            )
            if before != after:
                text = turn["content"][:SHOWN]
                seen = f"its tokenizer reads {text!r} as other tokens than that of {examined.before.title}"
                return examined.fact("tokenizer_changed", seen)
    return []


def stop_missing(examined: Examined) -> list[Finding]:
    end, stops = examined.after.end_of_turn, examined.after.stops
    if end in stops:
        return []
    shown = ", ".join(stops) or "nothing"
    start = ", ".join(examined.before.stops) or "nothing"
    seen = f"its turns end with {end}, and servers stop at {shown} alone ({examined.before.title}: {start})"
    return examined.fact("stop_missing", seen)
