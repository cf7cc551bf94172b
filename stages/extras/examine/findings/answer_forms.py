"""Common forms of conversations, in which a model may have been trained whatever its own template says."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from stages.models.contract import Contract
from stages.models.rendering import ContractError, encode
from stages.store.records import Message, Pair

Row = tuple[list[int], list[int]]  # token ids of a prompt, and of its completion
MOST_BOS = 2
MOST_ANSWER_TOKENS = 64  # of an answer that is read in several forms
# stands for the content of a turn while the words of the template are replaced
PLACE = "\u2460{}\u2461"


@dataclass(frozen=True)
class TurnForm:
    """What is written before and after each turn. `roles`: the names of roles. `eos`: the end-of-sequence token ends a
    turn."""

    before: str
    after: str = "\n"
    roles: Mapping[str, str] = field(default_factory=dict)
    eos: bool = False

    def prompt(self, messages: Sequence[Message], eos: str) -> str:
        """Return a conversation up to where the assistant begins its answer."""
        text = ""
        for message in messages:
            after = (eos if self.eos else "") + self.after
            text += self.before_turn(message["role"]) + message["content"] + after
        return text + self.before_turn("assistant")

    def before_turn(self, role: str) -> str:
        name = self.roles.get(role, role)
        return self.before.format(role=name, Role=name.capitalize(), ROLE=name.upper())


SHAREGPT = {"user": "human", "assistant": "gpt"}
FORMS = {
    "ChatML": TurnForm("<|im_start|>{role}\n", "<|im_end|>\n"),
    "ChatML with human and gpt": TurnForm("<|im_start|>{role}\n", "<|im_end|>\n", SHAREGPT),
    "Llama 3": TurnForm("<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>"),
    "Gemma": TurnForm("<start_of_turn>{role}\n", "<end_of_turn>\n", {"assistant": "model"}),
    "Zephyr": TurnForm("<|{role}|>\n", "\n", eos=True),
    "headers user: and assistant:": TurnForm("{role}: "),
    "headers User: and Assistant:": TurnForm("{Role}: ", "\n\n"),
    "headers USER: and ASSISTANT:": TurnForm("{ROLE}: ", " "),
    "headers Human: and Assistant:": TurnForm("\n\n{Role}: ", "", {"user": "human"}),
    "headers human: and gpt:": TurnForm("{role}: ", "\n", SHAREGPT),
    "plain": TurnForm("### {Role}:\n", "\n\n"),
    "Alpaca": TurnForm("### {Role}:\n", "\n\n", {"user": "instruction", "assistant": "response"}),
    "text without marks": TurnForm("", "\n"),
}
LLAMA_2 = "Llama 2"
# of a form in which prompt and answer have no token in common
APART = ", answer tokenized apart"
OWN = "its own template"
OWN_WITH_SHAREGPT = f"{OWN} with human and gpt"
STRIPPED = f"{OWN} without white space at its end"
BROKEN = f"{OWN} and a line break"
SPACED = f"{OWN} and a space"
# They differ from the own template in white space alone, and are likely in every model that reads that.
NEAR_OWN = (STRIPPED, BROKEN, SPACED)


def form_rows(pair: Pair, contract: Contract) -> dict[str, Row]:
    """Return prompt and chosen answer, without its end, in every form but the model's own, by the form's title. Each
    begins with as many tokens of BOS as the model's own template writes."""
    tokenizer = contract.tokenizer
    eos = str(tokenizer.eos_token or "")
    texts = {title: form.prompt(pair.prompt, eos) for title, form in FORMS.items()}
    texts[LLAMA_2] = llama_2_prompt(pair.prompt)
    answer = pair.chosen[-1]["content"]
    answers = dict[str, str]()
    with suppress(ContractError):
        texts[OWN_WITH_SHAREGPT] = own_prompt(pair.prompt, contract, SHAREGPT)
        own_text = own_prompt(pair.prompt, contract, {})
        texts[STRIPPED] = own_text.rstrip()
        texts[BROKEN] = f"{own_text}\n"
        texts[SPACED] = own_text
        answers[SPACED] = f" {answer}"
    own = contract.prompt(pair.prompt)
    start = own[: count_bos(own, contract)]
    rows = dict[str, Row]()
    for title, text in texts.items():
        joined = tokens_of(text, answers.get(title, answer), start, contract)
        apart = tokens_apart(text, answers.get(title, answer), start, contract)
        for row, row_title in ((joined, title), (apart, f"{title}{APART}")):
            is_other = row[0] != own or title in answers
            if row[1] and row[0] and is_other and row not in rows.values():
                rows[row_title] = row
    return rows


def tokens_of(prompt: str, answer: str, start: list[int], contract: Contract) -> Row:
    """Return the token ids of a prompt, behind those of its `start`, and the first of its answer."""
    ids, offsets = encode(contract.tokenizer, prompt + answer)
    first = sum(end <= len(prompt) for _, end in offsets)
    return start + ids[:first], ids[first:][:MOST_ANSWER_TOKENS]


def tokens_apart(prompt: str, answer: str, start: list[int], contract: Contract) -> Row:
    """Return the same of a program that reads prompt and answer one by one: no token spans both. They differ where a
    prompt ends with a space."""
    prompt_ids, answer_ids = (encode(contract.tokenizer, text)[0] for text in (prompt, answer))
    return start + prompt_ids, answer_ids[:MOST_ANSWER_TOKENS]


def llama_2_prompt(messages: Sequence[Message]) -> str:
    text = ""
    system = ""
    for message in messages:
        content = message["content"]
        if message["role"] == "system":
            system = f"<<SYS>>\n{content}\n<</SYS>>\n\n"
        elif message["role"] == "assistant":
            text += f" {content} "
        else:
            text += f"[INST] {system}{content} [/INST]"
            system = ""
    return f"{text} "


def own_prompt(messages: Sequence[Message], contract: Contract, roles: Mapping[str, str]) -> str:
    """Return a prompt in the model's own template, with other names of `roles`, without a BOS that begins the text."""
    hidden = list[Message]()
    for place, message in enumerate(messages):
        hidden.append({**message, "content": PLACE.format(place)})
    text = contract.render(hidden, to_answer=True)
    for role, name in roles.items():
        text = re.sub(rf"(?<!\w){role}(?!\w)", name, text)
    bos = contract.tokenizer.bos_token
    for place, message in enumerate(messages):
        text = text.replace(PLACE.format(place), message["content"], 1)
    while bos and text.startswith(str(bos)) and contract.text_start:
        text = text.removeprefix(str(bos))
    return text


def bos_rows(own: Row, contract: Contract) -> dict[str, Row]:
    """Return a row behind 0, 1 and 2 tokens of BOS except as its own template writes it, by title; none if the
    tokenizer has no BOS."""
    bos = contract.tokenizer.bos_token_id
    if bos is None:
        return {}
    prompt, answer = own
    written = count_bos(prompt, contract)
    rest = prompt[written:]
    rows = dict[str, Row]()
    for count in range(MOST_BOS + 1):
        if count != written and (count or rest):
            rows[f"{count} BOS"] = ([bos] * count + rest, answer[:-1][:MOST_ANSWER_TOKENS])
    return rows


def count_bos(ids: Sequence[int], contract: Contract) -> int:
    """Return the tokens of BOS at the beginning of a prompt; 0 where BOS begins every turn."""
    bos = contract.tokenizer.bos_token_id
    if bos is None or (not contract.text_start and list(ids).count(bos) > 1):
        return 0
    count = 0
    for token in ids:
        if token != bos:
            break
        count += 1
    return count
