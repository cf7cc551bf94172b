"""Which rows are too long to be trained on once the template has rendered them. Data knows no tokenizer; an audit does
where the base lies in the store."""

from collections.abc import Callable

from stages.config.blocks.training import DPO, SFT
from stages.formats.column_mapping import Wanted
from stages.store.node import Node
from stages.store.records import Message
from stages.store.store import Store

TOO_LONG = "too_long"
SHORT: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]

Measure = Callable[[Wanted, list[Message], list[str]], str]  # what is said of a row; '' of one that fits


def measure(nodes: dict[str, Node], store: Store) -> Measure | None:
    """What finds rows longer than `sft.max_length`, and preferences longer than `dpo.max_length`, or than the model's
    context, under the template that SFT fixes; None where the base is not built.

    Raises:
        ContractError: where the template cannot keep the contract.
    """
    base, sft = nodes["sft"].inputs["base"], nodes["sft"].config
    assert isinstance(sft, SFT)
    if not store.find(base):
        return None
    from stages.models import contract  # seconds of imports, which an audit without a base is spared
    from stages.models.loading import context_of, embedding_rows, load_tokenizer
    from stages.models.rendering import ContractError

    model = store.folder(base) / "model"
    terms = contract.establish(load_tokenizer(model), sft.template, sft.train, embedding_rows(model))
    frame = len(terms.example(SHORT)[0])  # no less than the template adds to a turn
    context, dpo = context_of(model), nodes["dpo"].config
    assert isinstance(dpo, DPO)

    def told(wanted: Wanted, messages: list[Message], answers: list[str]) -> str:
        block = dpo if wanted is Wanted.preferences else sft
        stage, (limit, too_long) = block.block, block.longest(context)
        for answer in answers:
            turns = [*messages, {"role": "assistant", "content": answer}]
            if sum(len(turn["content"].encode("utf-8", "replace")) + frame for turn in turns) <= limit:
                continue  # a token is a byte or more
            try:
                tokens = len(terms.example(turns)[0])
            except ContractError as reason:
                return f"{stage} drops it: {reason}"
            if tokens > limit:
                return f"{stage} drops it: {tokens:,} tokens, {too_long}"
        return ""

    return told
