"""The contract that SFT fixes and every later stage keeps: template, end of turn, padding, BOS, the trained tokens.

SFT writes it beside the model as `contract.json`, with golden renderings. Every later stage renders those again. One
that renders them differently would train or sample on other tokens than SFT did, so it stops.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from stages.models.loading import load_tokenizer
from stages.models.rendering import GOLDEN, ContractError, Conversation, Tokens, tokenize_conversations
from stages.sandbox.jinja_process import TemplateFault, Unbounded
from stages.store import safe_files
from stages.store.records import Message, content_id
from stages.store.sealed_json import having, load_json

RENDERED_AT_ONCE = 16  # conversations that are rendered at once
WAY_OUT = "Mend the template, or choose another: template=chatml or template=plain"


@dataclass
class Contract:
    """A tokenizer whose chat template keeps the contract.

    `stop_ids` end a completion; the first of them is the end of turn, which is trained. `marked` says whether the
    template marks the assistant's tokens. A template without marks is kept only for a model that comes with an SFT of
    its own (`sft=none`): the last turn of a conversation is then the assistant's, and all before it the prompt.
    """

    tokenizer: PreTrainedTokenizerBase
    stop_ids: list[int]
    marked: bool = True

    def prompt(self, messages: list[Message]) -> list[int]:
        """Token ids of the conversation so far, up to where the assistant begins."""
        [(ids, _)] = self._render([Conversation(messages, to_answer=True)])
        return ids

    def example(self, messages: list[Message]) -> Tokens:
        """Token ids of a whole conversation, cut after the last end of turn, and which of them are trained.

        Raises:
            ContractError: where nothing is trained, a message holds the end-of-turn token as text, or the prompt's
                tokens are no prefix of the conversation's.
        """
        (tokens,) = self._examples_at_once([messages])
        return tokens

    def examples(self, conversations: Iterable[list[Message]]) -> Iterator[Tokens | ContractError]:
        """As `example` of each, or why it has none. A call of the tokenizer is dear: TOGETHER of them share one."""
        remaining = iter(conversations)
        while batch := list(islice(remaining, RENDERED_AT_ONCE)):
            try:
                yield from self._examples_at_once(batch)
            except (ContractError, Unbounded):  # of which of them?
                yield from map(self._example_or_error, batch)

    def _example_or_error(self, messages: list[Message]) -> Tokens | ContractError:
        try:
            return self.example(messages)
        except ContractError as error:
            return error

    def _examples_at_once(self, conversations: list[list[Message]]) -> list[Tokens]:
        end_of_turn = str(self.tokenizer.eos_token)
        if any(end_of_turn in message["content"] for message in chain.from_iterable(conversations)):
            raise ContractError(f"a message holds {end_of_turn}, which ends a turn")
        prompts_to_render = [
            Conversation(messages[:-1], to_answer=True) for messages in conversations if len(messages) > 1
        ]
        rendered = self._render([*prompts_to_render, *map(Conversation, conversations)])
        prompts, wholes = iter(rendered[: len(prompts_to_render)]), rendered[len(prompts_to_render) :]
        return [
            self._validated_example(next(prompts)[0] if len(messages) > 1 else [], ids, marked)
            for messages, (ids, marked) in zip(conversations, wholes, strict=True)
        ]

    def _validated_example(self, prompt: list[int], ids: list[int], mask: list[bool]) -> Tokens:
        """A conversation's token ids up to its last end of turn, and which are trained, given its prompt's and the
        template's mask; where it marks none, all tokens from the prompt to that end are."""
        if self.marked:
            trained = self._without_tail(ids, mask)
        else:
            last = max((i for i, token in enumerate(ids) if token == self.stop_ids[0]), default=-1)
            trained = [len(prompt) <= i <= last for i in range(len(ids))]
        if ids[: len(prompt)] != prompt:
            raise ContractError("the prompt's tokens are no prefix of those of prompt and completion")
        start = len(prompt)
        # The template's mask goes by characters, and byte fallback gives every byte of a run of unknown characters the
        # characters of the whole run. Where such a run begins in the prompt and ends in the answer, the mask begins in
        # the prompt: the prompt's tokens are taken out of it here.
        while start and trained[start - 1]:
            start -= 1
            trained[start] = False
        if not any(trained):
            raise ContractError("no token is trained: the conversation has no assistant turn")
        end = len(trained) - trained[::-1].index(True)
        if ids[end - 1] != self.stop_ids[0]:
            raise ContractError(f"the last trained token is {self.token(ids[end - 1])}, not the end of turn")
        return ids[:end], trained[:end]

    def _without_tail(self, ids: list[int], mask: list[bool]) -> list[bool]:
        """The template's mask, without what it marks after an end of turn: Gemma's marks a line feed there."""
        trained, ended = list[bool](), False
        for token, marked in zip(ids, mask, strict=True):
            trained.append(marked and not ended)
            ended = marked and (ended or token == self.stop_ids[0])
        return trained

    def completion(
        self, prompt: list[Message], completion: list[Message], finished: bool = True
    ) -> tuple[list[int], list[int]]:
        """Token ids of a prompt, and of the completion after it up to its end of turn; without that, if unfinished."""
        ids, _ = self.example([*prompt, *completion])
        start = len(self.prompt(prompt))
        return ids[:start], ids[start:] if finished else ids[start:-1]

    def text(self, ids: list[int]) -> str:
        """A completion's text, without its end of turn."""
        ids = ids[:-1] if ids and ids[-1] in self.stop_ids else ids
        return self.tokenizer.decode(ids, skip_special_tokens=False)  # type: ignore[no-any-return]

    def length(self, text: str) -> int:
        """Tokens of a text, without an end of turn."""
        return len(self.tokenizer(text, add_special_tokens=False).input_ids)

    def token(self, token_id: int) -> str:
        return repr(self.tokenizer.convert_ids_to_tokens(token_id))

    @cached_property
    def digest(self) -> str:
        """Of what token ids mean. Those drawn under a contract of the same digest are this model's own."""
        return content_id(self.tokenizer.get_vocab(), self.tokenizer.chat_template, self.stop_ids)

    def _render(self, conversations: list[Conversation]) -> list[Tokens]:
        try:
            return tokenize_conversations(self.tokenizer, conversations)
        except TemplateFault as error:
            raise ContractError(f"the chat template refuses a conversation: {error}") from error
        except Unbounded as error:
            begins = conversations[0].messages[0]["content"]
            raise Unbounded(f"the chat template, {error}, of conversations from {begins!r:.60}. {WAY_OUT}.") from error

    def facts(self) -> dict[str, Any]:
        """What can be compared without rendering."""
        tokenizer, template = self.tokenizer, str(self.tokenizer.chat_template).encode(errors="surrogatepass")
        return {
            "chat_template_sha256": hashlib.sha256(template).hexdigest(),
            "end_of_turn": {"token": tokenizer.convert_ids_to_tokens(self.stop_ids[0]), "id": self.stop_ids[0]},
            "stop_ids": self.stop_ids,
            "marked": self.marked,
            "pad": {"token": tokenizer.pad_token, "id": tokenizer.pad_token_id},
            "bos": {"token": tokenizer.bos_token, "id": tokenizer.bos_token_id},
            "vocabulary": len(tokenizer),
        }

    def golden(self) -> list[dict[str, Any]]:
        """The golden conversations as they are rendered: token ids, and 1 where a token is trained."""
        rendered = [(messages, *self.example(messages)) for messages in GOLDEN]
        return [{"messages": m, "ids": ids, "trained": [int(t) for t in trained]} for m, ids, trained in rendered]

    def save(self, model: Path) -> None:
        """Write tokenizer and contract beside the weights."""
        self.tokenizer.save_pretrained(model)
        content = {**self.facts(), "golden": self.golden()}
        safe_files.write(model / "contract.json", json.dumps(content, indent=1, ensure_ascii=False))
        load_contract(model)  # what was written is what will be read


