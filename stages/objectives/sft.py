"""Supervised fine-tuning on the assistant's tokens: rows, TRL's SFTTrainer, model, and a check of packing."""

import json
from collections.abc import Iterable, Iterator
from itertools import accumulate, tee
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from accelerate.utils import send_to_device
from peft import PeftModel
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTTrainer
from trl.trainer import disable_dropout_in_model
from trl.trainer.utils import FusedCausalLMOutput

from stages.config.blocks.training import SFT
from stages.config.choices import Split, TrainedTurns
from stages.config.errors import UserError
from stages.models.contract import Contract
from stages.models.loading import load_model
from stages.models.packing import attention_name, pack_segments
from stages.models.rendering import ContractError
from stages.models.scoring import allowed_gap, autocast
from stages.store import safe_files
from stages.store.dropped import Dropped
from stages.store.records import Example
from stages.store.workspace import StageDir
from stages.training import adapters
from stages.training.fit import SplitRows
from stages.training.micro_batches import Batch, MicroBatches, select_row
from stages.training.token_rows import Row, TokenRows

CHECKED_TOKENS = 32  # of an example that is packed with its copy


class Demonstration(NamedTuple):
    """An example's token ids, which of them are trained, and whether an assistant turn is not."""

    example: Example
    ids: list[int]
    trained: list[bool]
    masked: bool


class Demonstrations(SplitRows[TokenRows]):
    """`shown` is the row that the report shows: the first, or the first with a turn that is not trained."""

    report_row: Demonstration


def read_rows(
    examples: Iterable[Example], contract: Contract, cfg: SFT, out: StageDir, context: int | None = None
) -> Demonstrations:
    """Tokenise what is to be trained and evaluated on. `context` is how many tokens the model reads.

    Raises:
        UserError: where there is nothing to train on, or too much of it had to be dropped.
    """
    rows, report_rows = Demonstrations(TokenRows, cfg, out), list[Demonstration]()
    answered = (e for e in examples if e.reference and e.split in (Split.sft, Split.validation))
    for row in tokenize_examples(answered, contract, cfg, rows.left_out, context):
        rows.add(row.example.split, row.example.id, (row.ids, row.trained), row.example.messages)
        if row.example.split == Split.sft and (not report_rows or (row.masked and not report_rows[-1].masked)):
            report_rows.append(row)
    rows.settle()
    if not report_rows:
        raise UserError("the data holds no rows for sft. Raise data.tasks.sft, or add a source with a share for it.")
    rows.report_row = report_rows[-1]
    return rows


def tokenize_examples(
    examples: Iterable[Example], contract: Contract, cfg: SFT, dropped: Dropped, context: int | None = None
) -> Iterator[Demonstration]:
    """Every example that the template can render and that fits whole."""
    examples_to_yield, examples_to_render = tee(examples)
    longest, reason_too_long = cfg.longest(context)
    for example, tokens in zip(
        examples_to_yield, contract.examples(e.conversation for e in examples_to_render), strict=True
    ):
        try:
            if isinstance(tokens, ContractError):
                raise tokens
            ids, trained = tokens
            if has_mask := has_masked_turn(example, cfg):
                last = cfg.trained_turns is TrainedTurns.last
                trained = mask_turns(ids, trained, contract.stop_ids[0], example.trained, last)
        except ContractError as reason:
            dropped.add(example.id, reason)
            continue
        if len(ids) > longest:
            dropped.add(example.id, reason_too_long, len(ids))
            continue
        yield Demonstration(example, ids, trained, has_mask)


def has_masked_turn(example: Example, cfg: SFT) -> bool:
    """Return True where an assistant turn of a conversation is not trained."""
    turns = sum(turn["role"] == "assistant" for turn in example.conversation)
    return not all(example.trained or []) or (cfg.trained_turns is TrainedTurns.last and turns > 1)


def mask_turns(
    ids: list[int], trained: list[bool], end_of_turn: int, turns: list[bool] | None, last: bool
) -> list[bool]:
    """Return which tokens of a conversation are trained: those of the assistant turns that `turns` names (None: all),
    or of its `last` one alone. `trained` are those of all turns; each ends with a trained end of turn.

    Raises:
        ContractError: where the template does not mark every assistant turn, so that nothing tells whose tokens are
            whose; and where no token is left.
    """
    ends = [i for i, token in enumerate(ids) if trained[i] and token == end_of_turn]
    if turns is not None and len(turns) != len(ends):
        raise ContractError(f"the template trains {len(ends)} of {len(turns)} assistant turns, and some have a weight")
    turns = [True] * len(ends) if turns is None else turns
    if last:
        turns = [False] * (len(turns) - 1) + turns[-1:]
    place, marks = 0, list[bool]()
    for i, marked in enumerate(trained):
        marks.append(marked and turns[place])
        place += marked and ids[i] == end_of_turn
    if not any(marks):
        raise ContractError("no token is trained: the conversation's answers have weight 0")
    return marks


