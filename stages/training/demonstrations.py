"""From demonstrations to rows of tokens, in one pass: few examples and lists of tokens are held at a time."""

from collections.abc import Iterable, Iterator
from itertools import tee
from typing import NamedTuple

from stages.config.blocks.training import SFT
from stages.config.choices import Split, TrainedTurns
from stages.config.errors import UserError
from stages.models.contract import Contract
from stages.models.masking import masked
from stages.models.rendering import ContractError
from stages.store.dropped import Dropped
from stages.store.records import Example
from stages.store.workspace import Work
from stages.training.samples import FirstPrompts
from stages.training.token_rows import TokenRows


class Row(NamedTuple):
    """An example's token ids, which of them are trained, and whether an assistant turn is not."""

    example: Example
    ids: list[int]
    trained: list[bool]
    masked: bool


class Prepared(NamedTuple):
    """What later work needs of the examples: the rows of both splits; the row that the report shows, the first, or the
    first with a turn that is not trained; validation's first prompts; how many were dropped for which reason."""

    train: TokenRows
    validation: TokenRows
    shown: Row
    prompts: FirstPrompts
    dropped: dict[str, int]


def prepare(examples: Iterable[Example], terms: Contract, cfg: SFT, out: Work, context: int | None = None) -> Prepared:
    """Tokenise what is to be trained and evaluated on, in one pass: of examples and lists of tokens only few are held.
    `context` is how many tokens the model reads.

    Raises:
        UserError: where there is nothing to train on, or too much of it had to be dropped.
    """
    train, validation, shown = TokenRows(), TokenRows(), None
    prompts = FirstPrompts(cfg.runtime.samples)
    dropped = Dropped(out, "rows", cfg.max_dropped, f"{cfg.block}.max_dropped")
    answered = (e for e in examples if e.reference and e.split in (Split.sft, Split.validation))
    for row in tokenized(answered, terms, cfg, dropped, context):
        if row.example.split == Split.validation:
            validation.add(row.example.id, (row.ids, row.trained))
            prompts.add(row.example.messages)
        else:
            train.add(row.example.id, (row.ids, row.trained))
            shown = row if shown is None or (row.masked and not shown.masked) else shown
    kept = len(train) + len(validation)
    told = dropped.settle(kept, len(train))
    if shown is None:
        raise UserError("the data holds no rows for sft. Raise data.tasks.sft, or add a source with a share for it.")
    return Prepared(train, validation, shown, prompts, told)


def tokenized(
    examples: Iterable[Example], terms: Contract, cfg: SFT, dropped: Dropped, context: int | None = None
) -> Iterator[Row]:
    """Every example that the template can render and that fits whole."""
    some, same = tee(examples)
    longest, reason_too_long = cfg.longest(context)
    for example, found in zip(some, terms.examples(e.conversation for e in same), strict=True):
        try:
            if isinstance(found, ContractError):
                raise found
            ids, trained = found
            if masks := has_masked_turn(example, cfg):
                last = cfg.trained_turns is TrainedTurns.last
                trained = masked(ids, trained, terms.stop_ids[0], example.trained, last)
        except ContractError as reason:
            dropped.add(example.id, reason)
            continue
        if len(ids) > longest:
            dropped.add(example.id, reason_too_long, len(ids))
            continue
        yield Row(example, ids, trained, masks)


def has_masked_turn(example: Example, cfg: SFT) -> bool:
    """Whether an assistant turn of a conversation is not trained."""
    turns = sum(turn["role"] == "assistant" for turn in example.conversation)
    return not all(example.trained or []) or (cfg.trained_turns is TrainedTurns.last and turns > 1)
