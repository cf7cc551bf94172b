"""Faults of template, tokenizer and stops: what was trained is not what a server will send."""

from stages.config.errors import UserError
from stages.evaluation.examined.finding import Finding
from stages.evaluation.examined.sides import Examined, Side
from stages.models.contract import load_or_derive_contract
from stages.models.rendering import ContractError
from stages.store.records import Message
from stages.store.text_units import count_shared_prefix

SHOWN = 40  # characters of a difference


def template_missing(found: Examined) -> list[Finding]:
    if found.after.tokenizer.chat_template:
        return []
    start = "one" if found.from_chat else "none either"
    seen = f"its tokenizer has no chat template, and {found.before.title} has {start}"
    return found.fact("template_missing", seen)


def template_changed(found: Examined) -> list[Finding]:
    if not (found.before.tokenizer.chat_template and found.after.tokenizer.chat_template):
        return []
    for conversation in found.conversations:
        before, after = (rendered(side, conversation) for side in (found.before, found.after))
        if before is None or after is None or before == after:
            continue
        start = count_shared_prefix(before, after)
        old, new = before[start:][:SHOWN], after[start:][:SHOWN]
        seen = f"its template writes {new!r} where that of {found.before.title} writes {old!r}"
        return found.fact("template_changed", seen)
    return []


def rendered(side: Side, conversation: list[Message]) -> str | None:
    """Return a conversation in the template that came; None if that refuses it."""
    try:
        return load_or_derive_contract(side.came).render(conversation)
    except (ContractError, UserError):
        return None


def tokenizer_changed(found: Examined) -> list[Finding]:
    for conversation in found.conversations:
        for turn in conversation:
            before, after = (
                side.tokenizer(turn["content"], add_special_tokens=False).input_ids
                for side in (found.before, found.after)
            )
            if before != after:
                text = turn["content"][:SHOWN]
                seen = f"its tokenizer reads {text!r} as other tokens than that of {found.before.title}"
                return found.fact("tokenizer_changed", seen)
    return []


def stop_missing(found: Examined) -> list[Finding]:
    end, stops = found.after.end_of_turn, found.after.stops
    if end in stops:
        return []
    shown = ", ".join(stops) or "nothing"
    start = ", ".join(found.before.stops) or "nothing"
    seen = f"its turns end with {end}, and servers stop at {shown} alone ({found.before.title}: {start})"
    return found.fact("stop_missing", seen)
