"""The contract that SFT fixes and every later stage follows: template, end of turn, padding, BOS, the trained tokens.

SFT writes it beside the model as `contract.json`, with the tokens of two golden conversations. Every later stage
renders these again when it loads the model, and stops if the tokens differ: it would train or sample on others."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from stages.config.choices import Spelled
from stages.config.errors import UserError
from stages.models.forms import end_of_call, form_of_prompts, mark_after_call
from stages.models.loading import load_tokenizer
from stages.models.rendering import (
    GOLDEN,
    ContractError,
    Form,
    adds_bos,
    end_after,
    render,
    shield,
    token_ids,
    undated,
)
from stages.models.turns import (
    Span,
    Stretch,
    Text,
    left_out,
    stretches_of_text,
    tokenize,
)
from stages.store import safe_files
from stages.store.records import Candidate, Message, content_id
from stages.store.sealed_json import load_json, require_keys
from stages.store.templates import TemplateFault
from stages.store.thoughts import MARKS, open_thought
from stages.store.tool_calls import split_calls

Tokens = tuple[list[int], list[bool]]  # token ids, and True for each trained token
# of a conversation as plain text, for a base model without a template
SPEAKERS = {"system": "Instruction", "user": "Question", "assistant": "Answer", "tool": "Result"}


@dataclass
class Contract:
    """A tokenizer with the chat template and the stop tokens that SFT fixed.

    `stop_ids` end a completion; the first is the end of turn, which is trained. `form`: what the template asks of a
    conversation. `special`: what becomes of control tokens that messages spell. `text_end`: the token that ends a running
    text, which is trained; None: the end of turn."""

    tokenizer: PreTrainedTokenizerBase
    stop_ids: list[int]
    form: Form = field(default_factory=Form)
    special: Spelled = Spelled.split
    text_end: int | None = None

    def prompt(self, messages: list[Message]) -> list[int]:
        """Return the token ids of a conversation up to the point where the assistant begins. Raise ContractError if a
        message spells a control token and `special` drops these."""
        if self.special is Spelled.drop:
            self._refuse_control(messages)
        return token_ids(self.tokenizer, self.render(self._shielded(messages), to_answer=True))

    @cached_property
    def added(self) -> set[int]:
        """The ids of the tokenizer's added tokens, of which some have thousands."""
        return set(self.tokenizer.added_tokens_decoder)

    @cached_property
    def control(self) -> re.Pattern[str]:
        """What spells a control token: a special token, or one that ends a turn, but no mark of thoughts."""
        tokens = list[str]()
        for i, token in self.tokenizer.added_tokens_decoder.items():
            text = str(token)
            is_control = token.special or i in self.stop_ids
            if is_control and text.strip() and not begins_mark(text):
                tokens.append(text)
        tokens.sort(key=len, reverse=True)
        return re.compile("|".join(map(re.escape, tokens)) or "(?!)")

    def control_in(self, messages: Sequence[Message]) -> str:
        """Return the first control token that a message spells; '' if none does."""
        for turn in messages:
            found = self.control.search(turn["content"])
            if found:
                return found[0]
        return ""

    def _refuse_control(self, messages: Sequence[Message]) -> None:
        found = self.control_in(messages)
        if found:
            raise ContractError(
                f"a message spells {found}, a control token; sft.template.special=keep takes it as one"
            )

    def _shielded(self, messages: Sequence[Message]) -> list[Message]:
        if self.special is Spelled.keep:
            return [*messages]
        return [turn | {"content": shield(turn["content"], self.control)} for turn in messages]

    def stretches(self, messages: list[Message]) -> list[Stretch]:
        """Return the token ids of a conversation and the answers in them: in one stretch, or in several if the template
        changes earlier turns. A running text is one stretch. Raise ContractError if an answer spells a control token, or
        cannot be told from its prompt."""
        if is_running_text(messages):
            return [self._running_text(messages[0])]
        texts = self._texts(messages)
        calls = set[int]()
        if self.mark_after_call:
            calls = {turn for turn, message in enumerate(messages) if self._calls(message)}
        return [*tokenize(self.tokenizer, texts, self.stop_ids, self.added, calls)]

    def _calls(self, message: Message) -> bool:
        """Return whether a turn calls a tool, which the template writes in its own way."""
        is_answer = message["role"] == "assistant"
        return is_answer and self.form.tools and bool(split_calls(message["content"])[1])

    def _running_text(self, message: Message) -> Stretch:
        """Return a text as a base model reads it: BOS, all tokens of the text and its end, without chat marks. BOS and end
        come once, whether the text spells them or not. Raise ContractError if the text spells another control token."""
        start = [*self.text_start]
        text = message["content"]
        for token in map(self.spelling, start):
            while text.lstrip().startswith(token):
                text = text.lstrip().removeprefix(token)
        end = self.text_stop
        while text.rstrip().endswith(self.spelling(end)):
            text = text.rstrip().removesuffix(self.spelling(end))
        message = {**message, "content": text}
        if self.special is not Spelled.keep:
            self._refuse_control([message])
        [shielded] = self._shielded([message])
        ids = token_ids(self.tokenizer, shielded["content"])
        if not ids:
            raise ContractError("no token is trained: the text is empty")
        whole = [*start, *ids, end]
        return Stretch(whole, [Span(0, len(start), len(whole))])

    @cached_property
    def text_start(self) -> list[int]:
        """BOS, as a list, where running text begins with it: the tokenizer puts it before every text, or the template
        before a conversation. Empty without BOS, or where BOS begins each turn, as SmolLM2's does."""
        bos = self.tokenizer.bos_token_id
        if bos is None:
            return []
        if not adds_bos(self.tokenizer):
            ids = token_ids(self.tokenizer, self.render(GOLDEN[0]))
            if ids[:1] != [bos] or ids.count(bos) > 1:
                return []
        return [bos]

    @property
    def text_stop(self) -> int:
        """The token that ends a running text."""
        return self.stop_ids[0] if self.text_end is None else self.text_end

    def spelling(self, token_id: int) -> str:
        return str(self.tokenizer.convert_ids_to_tokens(token_id))

    def all_stretches(
        self, conversations: Iterable[list[Message]]
    ) -> Iterator[list[Stretch] | ContractError]:
        """Yield `stretches` of each conversation, or its error."""
        for messages in conversations:
            try:
                yield self.stretches(messages)
            except ContractError as error:
                yield error

    def _texts(self, messages: list[Message]) -> list[Text]:
        stops = [str(token) for token in self.tokenizer.convert_ids_to_tokens(self.stop_ids)]
        if self.special is Spelled.drop:
            self._refuse_control(messages)
        elif self.special is Spelled.split:  # answers are what the model will write
            self._refuse_control([turn for turn in messages if turn["role"] == "assistant"])
        shielded = self._shielded(messages)
        texts = stretches_of_text(self.render, shielded, stops)
        lost = left_out(texts, shielded, self.form.tools)
        if lost:
            raise ContractError(f"the template leaves out {lost[:60]!r}")
        for text in texts:
            if text.text.endswith(tuple(stops)):
                continue
            if not self._calls(messages[text.answers[-1].turn]):
                text.end_with(stops[0])
            elif not self.mark_after_call:
                text.end_with(self.call_end)
        return texts

    @cached_property
    def mark_after_call(self) -> str:
        """The mark of several tokens that ends a call; '' if one token ends it."""
        if not self.form.tools or end_of_call(self.tokenizer, self.form, self.stop_ids):
            return ""
        return mark_after_call(self.tokenizer, self.form)

    @cached_property
    def call_end(self) -> str:
        """The token that ends a turn which calls a tool."""
        ends = end_of_call(self.tokenizer, self.form, self.stop_ids) or self.stop_ids
        return self.spelling(ends[0])

    def example(self, messages: list[Message]) -> Tokens:
        """Return the token ids of a conversation up to its last end of turn, and True for each token that the model
        must write. Raise ContractError as `stretches` does."""
        last = self.stretches(messages)[-1]
        return last.ids, last.trained()

    def completion(
        self, prompt: list[Message], completion: list[Message], finished: bool = True
    ) -> tuple[list[int], list[int]]:
        """Return the token ids of a prompt and of its completion, which ends with an end of turn if `finished`."""
        ids, _ = self.example([*prompt, *completion])
        start = self._length_of(prompt, ids)
        if not finished:
            ids = ids[:-1]
        return ids[:start], ids[start:]

    def continuation(self, prompt: list[Message], turns: list[Message], context: int) -> Tokens:
        """Return the token ids of the turns after a prompt, and True for each token that the model must write in them,
        except in the first `context` turns.
        Raise ContractError if the tokens before a turn change when others follow."""
        stretch = self.stretches([*prompt, *turns])[-1]
        start = self._length_of(prompt, stretch.ids)
        answers = [answer.turn for answer in stretch.answers]
        for turn, message in enumerate(turns, len(prompt)):
            if message["role"] == "assistant" and turn not in answers:
                raise ContractError("the template changes a turn when another follows")
        trained = stretch.trained(range(len(prompt) + context, len(prompt) + len(turns)))
        return stretch.ids[start:], trained[start:]

    def _length_of(self, prompt: list[Message], ids: list[int]) -> int:
        """Return the number of tokens of a prompt, with which these token ids begin. Raise ContractError if not."""
        prompt_ids = self.prompt(prompt)
        if ids[: len(prompt_ids)] != prompt_ids:
            raise ContractError("the prompt's tokens are not a prefix of the conversation's tokens")
        return len(prompt_ids)

    def describe_tokens(
        self, ids: list[int], trained: list[bool], is_text: bool = False
    ) -> list[dict[str, Any]]:
        """Return each token's text, and whether it is trained and ends a turn; of a running text, whether it ends the
        text."""
        decode = self.tokenizer.decode
        end = self.text_stop if is_text else self.stop_ids[0]
        kind = "end_of_text" if is_text else "end_of_turn"
        return [
            {"text": decode([i]), "trained": mark, kind: i == end}
            for i, mark in zip(ids, trained, strict=True)
        ]

    def text(self, ids: list[int]) -> str:
        """Return the text of a completion's token ids, without the end of turn and what the template adds to it."""
        if ids and ids[-1] in self.stop_ids:
            ids = ids[:-1]
        header, tail = self.frame
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False)
        return text.removeprefix(header).removesuffix(tail)

    @cached_property
    def frame(self) -> tuple[str, str]:
        """What the template writes before and after the content of an answer, as gpt-oss' channel; white space apart."""
        try:
            stretch = self.stretches(GOLDEN[0])[-1]
        except ContractError:
            return "", ""
        _, start, end = stretch.answers[-1]
        written = self.tokenizer.decode(stretch.ids[start : end - 1], skip_special_tokens=False)
        header, _, tail = written.partition(GOLDEN[0][-1]["content"])
        return header * bool(header.strip()), tail * bool(tail.strip())

    def length(self, text: str, ended: bool = False) -> int:
        """Return the number of tokens of a text, with the end of turn if it `ended`."""
        return len(self.tokenizer(text, add_special_tokens=False).input_ids) + ended

    @cached_property
    def thought_end(self) -> str | None:
        """The mark that ends the thought which prompts begin; None if they begin none."""
        with suppress(ContractError):
            return open_thought(self.tokenizer.decode(self.prompt(GOLDEN[0][:1])))
        return None

    def with_empty_thought(self, answer: str) -> str:
        """Return an answer behind an empty thought if prompts begin one, else as it is."""
        for begin, end in MARKS.items():
            if end == self.thought_end:
                return f"{begin}\n\n{end}\n\n{answer}"
        return answer

    def measure(self, candidate: Candidate) -> Candidate:
        """Return a candidate of another tokenizer with its lengths in tokens of this one."""
        ended = candidate.finish_reason == "stop"
        return replace(
            candidate,
            n_tokens=self.length(candidate.text, ended),
            # None and 0 stay
            answer_tokens=candidate.answer_tokens and self.length(candidate.answer, ended),
        )

    def token(self, token_id: int) -> str:
        return repr(self.spelling(token_id))

    @cached_property
    def digest(self) -> str:
        """The hash of vocabulary, template and stop tokens: with equal digests, token ids have the same meaning."""
        return content_id(self.tokenizer.get_vocab(), self.tokenizer.chat_template, self.stop_ids)

    @cached_property
    def rendering_digest(self) -> str:
        """The hash of the whole contract: with equal digests, the same text has the same token ids."""
        return content_id(self.digest, self.facts())

    def render(self, messages: Sequence[Message], to_answer: bool = False) -> str:
        try:
            return render(self.tokenizer, messages, self.form, to_answer)
        except TemplateFault as error:
            raise ContractError(f"the chat template refuses a conversation: {error}") from error

    def facts(self) -> dict[str, Any]:
        """Return the parts of the contract that can be compared without rendering."""
        tokenizer = self.tokenizer
        template = str(tokenizer.chat_template).encode(errors="surrogatepass")
        end = self.stop_ids[0]
        return {
            "chat_template_sha256": hashlib.sha256(template).hexdigest(),
            "end_of_turn": {"token": self.spelling(end), "id": end},
            "end_of_text": {"token": self.spelling(self.text_stop), "id": self.text_stop},
            "stop_ids": self.stop_ids,
            "form": asdict(self.form),
            "special": self.special,
            "pad": {"token": tokenizer.pad_token, "id": tokenizer.pad_token_id},
            "bos": {"token": tokenizer.bos_token, "id": tokenizer.bos_token_id},
            "vocabulary": len(tokenizer),
        }

    def golden(self) -> list[dict[str, Any]]:
        """Return the golden conversations with the token ids of their prompts and stretches, and 1 for each token that
        the model must write. A template of a model that is not trained may render none."""
        return [
            {
                "messages": messages,
                "prompt": self.prompt(messages[:-1]),
                "stretches": self.golden_stretches(messages),
            }
            for messages in GOLDEN
        ]

    def golden_stretches(self, messages: list[Message]) -> list[dict[str, list[int]]]:
        try:
            stretches = self.stretches(messages)
        except ContractError:
            return []
        return [{"ids": each.ids, "trained": [*map(int, each.trained())]} for each in stretches]

    def save(self, model: Path) -> None:
        """Write tokenizer and contract into the model folder."""
        self.tokenizer.save_pretrained(model)
        content = {**self.facts(), "golden": self.golden()}
        safe_files.write(model / "contract.json", json.dumps(content, indent=1, ensure_ascii=False))
        load_contract(model)  # raises if the saved tokenizer renders differently


