"""Train the first steps of a stage by our trainer and by TRL's own, from the same weights, on the same rows."""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import torch
import trl
from accelerate.utils import release_memory
from datasets import Dataset
from jinja2 import TemplateError
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
)

from stages.config.blocks.training import DPO, SFT, Training
from stages.config.choices import Forward
from stages.config.errors import UserError
from stages.config.schema import Parity
from stages.models import lm_head
from stages.models.chat_templates import establish_contract
from stages.models.contract import load_contract
from stages.models.loading import (
    count_embedding_rows,
    load_model,
    load_tokenizer,
    read_context_length,
)
from stages.objectives import dpo, reward, sft
from stages.store.records import Example, Pair, stream
from stages.store.source_files import read_template
from stages.store.workspace import StageDir
from stages.training.adapters import AnyModel
from stages.training.arguments import training_arguments
from stages.training.callbacks import TrainingProgress
from stages.training.fit import Fit, train_with_callbacks
from stages.training.token_rows import Row

POSITION = "position"  # a column next to TRL's: the row's place among the first steps' rows
TRL_ROWS = 8  # TRL's default of rows in a micro-batch
AnyFit = Fit[Any, Any]
Arguments = dict[str, Any]  # of TRL
Inputs = dict[str, Path]
Tokens = tuple[list[int], list[bool]]  # a sequence's token ids, and True for each token with a loss
TokenRows = dict[int, list[Tokens]]  # the sequences of each row, by its position


class FirstSteps(TrainerCallback):
    """Record the first `limit` steps of a training, and end it. `rates` replace the learning rates of the trainer's
    schedule, if there are any. `trained` has the number of tokens with a loss of each step; of a reward model, which
    has no labels, the number of tokens that it does not take for padding."""

    def __init__(self, trainer: Trainer, limit: int, rates: Sequence[float] = ()):
        self.trainer, self.limit, self.rates, self.trained = trainer, limit, rates, list[int]()
        trainer.model.register_forward_pre_hook(self.count_trained, with_kwargs=True)

    def count_trained(self, model: Any, args: Any, batch: dict[str, torch.Tensor]) -> None:
        ids, pad = batch["input_ids"], model.config.get_text_config().pad_token_id
        self.trained[-1] += int(
            (batch["labels"] != -100 if "labels" in batch else ids != pad)[:, 1:].sum()
        )

    def on_step_begin(
        self, args: Any, state: Any, control: Any, *, optimizer: Any, **_: Any
    ) -> None:
        self.trained.append(0)
        for group in optimizer.param_groups if self.rates else ():
            group["lr"] = self.rates[state.global_step]

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step >= self.limit

    def finish(self) -> None:
        """Take the logged figures of each step and the trained weights, and drop the trainer."""
        state, parameters = self.trainer.state, self.trainer.model.named_parameters()
        self.figures = [entry for entry in state.log_history if "grad_norm" in entry]
        self.total = state.max_steps
        self.weights = {name: p.detach().cpu() for name, p in parameters if p.requires_grad}
        del self.trainer
        release_memory()


def prepare_fit(cfg: Any, inputs: Inputs, out: StageDir) -> AnyFit:
    """Return the training of a block, with the rows of its stage."""
    if isinstance(cfg, SFT):
        base, examples = (
            inputs["base"] / "model",
            stream(inputs["data"] / "examples.parquet", Example),
        )
        contract = establish_contract(
            load_tokenizer(base), cfg.template, cfg.train, count_embedding_rows(base)
        )
        rows: Any = sft.read_rows(examples, contract, cfg, out, read_context_length(base))
        return Fit(sft.SupervisedTrainer, cfg, rows, contract, base, out)
    policy, contract = inputs["policy"] / "model", load_contract(inputs["policy"] / "model")
    if isinstance(cfg, DPO):
        rows, frozen = (
            dpo.read_rows(inputs, contract, cfg, out),
            inputs.get("frozen", inputs["policy"]) / "model",
        )
        return Fit(dpo.StoredReferenceTrainer, cfg, rows, contract, frozen, out)
    pairs = stream(inputs["pairs"] / "pairs.parquet", Pair)
    rows = reward.read_rows(pairs, contract, cfg, out, read_context_length(policy))
    return Fit(reward.PairwiseRewardTrainer, cfg, rows, contract, policy, out)


def load_start(fit: AnyFit, inputs: Inputs, **forward: Forward) -> AnyModel:
    """Return the model before the first step."""
    block, device = replace(fit.cfg, **forward), fit.args.device
    if isinstance(block, SFT):
        return sft.trainable_model(fit.start, fit.contract, block, device)
    if isinstance(block, DPO):
        frozen = load_model(fit.start, block.start_weights, device)
        return dpo.trainable_model(frozen, inputs["policy"] / "adapter", block, fit.out)
    return reward.trainable_model(fit.start, fit.contract, block, device, fit.out)


