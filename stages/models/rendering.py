"""Render conversations with a model's chat template, a program from outside, as transformers renders them."""

import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime

from transformers import PreTrainedTokenizerBase

from stages.config.errors import UserError
from stages.store.records import Message
from stages.store.templates import TemplateFault, guard_template, template_errors

# Every template is tried on these conversations, and contract.json stores their tokens.
GOLDEN: list[list[Message]] = [
    [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Blue."}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2 + 2?\n"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "Größer als 3? {yes/no}"},
        {"role": "assistant", "content": "- ja, 日本"},
    ],
]
Tokens = tuple[list[int], list[bool]]  # token ids, and True for each trained token
# A call for today's date in a template becomes a fixed date, so that every stage renders the same tokens on every day.
# Llama 3.2's template falls back on this date.
CLOCK, DATE = re.compile(r"""strftime_now\s*\(\s*(["'])(.*?)\1\s*\)"""), datetime(2024, 7, 26)


class ContractError(UserError):
    """A rendering that breaks the contract."""


def tokenize_conversations(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[list[Message]],
    to_answer: bool = False,
) -> list[Tokens]:
    """Return the token ids of conversations, and which of them the template marks as the assistant's. `to_answer`: the
    assistant is to begin the next message.
    Raise TemplateFault if the template cannot render a conversation. UserError: if the template is not valid Jinja."""
    if not conversations:
        return []
    marked = "endgeneration" in str(tokenizer.chat_template)
    with template_errors():
        encoding = tokenizer.apply_chat_template(
            conversations,
            add_generation_prompt=to_answer,
            return_dict=True,
            return_assistant_tokens_mask=marked,
        )
    rows = encoding["input_ids"]
    masks = encoding["assistant_masks"] if marked else [[0] * len(ids) for ids in rows]
    return [(ids, [*map(bool, mask)]) for ids, mask in zip(rows, masks, strict=True)]


def undated(template: str) -> str:
    """Return a chat template with a fixed date instead of today's."""
    return CLOCK.sub(lambda call: repr(DATE.strftime(call[2])), template)


def added_tokens_after(tokenizer: PreTrainedTokenizerBase, ids: list[int], text: str) -> list[int]:
    """Return the special and other added tokens that follow the last occurrence of a text in token ids."""
    end = len(ids)
    while text in tokenizer.decode(ids[: end - 1]):
        end -= 1
    return [i for i in ids[end:] if i in tokenizer.added_tokens_decoder]


def validate_chat_template(tokenizer: PreTrainedTokenizerBase, key: str) -> None:
    """Raise UserError if the tokenizer's chat template is not Jinja, or does not end. A template may refuse a golden
    conversation: the error then comes when the template is used."""
    if tokenizer.chat_template:
        way_out = "Mend it in tokenizer_config.json or chat_template.jinja"
        with guard_template(f"{key}, chat_template", way_out), suppress(TemplateFault):
            tokenize_conversations(tokenizer, GOLDEN)
