"""Render conversations with a chat template, which is a program from outside, in a process with limits."""

from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from stages.config.errors import UserError
from stages.sandbox.jinja_process import Rendered, TemplateFault, name_setting, read_facts, render
from stages.store.records import Message

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


class ContractError(UserError):
    """A rendering that breaks the contract."""


class Conversation(NamedTuple):
    """Messages, and `to_answer`: True if the assistant is to begin the next message."""

    messages: list[Message]
    to_answer: bool = False


def tokenize_conversations(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation]) -> list[Tokens]:
    """Return the token ids of conversations, and which of them the template marks as the assistant's.
    Raise TemplateFault if the template cannot render a conversation. Unbounded: if the template takes too much time or
    memory, or produces too much text."""
    texts = render_conversations(tokenizer, conversations)
    encoding = tokenizer([rendered.text for rendered in texts], add_special_tokens=False, return_attention_mask=False)
    tokens = list[Tokens]()
    for row, (ids, (_, spans)) in enumerate(zip(encoding["input_ids"], texts, strict=True)):
        marked = [False] * len(ids)
        for start, end in spans:
            first = encoding.char_to_token(row, start)
            last = encoding.char_to_token(row, end - 1) if end else None
            if first is None:
                break
            after = last + 1 if last else len(ids)
            marked[first:after] = [True] * len(marked[first:after])
        tokens.append((ids, marked))
    return tokens


def render_conversations(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation]) -> list[Rendered]:
    """Return the text of conversations, with the same variables that transformers gives to a template."""
    variables = {**tokenizer.special_tokens_map, "tools": None, "documents": None}
    values = [{**variables, "messages": c.messages, "add_generation_prompt": c.to_answer} for c in conversations]
    return render(read_chat_template(tokenizer), values, chat=True)


def read_chat_template(tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise ContractError(f"the tokenizer has several chat templates, but none called default: {error}") from error


def validate_chat_template(tokenizer: PreTrainedTokenizerBase, key: str) -> None:
    """Raise UserError if the tokenizer's chat template is not Jinja or exceeds its limits. A template may refuse a
    golden conversation: the error then comes when the template is used."""
    if tokenizer.chat_template:
        with name_setting(f"{key}, chat_template", "Mend it in tokenizer_config.json or chat_template.jinja"):
            read_facts(read_chat_template(tokenizer), chat=True)
            with suppress(TemplateFault):
                render_conversations(tokenizer, [Conversation(messages) for messages in GOLDEN])
