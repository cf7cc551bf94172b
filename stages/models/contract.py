"""The contract that SFT fixes and every later stage follows: template, end of turn, padding, BOS, the trained tokens.

SFT writes it beside the model as `contract.json`, with the tokens of two golden conversations. Every later stage
renders these again when it loads the model, and stops if the tokens differ: it would train or sample on others."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from stages.config.errors import UserError
from stages.models.loading import load_tokenizer
from stages.models.rendering import (
    GOLDEN,
    ContractError,
    Tokens,
    added_tokens_after,
    tokenize_conversations,
    undated,
)
from stages.store import safe_files
from stages.store.records import Message, content_id
from stages.store.sealed_json import load_json, require_keys
from stages.store.templates import TemplateFault

RENDERED_AT_ONCE = 16  # conversations


@dataclass
class Contract:
    """A tokenizer with the chat template and the stop tokens that SFT fixed.

    `stop_ids` end a completion; the first is the end of turn, which is trained. `marked` is True if the template marks
    the assistant's tokens. Only a model that had its SFT elsewhere (`sft=none`) may have a template without marks. Its
    last turn is then the assistant's, and the turns before it are the prompt."""

    tokenizer: PreTrainedTokenizerBase
    stop_ids: list[int]
    marked: bool = True

    def prompt(self, messages: list[Message]) -> list[int]:
        """Return the token ids of a conversation up to the point where the assistant begins."""
        [(ids, _)] = self.render([messages], to_answer=True)
        return ids

    def example(self, messages: list[Message]) -> Tokens:
        """Return the token ids of a conversation up to its last end of turn, and True for each trained token.
        Raise ContractError if no token is trained, a message contains the end-of-turn token as text, or the prompt's
        tokens are not a prefix of the conversation's."""
        (tokens,) = self._examples_at_once([messages])
        return tokens

    def examples(self, conversations: Iterable[list[Message]]) -> Iterator[Tokens | ContractError]:
        """Yield `example` of each conversation, or its error, RENDERED_AT_ONCE for each slow call of the tokenizer."""
        remaining = iter(conversations)
        while batch := list(islice(remaining, RENDERED_AT_ONCE)):
            try:
                yield from self._examples_at_once(batch)
            except ContractError:  # rendering one by one finds the conversation at fault
                for messages in batch:
                    try:
                        yield self.example(messages)
                    except ContractError as error:
                        yield error

    def _examples_at_once(self, conversations: list[list[Message]]) -> list[Tokens]:
        for end in map(str, self.tokenizer.convert_ids_to_tokens(self.stop_ids)):
            if any(end in message["content"] for message in chain.from_iterable(conversations)):
                raise ContractError(f"a message holds {end}, which ends a turn")
        questions = [messages[:-1] for messages in conversations if len(messages) > 1]
        prompts, wholes = iter(self.render(questions, to_answer=True)), self.render(conversations)
        return [
            self._validated_example(next(prompts)[0] if len(messages) > 1 else [], ids, marked)
            for messages, (ids, marked) in zip(conversations, wholes, strict=True)
        ]

    def _validated_example(self, prompt: list[int], ids: list[int], mask: list[bool]) -> Tokens:
        """Return ids and trained tokens of one conversation, from its prompt's ids and the template's mask. Without
        marks, every token from the prompt to the next end of turn is trained."""
        if self.marked:
            trained = self._without_tail(ids, mask)
        else:
            last = next((i for i in range(len(prompt), len(ids)) if ids[i] == self.stop_ids[0]), -1)
            trained = [len(prompt) <= i <= last for i in range(len(ids))]
        if ids[: len(prompt)] != prompt:
            raise ContractError("the prompt's tokens are not a prefix of the conversation's tokens")
        start = len(prompt)
        # The template's mask is made from characters. With byte fallback, each byte of a run of unknown characters
        # covers the characters of the whole run. If a run begins in the prompt and ends in the answer, the mask begins
        # in the prompt, and this loop removes the prompt's tokens from it.
        while start and trained[start - 1]:
            start -= 1
            trained[start] = False
        # Qwen 2.5's training template marks the end of the header in every turn. Earlier turns have no such prompt.
        header = ids[start : len(prompt)]
        for i in range(start if header else 0):
            if trained[i] and not trained[i - 1] and ids[i : i + len(header)] == header:
                trained[i : i + len(header)] = [False] * len(header)
        if not any(trained):
            raise ContractError("no token is trained: the conversation has no assistant turn")
        end = len(trained) - trained[::-1].index(True)
        if ids[end - 1] != self.stop_ids[0]:
            raise ContractError(
                f"the last trained token is {self.token(ids[end - 1])}, not the end of turn"
            )
        return ids[:end], trained[:end]

    def _without_tail(self, ids: list[int], mask: list[bool]) -> list[bool]:
        """Return the template's mask without marks after an end of turn: Gemma's template marks a line feed there."""
        trained, ended = list[bool](), False
        for token, marked in zip(ids, mask, strict=True):
            trained.append(marked and not ended)
            ended = marked and (ended or token == self.stop_ids[0])
        return trained

    def completion(
        self, prompt: list[Message], completion: list[Message], finished: bool = True
    ) -> tuple[list[int], list[int]]:
        """Return the token ids of a prompt and of its completion, which ends with an end of turn if `finished`."""
        ids, _ = self.example([*prompt, *completion])
        start = len(self.prompt(prompt))
        return ids[:start], ids[start:] if finished else ids[start:-1]

    def continuation(
        self, prompt: list[Message], turns: list[Message], context: int
    ) -> tuple[list[int], list[bool]]:
        """Return the token ids of the turns after a prompt, and True for each token of an assistant turn in them,
        except in the first `context` turns.
        Raise ContractError if a turn's tokens are not marked, or the prompt's tokens change when turns follow."""
        conversation, prompt_ids = [*prompt, *turns], self.prompt(prompt)
        ids, marks = self.example(conversation)
        start, first = len(prompt_ids), len(prompt) + context
        if ids[:start] != prompt_ids:
            raise ContractError("the prompt's tokens are not a prefix of the conversation's tokens")
        trained = [i >= first for i, turn in enumerate(conversation) if turn["role"] == "assistant"]
        return ids[start:], mask_turns(ids, marks, self.stop_ids[0], trained, last=False)[start:]

    def describe_tokens(self, ids: list[int], trained: list[bool]) -> list[dict[str, Any]]:
        """Return each token's text, and whether it is trained and ends a turn."""
        decode, tokens = self.tokenizer.decode, zip(ids, trained, strict=True)
        return [
            {"text": decode([i]), "trained": mark, "end_of_turn": i == self.stop_ids[0]}
            for i, mark in tokens
        ]

    def text(self, ids: list[int]) -> str:
        """Return the text of a completion's token ids, without the end of turn."""
        ids = ids[:-1] if ids and ids[-1] in self.stop_ids else ids
        return self.tokenizer.decode(ids, skip_special_tokens=False)  # type: ignore[no-any-return]

    def length(self, text: str, ended: bool = False) -> int:
        """Return the number of tokens of a text, with the end of turn if it `ended`."""
        return len(self.tokenizer(text, add_special_tokens=False).input_ids) + ended

    def token(self, token_id: int) -> str:
        return repr(self.tokenizer.convert_ids_to_tokens(token_id))

    @cached_property
    def digest(self) -> str:
        """The hash of vocabulary, template and stop tokens: with equal digests, token ids have the same meaning."""
        return content_id(self.tokenizer.get_vocab(), self.tokenizer.chat_template, self.stop_ids)

    def render(self, conversations: list[list[Message]], to_answer: bool = False) -> list[Tokens]:
        try:
            return tokenize_conversations(self.tokenizer, conversations, to_answer)
        except TemplateFault as error:
            raise ContractError(f"the chat template refuses a conversation: {error}") from error

    def facts(self) -> dict[str, Any]:
        """Return the parts of the contract that can be compared without rendering."""
        tokenizer = self.tokenizer
        template = str(self.tokenizer.chat_template).encode(errors="surrogatepass")
        return {
            "chat_template_sha256": hashlib.sha256(template).hexdigest(),
            "end_of_turn": {
                "token": tokenizer.convert_ids_to_tokens(self.stop_ids[0]),
                "id": self.stop_ids[0],
            },
            "stop_ids": self.stop_ids,
            "marked": self.marked,
            "pad": {"token": tokenizer.pad_token, "id": tokenizer.pad_token_id},
            "bos": {"token": tokenizer.bos_token, "id": tokenizer.bos_token_id},
            "vocabulary": len(tokenizer),
        }

    def golden(self) -> list[dict[str, Any]]:
        """Return the golden conversations with their token ids, and 1 for each trained token."""
        rendered = [(messages, *self.example(messages)) for messages in GOLDEN]
        return [
            {"messages": m, "ids": ids, "trained": [int(t) for t in trained]}
            for m, ids, trained in rendered
        ]

    def save(self, model: Path) -> None:
        """Write tokenizer and contract into the model folder."""
        self.tokenizer.save_pretrained(model)
        content = {**self.facts(), "golden": self.golden()}
        safe_files.write(model / "contract.json", json.dumps(content, indent=1, ensure_ascii=False))
        load_contract(model)  # raises if the saved tokenizer renders differently