def load_contract(model: Path) -> Contract:
    """The contract of a model folder, checked against its golden renderings.

    Raises:
        ContractError: where the tokenizer in the folder renders anything differently from when SFT fixed it.
    """
    stored = load_json(model / "contract.json", having("stop_ids", "marked", "golden"))
    contract = Contract(load_tokenizer(model), stored["stop_ids"], stored["marked"])
    for key, value in contract.facts().items():
        if value != stored[key]:
            raise ContractError(f"{model}: the contract says {key} = {stored[key]}, the tokenizer {value}.")
    for rendered, golden in zip(contract.golden(), stored["golden"], strict=True):
        if rendered != golden:
            decode = contract.tokenizer.decode
            raise ContractError(
                f"{model}: SFT rendered {decode(golden['ids'])!r} ({len(golden['ids'])} tokens), "
                f"this tokenizer renders {decode(rendered['ids'])!r} ({len(rendered['ids'])} tokens)."
            )
    return contract


class Continuation(Contract):
    """Form in which a base that knows no chat is asked: as text to be continued, up to the first blank line."""

    def prompt(self, messages: list[Message]) -> list[int]:
        names = {"system": "Instruction", "user": "Question", "assistant": "Answer"}
        text = "\n\n".join(f"{names[m['role']]}: {m['content']}" for m in messages)
        return self.tokenizer(f"{text}\n\nAnswer:").input_ids  # type: ignore[no-any-return]

    def text(self, ids: list[int]) -> str:
        return super().text(ids).split("\n\n")[0]


def load_or_derive_contract(model: Path) -> Contract:
    """The contract of a model folder. A base has none: it is asked in its own form, not with chat tokens it never saw.

    Raises:
        ContractError: where the tokenizer no longer keeps the contract beside it.
    """
    if (model / "contract.json").exists():
        return load_contract(model)
    tokenizer = load_tokenizer(model)
    generation = model / "generation_config.json"
    stops = load_json(generation, having()).get("eos_token_id") if generation.exists() else None
    ends = [tokenizer.eos_token_id, *(stops if isinstance(stops, list) else [stops])]  # the end of turn comes first
    stop_ids = [i for i in dict.fromkeys(ends) if i is not None]
    return (Contract if tokenizer.chat_template else Continuation)(tokenizer, stop_ids)
