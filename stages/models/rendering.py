"""Rendering a chat template, which is a program of somebody's, in a process with bounds."""

from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from stages.config.errors import UserError
from stages.sandbox.jinja_process import Rendered, TemplateFault, blaming, facts_of, render
from stages.store.records import Message

# Conversations that every template is tried on, and whose rendering a contract keeps.
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
Tokens = tuple[list[int], list[bool]]  # ids, and which of them are trained


class ContractError(UserError):
    """A rendering that breaks the contract."""


class Conversation(NamedTuple):
    """Messages, and whether the assistant is to begin the next one."""

    messages: list[Message]
    to_answer: bool = False


def tokenize_conversations(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation]) -> list[Tokens]:
    """Return the token ids of conversations, and which of them the template marks as the assistant's.

    Raises:
        TemplateFault: where the template cannot render one.
        Unbounded: where it takes too much time or memory, or makes too much text.
    """
    texts = render_conversations(tokenizer, conversations)
    encoding = tokenizer([each.text for each in texts], add_special_tokens=False, return_attention_mask=False)
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
    """Return the text of conversations, with the same variables that transformers gives a template."""
    variables = {**tokenizer.special_tokens_map, "tools": None, "documents": None}
    values = [
        {**variables, "messages": each.messages, "add_generation_prompt": each.to_answer} for each in conversations
    ]
    return render(read_chat_template(tokenizer), values, chat=True)


def read_chat_template(tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise ContractError(f"the tokenizer has several chat templates and none called default: {error}") from error


def validate_chat_template(tokenizer: PreTrainedTokenizerBase, key: str) -> None:
    """Raise UserError for a chat template, where a tokenizer has one, that is not Jinja or has no bounds. One that
    refuses a conversation may be right to: it says so when it is used."""
    if tokenizer.chat_template:
        with blaming(f"{key}, chat_template", "Mend it in tokenizer_config.json or chat_template.jinja"):
            facts_of(read_chat_template(tokenizer), chat=True)
            with suppress(TemplateFault):
                render_conversations(tokenizer, [Conversation(messages) for messages in GOLDEN])