def control_message(prompts: int, special: Spelled) -> str:
    """Return the sentence on prompts that spell control tokens."""
    control = f"{prompts} prompts spell control tokens of the model"
    if special is Spelled.keep:
        return f"{control}, which are read as such."
    return f"{control}, which are read as the pieces of their text."


def is_running_text(messages: Sequence[Message]) -> bool:
    """Return whether a conversation is a text that answers no request."""
    return [message["role"] for message in messages] == ["assistant"]


def begins_mark(token: str) -> bool:
    """Return whether a token is the beginning of a thought's mark."""
    return any(mark.startswith(token) for mark in (*MARKS, *MARKS.values()))


def load_contract(model: Path) -> Contract:
    """Read the contract of a model folder, and check it against its golden conversations.
    Raise ContractError if the folder's tokenizer renders anything differently from SFT."""
    stored = load_json(
        model / "contract.json",
        require_keys("stop_ids", "form", "special", "golden", "end_of_turn"),
    )
    # models that earlier versions trained ended a running text as a turn
    stored = {"end_of_text": stored["end_of_turn"]} | stored
    form = Form(**stored["form"])
    special = Spelled(stored["special"])
    text_end = stored["end_of_text"]["id"]
    contract = Contract(load_tokenizer(model), stored["stop_ids"], form, special, text_end)
    for key, value in contract.facts().items():
        if value != stored[key]:
            raise ContractError(
                f"{model}: {key} is {stored[key]} in contract.json, and {value} in the tokenizer."
            )
    for rendered, golden in zip(contract.golden(), stored["golden"], strict=True):
        if rendered != golden:
            before = quote_golden(golden, contract.tokenizer)
            now = quote_golden(rendered, contract.tokenizer)
            raise ContractError(f"{model}: SFT rendered {before}, this tokenizer renders {now}.")
    return contract


