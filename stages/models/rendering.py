"""Render conversations with a model's chat template, a program from outside, as transformers renders them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from transformers import PreTrainedTokenizerBase

from stages.config.errors import UserError
from stages.store.records import Message
from stages.store.templates import Forbidden, TemplateFault, guard_template, template_errors
from stages.store.thoughts import split_thought
from stages.store.tool_calls import Turn, as_fields

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
# In a template, today is this date, so that every stage renders the same tokens on every day. Llama 3.2's template
# falls back on it.
DATE = datetime(2024, 7, 26)
PARTS_OF_DATE = "YymdbBaAHIMSpj"  # of strftime
Encoded = tuple[list[int], list[tuple[int, int]]]
# Around each control token that a content spells: two code points that Unicode keeps from ever being characters.
SHIELD = "\ufdd0\ufdd1"


class ContractError(UserError):
    """A rendering that breaks the contract."""


@dataclass(frozen=True)
class Form:
    """What a template asks of a conversation. `leads`: it refuses system turns, whose text leads the first user turn.
    `parts`: it reads a content as a list of parts, as templates of models with images do. `splits`: it reads thoughts
    beside the content, and writes them with its own marks. `tools`: it reads tools, calls and results as fields of their
    own, and writes them in its own way. `results`: it has no turns of tools, whose results become a user's turn."""

    leads: bool = False
    parts: bool = False
    splits: bool = False
    tools: bool = False
    results: bool = False

    def merges(self, messages: Sequence[Message]) -> bool:
        """Return whether a turn of a conversation becomes part of a user's turn."""
        roles = {message["role"] for message in messages}
        return (self.leads and "system" in roles) or (self.results and "tool" in roles)

    def of(self, messages: Sequence[Message]) -> dict[str, Any]:
        """Return the arguments `conversation` and `tools` of `apply_chat_template` for a conversation."""
        turns, tools = as_fields(messages) if self.tools else ([*messages], None)
        if self.leads:
            turns = lead_with_system(turns)
        if self.results:
            turns = results_as_user(turns)
        if self.splits:
            turns = [*map(thought_apart, turns)]
        if self.parts:
            turns = [*map(in_parts, turns)]
        return {"conversation": turns, "tools": tools}


def in_parts(turn: Turn) -> Turn:
    return turn | {"content": [{"type": "text", "text": turn["content"]}]}


def thought_apart(turn: Turn) -> Turn:
    """Return an answer with its thought under the names that templates read."""
    thinking = split_thought(turn["content"].strip())
    if turn["role"] != "assistant" or thinking is None:
        return {**turn}
    names = dict.fromkeys(("reasoning_content", "thinking"), thinking.thought)
    return {**turn, "content": thinking.answer, **names}


def lead_with_system(conversation: Sequence[Turn]) -> list[Turn]:
    """Return a conversation whose system turn is the beginning of its first user turn."""
    system, *turns = conversation
    if system["role"] != "system" or not turns:
        return [*conversation]
    return [turns[0] | {"content": f"{system['content']}\n\n{turns[0]['content']}"}, *turns[1:]]


def results_as_user(conversation: Sequence[Turn]) -> list[Turn]:
    """Return a conversation in which the results of tools that follow each other are one turn of the user."""
    turns = list[Turn]()
    role = ""
    for turn in conversation:
        result = f"<tool_response>\n{turn['content']}\n</tool_response>"
        if turn["role"] != "tool":
            turns.append(turn)
        elif role != "tool":
            turns.append({"role": "user", "content": result})
        else:
            turns[-1]["content"] += f"\n{result}"
        role = turn["role"]
    return turns


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    form: Form = Form(),
    to_answer: bool = False,
) -> str:
    """Return the text of a conversation; `to_answer`: up to where the assistant begins the next turn.
    Raise TemplateFault if the template cannot render the conversation. UserError: if it is not valid Jinja."""
    with template_errors():
        text: str = tokenizer.apply_chat_template(
            **form.of(messages), tokenize=False, add_generation_prompt=to_answer
        )
    return text


def golden_conversations(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the golden conversations as a tokenizer's template renders them, without those that it refuses."""
    texts = list[str]()
    for messages in GOLDEN if tokenizer.chat_template else ():
        try:
            texts.append(render(tokenizer, messages))
        except Forbidden:
            raise
        except TemplateFault:
            continue
    return texts


def shield(text: str, control: re.Pattern[str]) -> str:
    """Return a content whose control tokens `encode` reads as plain text. Raise ContractError if it holds a SHIELD."""
    if SHIELD in text:
        raise ContractError("a message holds U+FDD0 and U+FDD1, which are no characters")
    return control.sub(rf"{SHIELD}\g<0>{SHIELD}", text)


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> Encoded:
    """Return the token ids of a rendered text, to which the tokenizer adds nothing, and the place of each token. What
    is shielded becomes the pieces of its text, even if it spells a control token."""
    ids = list[int]()
    offsets = list[tuple[int, int]]()
    place = 0
    is_shielded = False
    for part in text.split(SHIELD):
        encoded = tokenizer(
            part,
            add_special_tokens=False,
            return_offsets_mapping=True,
            split_special_tokens=is_shielded,
        )
        ids += encoded.input_ids
        offsets += [(place + start, place + end) for start, end in encoded.offset_mapping]
        place += len(part) + len(SHIELD)
        is_shielded = not is_shielded
    return ids, offsets


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the token ids of `encode`."""
    return encode(tokenizer, text)[0]


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return True if the tokenizer puts BOS before every text, as in the base model's training."""
    return tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]


def end_after(tokenizer: PreTrainedTokenizerBase, text: str, content: str) -> list[int]:
    """Return the token that ends the turn of this content, the last one of a text, as a list: the last of the special
    and other added tokens that follow it at once. Empty if none does."""
    ends = list[int]()
    for token in token_ids(tokenizer, text[text.rfind(content) + len(content) :].lstrip()):
        is_white_space = not tokenizer.decode([token]).strip()
        if is_white_space or token not in {*tokenizer.added_tokens_decoder, tokenizer.eos_token_id}:
            break
        ends = [token]
    return ends


def undated(template: str) -> str:
    """Return a chat template with a fixed date instead of today's, whatever format it asks for."""
    if "strftime_now" not in template:
        return template
    parts = "".join(f" | replace('%{part}', '{DATE:%{part}}')" for part in PARTS_OF_DATE)
    return (
        f"{{%- macro strftime_now(format) -%}}{{{{ format{parts} }}}}{{%- endmacro -%}}\n{template}"
    )


def with_arguments(template: str, arguments: Mapping[str, Any]) -> str:
    """Return a chat template that gives these values to its own arguments, whoever renders it."""
    lines = [f"{{%- set {name} = {value!r} -%}}\n" for name, value in arguments.items()]
    return "".join(lines) + template


def validate_chat_template(tokenizer: PreTrainedTokenizerBase, key: str) -> None:
    """Raise UserError if the tokenizer's chat template is not Jinja, does not end, or reaches for Python. A template may
    refuse a golden conversation: the error then comes when the template is used."""
    if tokenizer.chat_template:
        way_out = "Mend it in tokenizer_config.json or chat_template.jinja"
        with guard_template(f"{key}, chat_template", way_out):
            golden_conversations(tokenizer)