def mask_turns(
    ids: list[int], trained: list[bool], end: int, turns: list[bool] | None, last: bool
) -> list[bool]:
    """Return which tokens of a conversation are trained: those of the assistant turns that `turns` selects (None:
    all), or only of the `last` one. `trained` marks the tokens of all assistant turns, each with its end of turn.
    Raise ContractError if no token remains, or the template does not mark every turn, so tokens are of no turn."""
    ends = [i for i, token in enumerate(ids) if trained[i] and token == end]
    if turns is not None and len(turns) != len(ends):
        raise ContractError(
            f"the template marks {len(ends)} of {len(turns)} answers, so its marks name no turns"
        )
    turns = [True] * len(ends) if turns is None else turns
    if last:
        turns = [False] * (len(turns) - 1) + turns[-1:]
    place, marks = 0, list[bool]()
    for i, marked in enumerate(trained):
        marks.append(marked and turns[place])
        place += marked and ids[i] == end
    if not any(marks):
        raise ContractError("no token is trained: the conversation's answers have weight 0")
    return marks


def load_contract(model: Path) -> Contract:
    """Read the contract of a model folder, and check it against its golden conversations.
    Raise ContractError if the folder's tokenizer renders anything differently from SFT."""
    stored = load_json(model / "contract.json", require_keys("stop_ids", "marked", "golden"))
    contract = Contract(load_tokenizer(model), stored["stop_ids"], stored["marked"])
    for key, value in contract.facts().items():
        if value != stored[key]:
            raise ContractError(
                f"{model}: {key} is {stored[key]} in contract.json, and {value} in the tokenizer."
            )
    for rendered, golden in zip(contract.golden(), stored["golden"], strict=True):
        if rendered != golden:
            decode = contract.tokenizer.decode
            raise ContractError(
                f"{model}: SFT rendered {decode(golden['ids'])!r} ({len(golden['ids'])} tokens), "
                f"this tokenizer renders {decode(rendered['ids'])!r} ({len(rendered['ids'])} tokens)."
            )
    return contract