def train_ours(
    fit: AnyFit, inputs: Inputs, limit: int
) -> tuple[FirstSteps, list[str], Dataset, TokenRows]:
    """Train the first steps by our trainer. Return them, and their rows' ids, TRL's columns and tokens in order."""
    trainer = fit.build_trainer(load_start(fit, inputs))
    steps = FirstSteps(trainer, limit)
    train_with_callbacks(trainer, fit.cfg, fit.out, steps)
    steps.finish()
    epochs = chain.from_iterable(map(fit.schedule.epoch, count()))
    order = list(islice(epochs, len(steps.figures) * fit.cfg.batch_size))
    rows = trainer.train_dataset.select(order)
    columns = [name for name in rows.column_names if not name.startswith("ref_")]
    tokens = {position: collate_row(trainer, row) for position, row in enumerate(rows)}
    return steps, [fit.rows.train.ids[i] for i in order], rows.select_columns(columns), tokens


def prepare_tokenizer(fit: AnyFit, cfg: Parity) -> PreTrainedTokenizerBase:
    """Return a tokenizer with the template and EOS of TRL's side. Raise UserError if it cannot have them."""
    tokenizer = copy.deepcopy(fit.contract.tokenizer)
    if cfg.template:
        tokenizer.chat_template = read_template(Path(cfg.template), "parity.template")
    if cfg.eos_token:
        if cfg.eos_token not in tokenizer.get_vocab():
            raise UserError(
                f"parity.eos_token={cfg.eos_token}: the vocabulary does not have this token."
            )
        tokenizer.eos_token = cfg.eos_token
    return tokenizer


def build_trl_trainer(
    fit: AnyFit,
    inputs: Inputs,
    arguments: Arguments,
    tokenizer: PreTrainedTokenizerBase,
    ids: list[str],
    total: int,
) -> Trainer:
    """Return TRL's trainer of the text of these rows in order, with these arguments over those of the run. `total` is
    the number of steps of the whole training, on which learning rates depend.
    Raise UserError if TRL refuses the arguments, the template or the rows."""
    block = fit.cfg
    args = training_arguments(
        replace(block, trainer=trl_arguments(block, total) | arguments), fit.out
    )
    texts = read_texts(block, inputs, {*ids})
    data = Dataset.from_list(
        [{**texts[name], POSITION: position} for position, name in enumerate(ids)]
    )
    padded = {} if isinstance(block, SFT) else {"forward": Forward.padded}
    parts: dict[str, Any] = {"model": load_start(fit, inputs, **padded)}
    if isinstance(block, DPO):
        parts["ref_model"] = load_model(
            inputs["reference_model"], block.start_weights, fit.args.device
        )
    try:
        trainer_class = getattr(trl, block.objective.trl.replace("Config", "Trainer"))
        return trainer_class(args=args, train_dataset=data, processing_class=tokenizer, **parts)
    except (ValueError, RuntimeError, TemplateError) as error:
        raise UserError(
            f"stage=parity: TRL refuses this. {' '.join(str(error).split())[:300]}"
        ) from error


def trl_arguments(block: Training, total: int) -> Arguments:
    """Return the arguments of TRL that the block passes through, and those that give it our batches and schedule."""
    rows = math.gcd(block.batch_size, TRL_ROWS)
    batch = {
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": block.batch_size // rows,
    }
    order = {"max_steps": total, "train_sampling_strategy": "sequential", "save_strategy": "no"}
    return (
        block.trainer
        | batch
        | order
        | ({"assistant_only_loss": True} if isinstance(block, SFT) else {})
    )


def read_texts(cfg: Any, inputs: Inputs, ids: set[str]) -> dict[str, Row]:
    """Return the columns of text that TRL reads, by id."""
    if isinstance(cfg, SFT):
        examples = stream(inputs["data"] / "examples.parquet", Example)
        return {e.id: {"messages": e.conversation} for e in examples if e.id in ids}
    names = ["prompt", "chosen", "rejected"] + (["margin"] if getattr(cfg, "margin", False) else [])
    pairs = stream(inputs["pairs"] / "pairs.parquet", Pair)
    return {
        pair.id: {name: getattr(pair, name) for name in names} for pair in pairs if pair.id in ids
    }


def train_trl(trainer: Trainer, limit: int, rates: Sequence[float]) -> FirstSteps:
    """Train the first steps by TRL's trainer, with these learning rates if there are any."""
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    steps = FirstSteps(trainer, limit, rates)
    trainer.add_callback(steps)
    trainer.add_callback(TrainingProgress())
    lm_head.restore_trl_head()
    trainer.train()
    steps.finish()
    return steps


def collate_row(trainer: Trainer, row: Row) -> list[Tokens]:
    """Return a row's sequences as TRL's collator passes them on. For a reward model, all tokens are marked."""
    batch = trainer.data_collator([row])
    read = batch["attention_mask"].bool()
    marked = (
        batch["labels"] != -100 if "labels" in batch else batch.get("completion_mask", read).bool()
    )
    return [
        (ids[r].tolist(), mark[r].tolist())
        for ids, mark, r in zip(batch["input_ids"], marked, read, strict=True)
    ]