def quote_golden(golden: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the first text and number of tokens that `Contract.golden` has of a conversation."""
    ids = golden["prompt"]
    if golden["stretches"]:
        ids = golden["stretches"][0]["ids"]
    return f"{tokenizer.decode(ids)!r} ({len(ids)} tokens)"


class Continuation(Contract):
    """The prompt format for a base model without a chat template: text to continue, up to the first blank line."""

    def prompt(self, messages: list[Message]) -> list[int]:
        parts = [f"{SPEAKERS[turn['role']]}: {turn['content']}" for turn in messages]
        return self.tokenizer("\n\n".join([*parts, "Answer:"])).input_ids  # type: ignore[no-any-return]

    def text(self, ids: list[int]) -> str:
        return super().text(ids).split("\n\n")[0]


def generation_stops(model: Path, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end a completion by a model's tokenizer and generation config, EOS first."""
    ends = [tokenizer.eos_token_id]
    file = model / "generation_config.json"
    if file.exists():
        stops = load_json(file, require_keys()).get("eos_token_id")
        ends += stops if isinstance(stops, list) else [stops]
    return [i for i in dict.fromkeys(ends) if i is not None]


def served_stops(model: Path, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens at which servers stop, EOS first: without a generation config, they read config.json."""
    stops = generation_stops(model, tokenizer)
    config = model / "config.json"
    if (model / "generation_config.json").exists() or not config.exists():
        return stops
    of_config = load_json(config, require_keys()).get("eos_token_id")
    further = of_config if isinstance(of_config, list) else [of_config]
    return stops + [i for i in further if i is not None and i not in stops]


def load_or_derive_contract(model: Path) -> Contract:
    """Read the contract of a model folder, or derive one from the tokenizer of a base model, which has none yet. A
    base without a chat template gets a `Continuation`: its training never had chat tokens. One whose template refuses
    system turns gets their text in the first user turn.
    Raise ContractError if the tokenizer breaks the contract in the folder."""
    if (model / "contract.json").exists():
        return load_contract(model)
    tokenizer = load_tokenizer(model)
    stop_ids = generation_stops(model, tokenizer)
    if not tokenizer.chat_template:
        return Continuation(tokenizer, stop_ids)
    tokenizer.chat_template = undated(tokenizer.chat_template)
    contract = Contract(tokenizer, stop_ids, form_of_prompts(tokenizer))
    # a template may end a turn by another token than EOS, as Qwen2.5-Base's does
    with suppress(UserError):
        end_of_turn = end_after(tokenizer, contract.render(GOLDEN[0]), GOLDEN[0][-1]["content"])
        contract.stop_ids = [*dict.fromkeys(end_of_turn + stop_ids)]
    return contract