class Continuation(Contract):
    """The prompt format for a base model without a chat template: text to continue, up to the first blank line."""

    def prompt(self, messages: list[Message]) -> list[int]:
        names = {
            "system": "Instruction",
            "user": "Question",
            "assistant": "Answer",
            "tool": "Result",
        }
        text = "\n\n".join(f"{names[m['role']]}: {m['content']}" for m in messages)
        return self.tokenizer(f"{text}\n\nAnswer:").input_ids  # type: ignore[no-any-return]

    def text(self, ids: list[int]) -> str:
        return super().text(ids).split("\n\n")[0]


class WithoutSystem(Contract):
    """The contract of a base model whose chat template refuses system turns: their text leads the first user turn."""

    def render(self, conversations: list[list[Message]], to_answer: bool = False) -> list[Tokens]:
        return super().render([*map(lead_with_system, conversations)], to_answer)


def lead_with_system(conversation: list[Message]) -> list[Message]:
    """Return a conversation whose system turn is the beginning of its first user turn."""
    system, *turns = conversation
    if system["role"] != "system" or not turns:
        return conversation
    return [turns[0] | {"content": f"{system['content']}\n\n{turns[0]['content']}"}, *turns[1:]]


class PlainText(Contract):
    """The prompt format of benchmarks for such a base model: the text of the first message, to continue."""

    def prompt(self, messages: list[Message]) -> list[int]:
        return self.tokenizer(messages[0]["content"]).input_ids  # type: ignore[no-any-return]

    def completion(
        self, prompt: list[Message], completion: list[Message], finished: bool = False
    ) -> tuple[list[int], list[int]]:
        """Return the token ids of a prompt without white space at its end, and those of the rest of the text."""
        text = prompt[0]["content"]
        ids = self.tokenizer(text + completion[0]["content"]).input_ids
        start = len(self.tokenizer(text.rstrip()).input_ids)
        return ids[:start], ids[start:]


def load_or_derive_contract(model: Path) -> Contract:
    """Read the contract of a model folder, or derive one from the tokenizer of a base model, which has none yet. A
    base without a chat template gets a `Continuation`: its training never had chat tokens. One whose template refuses
    system turns is `WithoutSystem`.
    Raise ContractError if the tokenizer breaks the contract in the folder."""
    if (model / "contract.json").exists():
        return load_contract(model)
    tokenizer = load_tokenizer(model)
    generation = model / "generation_config.json"
    stops = (
        load_json(generation, require_keys()).get("eos_token_id") if generation.exists() else None
    )
    # the first is the end of turn
    ends = [tokenizer.eos_token_id, *(stops if isinstance(stops, list) else [stops])]
    stop_ids = [i for i in dict.fromkeys(ends) if i is not None]
    if not tokenizer.chat_template:
        return Continuation(tokenizer, stop_ids)
    tokenizer.chat_template = undated(tokenizer.chat_template)
    # a template may end a turn by another token than EOS, as Qwen2.5-Base's does
    with suppress(UserError):
        [(ids, _)] = tokenize_conversations(tokenizer, GOLDEN[:1])
        end_of_turn = added_tokens_after(tokenizer, ids, GOLDEN[0][-1]["content"])[:1]
        stop_ids = [*dict.fromkeys(end_of_turn + stop_ids)]
    contract = Contract(tokenizer, stop_ids)
    try:
        contract.prompt([{"role": role, "content": role} for role in ("system", "user")])
    except ContractError:
        contract = WithoutSystem(tokenizer, stop_ids)
    return contract
