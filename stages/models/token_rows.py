"""Rows as they are trained: template, mask and end of turn, token by token, for a page and for a terminal."""

from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from stages.models.contract import Contract, is_running_text
from stages.models.rendering import ContractError
from stages.store.records import Message

KINDS = {
    "end_of_turn": "end of turn",
    "end_of_text": "end of text",
    "trained": "trained",
    "context": "context",
}


@dataclass
class TokenRow:
    """A row: its title, its tokens as `Contract.describe_tokens` returns them, and a note on one that is left out or is a
    running text."""

    title: str
    tokens: list[dict[str, Any]] = field(default_factory=list)
    note: str = ""


def token_row(title: str, contract: Contract, conversation: list[Message]) -> TokenRow:
    """Return a conversation as a training reads it, or why it is left out."""
    try:
        ids, trained = contract.example(conversation)
    except ContractError as reason:
        return TokenRow(title, note=f"left out: {reason}")
    is_text = is_running_text(conversation)
    note = "running text, without chat marks" if is_text else ""
    return TokenRow(title, contract.describe_tokens(ids, trained, is_text), note)


def kind_of(token: dict[str, Any]) -> str:
    if not token["trained"]:
        return "context"
    for kind in ("end_of_turn", "end_of_text"):
        if token.get(kind):
            return kind
    return "trained"


def row_in_words(row: TokenRow) -> str:
    """Return a row as lines of text: a line for each run of tokens of one kind, with bars between its tokens."""
    notes = [row.note] if row.note else []
    if row.tokens:
        trained = sum(token["trained"] for token in row.tokens)
        notes.insert(0, f"{len(row.tokens):,} tokens, {trained:,} trained")
    lines = [f"{row.title}: {'; '.join(notes)}"]
    for kind, run in groupby(row.tokens, kind_of):
        text = "|".join(token["text"] for token in run)
        lines.append(f"  {KINDS[kind]:12}{text!r}")
    return "\n".join(lines)