class SupervisedTrainer(MicroBatches, SFTTrainer):
    """`train_dataset` holds `input_ids` and `labels`; packed, `seq_lengths` too."""

    arguments: ClassVar = {"eval_packing": False, "dataset_kwargs": {"skip_prepare_dataset": True}}

    @property
    def is_padded(self) -> bool:
        return not self.data_collator.padding_free

    def count_tokens(self, row: Row) -> int:
        return len(row["input_ids"])

    def count_items(self, metric: str, batch: Batch) -> int:
        return int((batch["labels"][:, 1:] != -100).sum())

    def row_outputs(self, model: torch.nn.Module, rows: list[Row]) -> list[FusedCausalLMOutput]:
        output = model(**self._prepare_inputs(self.data_collator(rows)), use_cache=False, fused_lm_head=True)
        lengths = [len(row["input_ids"]) for row in rows]
        if self.is_padded:
            return [select_row(output, ([i], slice(n - 1))) for i, n in enumerate(lengths)]
        ends = zip(lengths, accumulate(lengths), strict=True)
        return [select_row(output, ([0], slice(end - n, end - 1))) for n, end in ends]


class IsolationCheck(TrainerCallback):
    """Before the first step on packed rows: an example must not attend to the one before it. Packs the first 32 tokens
    of an example with a copy of themselves, and has the model score both.

    A mask made from positions, lengths handed to a kernel, or our layout keeps packed examples apart. A model may
    ignore any of these and say nothing. So no list of implementations is trusted, but the model itself measured."""

    def __init__(self, trainer: SFTTrainer, cfg: SFT, example: list[int]):
        self.trainer, self.cfg, self.ids = trainer, cfg, example[:CHECKED_TOKENS]

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        gap, nats = self.measure()
        # A model that attends to the first copy predicts the second from it. The log-probs of a trained model then
        # rise by nats; `agreement` allows 1e-5 in fp32 and 0.03 in bf16.
        if not gap <= allowed_gap(self.cfg.precision, nats):
            attention = attention_name(self.trainer.model)
            raise UserError(
                f"sft.packing=true: with this model ({attention} attention) an example would see the one packed "
                f"before it: behind a copy of itself its log-probs move by {gap:.2g} nats per token. Set it to false."
            )

    @torch.no_grad()
    def measure(self) -> tuple[float, float]:
        """Mean |copy - first| and mean |first| of the log-probs per token, in nats."""
        count = len(self.ids)
        row = {"input_ids": self.ids * 2, "labels": self.ids * 2, "seq_lengths": [count, count]}
        batch = send_to_device(self.trainer.data_collator([row]), self.trainer.args.device)
        with autocast(self.cfg.precision, self.trainer.args.device):
            scored = self.trainer.model(**batch, use_cache=False, fused_lm_head=True).log_probs[0].float()
        first, copy = scored[: count - 1], scored[count:]  # left out: what scores the copy's first token
        return float((copy - first).abs().mean()), float(first.abs().mean())


def trainable_model(base: Path, contract: Contract, cfg: SFT, device: torch.device) -> PreTrainedModel | PeftModel:
    """Return the base model, or a fresh adapter over it, as it is trained."""
    model = apply_contract(load_model(base, cfg.held, device), contract, cfg.seed)
    if cfg.packing:
        pack_segments(model)
    disable_dropout_in_model(model)  # dropout draws a mask per micro-batch: the division of a step would change it
    return adapters.apply_adapter(model, cfg)


def apply_contract(model: PreTrainedModel, contract: Contract, seed: int) -> PreTrainedModel:
    """Return the model with a row for every token of the contract, whose tokens its generation config has."""
    if len(contract.tokenizer) > model.get_input_embeddings().num_embeddings:
        torch.manual_seed(seed)
        model.resize_token_embeddings(len(contract.tokenizer))  # asked for by template.resize
    model.generation_config.eos_token_id = contract.stop_ids
    model.generation_config.pad_token_id = contract.tokenizer.pad_token_id
    return model


def write_token_example(row: Demonstration, contract: Contract, path: Path) -> None:
    """One training example token by token: its text, whether it is trained or ends the turn, and whether it is of an
    assistant turn that is masked."""
    _, answers = contract.example(row.example.conversation)
    tokens = [
        {"text": contract.tokenizer.decode([i]), "trained": trained, "end_of_turn": i == contract.stop_ids[0]}
        | ({"masked": True} if answer and not trained else {})
        for i, trained, answer in zip(row.ids, row.trained, answers, strict=True)
    ]
    safe_files.write(path, json.dumps(tokens, ensure_ascii=False))
