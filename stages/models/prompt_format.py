"""The form in which a model is asked: under its contract, else in its own chat template, else as text to continue."""

from pathlib import Path

from stages.models import contract
from stages.models.contract import Contract
from stages.models.loading import load_tokenizer
from stages.store.records import Message
from stages.store.sealed_json import having, load_json


class Continuation(Contract):
    """How a base that knows no chat is asked: as text to be continued, up to the first blank line."""

    def prompt(self, messages: list[Message]) -> list[int]:
        names = {"system": "Instruction", "user": "Question", "assistant": "Answer"}
        text = "\n\n".join(f"{names[m['role']]}: {m['content']}" for m in messages)
        return self.tokenizer(f"{text}\n\nAnswer:").input_ids  # type: ignore[no-any-return]

    def text(self, ids: list[int]) -> str:
        return super().text(ids).split("\n\n")[0]


def form_of(model: Path) -> Contract:
    """The contract of a model folder. A base has none: it is asked in its own form, not with chat tokens it never saw.

    Raises:
        ContractError: where the tokenizer no longer keeps the contract beside it.
    """
    if (model / "contract.json").exists():
        return contract.load(model)
    tokenizer = load_tokenizer(model)
    generation = model / "generation_config.json"
    stops = load_json(generation, having()).get("eos_token_id") if generation.exists() else None
    ends = [tokenizer.eos_token_id, *(stops if isinstance(stops, list) else [stops])]  # the end of turn comes first
    stop_ids = [i for i in dict.fromkeys(ends) if i is not None]
    return (Contract if tokenizer.chat_template else Continuation)(tokenizer, stop_ids)
