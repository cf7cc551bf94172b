"""Train the first steps of a stage by our trainer and by TRL's own, from the same weights, on the same rows."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, count, islice
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import trl
from accelerate.utils import release_memory
from datasets import Dataset
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from trl.kernels import ChunkedLogProbFunction
from trl.trainer import utils as trl_utils

from stages.config.blocks.runtimes import SampledRuntime
from stages.config.blocks.training import SFT
from stages.config.choices import Forward
from stages.models.chat_templates import establish_contract
from stages.models.contract import load_contract
from stages.models.lm_head import score_as_trl
from stages.models.loading import (
    count_embedding_rows,
    load_model,
    load_tokenizer,
    read_context_length,
)
from stages.objectives import dpo, sft
from stages.store.records import Example, Pair, stream
from stages.store.workspace import StageDir
from stages.training.adapters import AnyModel
from stages.training.arguments import training_arguments
from stages.training.callbacks import TrainingProgress
from stages.training.fit import Fit
from stages.training.token_rows import Row
from stages.training.trainer import count_warmup_steps

# TRL's own, which every trainer of ours replaces. No trainer has been made when this module is imported.
TRLS_USE_OF_TRITON = trl_utils._use_triton
RATE = "learning_rate"  # in a trainer's log
TRL_ROWS = 8  # TRL's default of rows in a micro-batch
AnyFit = Fit[Any, Any]
Inputs = dict[str, Path]


class FirstSteps(TrainerCallback):
    """Record the first `limit` steps of a training, and end it. `rates` replace the learning rates of the trainer's
    schedule, if there are any. `trained` has the number of tokens with a loss of each step; of a reward model, which
    has no labels, the number of tokens that it does not take for padding."""

    def __init__(self, trainer: Trainer, limit: int, rates: Sequence[float] = ()):
        self.trainer, self.limit, self.rates, self.trained = trainer, limit, rates, list[int]()
        trainer.model.register_forward_pre_hook(self.count_trained, with_kwargs=True)

    def count_trained(self, model: Any, args: Any, batch: dict[str, torch.Tensor]) -> None:
        ids, pad = batch["input_ids"], model.config.get_text_config().pad_token_id
        is_trained = batch["labels"] != -100 if "labels" in batch else ids != pad
        self.trained[-1] += int(is_trained[:, 1:].sum())

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


def train_both(
    block: Any, inputs: Inputs, out: StageDir, limit: int
) -> tuple[FirstSteps, FirstSteps]:
    """Train the first steps of a stage's block from these inputs. Return ours, then TRL's of the same token ids.

    Assert that TRL's own rows of the same texts are the same, up to what the template appends to an end of turn."""
    fit = prepare_fit(alone(block), inputs, out)
    own, ids, rows = train_ours(fit, inputs, limit)
    trainer = build_trl_trainer(fit, inputs, ids, own.total)
    if isinstance(block, SFT):
        assert_same_rows(rows, trainer.train_dataset, fit)
    trainer.train_dataset = rows
    # TRL's warm-up starts at a rate of 0, and ours above.
    has_warmup = count_warmup_steps(fit.args.warmup_steps, own.total) > 0
    rates = [figures[RATE] for figures in own.figures] if has_warmup else []
    return own, train_trl(trainer, len(own.figures), rates)


def alone(block: Any) -> Any:
    """Return a training block for one process, without packing, evaluations, samples and checkpoints."""
    runtime: dict[str, Any] = {"processes": 1, "save_steps": 10**9, "save_minutes": 1e6}
    if isinstance(block.runtime, SampledRuntime):
        runtime["samples"] = 0
    unpacked = {"packing": False} if isinstance(block, SFT) else {}
    return replace(block, evaluations=0, runtime=replace(block.runtime, **runtime), **unpacked)


def prepare_fit(cfg: Any, inputs: Inputs, out: StageDir) -> AnyFit:
    """Return the training of a block, with the rows of its stage."""
    if isinstance(cfg, SFT):
        base = inputs["base"] / "model"
        examples = stream(inputs["data"] / "examples.parquet", Example)
        tokenizer, vocabulary = load_tokenizer(base), count_embedding_rows(base)
        contract = establish_contract(tokenizer, cfg.template, cfg.train, vocabulary)
        rows: Any = sft.read_rows(examples, contract, cfg, out, read_context_length(base))
        return Fit(sft.SupervisedTrainer, cfg, rows, contract, base, out)
    policy, contract = inputs["policy"] / "model", load_contract(inputs["policy"] / "model")
    rows = dpo.read_rows(inputs, contract, cfg, out)
    return Fit(dpo.StoredReferenceTrainer, cfg, rows, contract, policy, out)


def load_start(fit: AnyFit, inputs: Inputs, **forward: Forward) -> AnyModel:
    """Return the model before the first step."""
    block, device = replace(fit.cfg, **forward), fit.args.device
    if isinstance(block, SFT):
        return sft.trainable_model(fit.start, fit.contract, block, device)
    frozen = load_model(fit.start, block.start_weights, device)
    return dpo.trainable_model(frozen, inputs["policy"] / "adapter", block, fit.out)


def train_ours(fit: AnyFit, inputs: Inputs, limit: int) -> tuple[FirstSteps, list[str], Dataset]:
    """Train the first steps by our trainer. Return them, and their rows' ids and TRL's columns in order."""
    trainer = fit.build_trainer(load_start(fit, inputs))
    steps = FirstSteps(trainer, limit)
    fit.train(steps)
    steps.finish()
    epochs = chain.from_iterable(map(fit.schedule.epoch, count()))
    order = list(islice(epochs, len(steps.figures) * fit.cfg.batch_size))
    rows = trainer.train_dataset.select(order)
    columns = [name for name in rows.column_names if not name.startswith("ref_")]
    return steps, [fit.rows.train.ids[i] for i in order], rows.select_columns(columns)


def build_trl_trainer(fit: AnyFit, inputs: Inputs, ids: list[str], total: int) -> Trainer:
    """Return TRL's trainer of the texts of these rows in order. `total` is the number of steps of the whole training,
    on which learning rates depend."""
    block = fit.cfg
    rows = math.gcd(block.batch_size, TRL_ROWS)
    arguments = block.trainer.extra | {
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": block.batch_size // rows,
        "max_steps": total,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
    }
    parts: dict[str, Any] = {}
    if isinstance(block, SFT):
        arguments["assistant_only_loss"] = True
        parts["model"] = load_start(fit, inputs)
    else:
        parts["model"] = load_start(fit, inputs, forward=Forward.padded)
        reference = inputs["reference_model"]
        parts["ref_model"] = load_model(reference, block.start_weights, fit.args.device)
    args = training_arguments(
        replace(block, trainer=replace(block.trainer, extra=arguments)), fit.out
    )
    texts = read_texts(block, inputs, {*ids})
    data = Dataset.from_list([texts[name] for name in ids])
    trainer_class = getattr(trl, block.objective.trl.replace("Config", "Trainer"))
    tokenizer = fit.contract.tokenizer
    return trainer_class(args=args, train_dataset=data, processing_class=tokenizer, **parts)


def read_texts(cfg: Any, inputs: Inputs, ids: set[str]) -> dict[str, Row]:
    """Return the columns of text that TRL reads, by id."""
    if isinstance(cfg, SFT):
        examples = stream(inputs["data"] / "examples.parquet", Example)
        return {e.id: {"messages": e.conversation} for e in examples if e.id in ids}
    names = ("prompt", "chosen", "rejected")
    pairs = stream(inputs["pairs"] / "pairs.parquet", Pair)
    return {
        pair.id: {name: getattr(pair, name) for name in names} for pair in pairs if pair.id in ids
    }


def assert_same_rows(rows: Dataset, trl_rows: Dataset, fit: AnyFit) -> None:
    """Assert that TRL reads a conversation as these token ids and masks. After its end of turn TRL reads white space
    too, which is left out here."""
    tokenizer = fit.contract.tokenizer
    for row, trl_row in zip(rows, trl_rows, strict=True):
        length = len(row["input_ids"])
        assert trl_row["input_ids"][:length] == row["input_ids"]
        assert trl_row["labels"][:length] == row["labels"]
        assert not tokenizer.decode(trl_row["input_ids"][length:]).strip()


def train_trl(trainer: Trainer, limit: int, rates: Sequence[float]) -> FirstSteps:
    """Train the first steps by TRL's trainer, with these learning rates if there are any."""
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    steps = FirstSteps(trainer, limit, rates)
    trainer.add_callback(steps)
    trainer.add_callback(TrainingProgress())
    with (
        mock.patch.object(trl_utils, "_use_triton", TRLS_USE_OF_TRITON),
        mock.patch.object(ChunkedLogProbFunction, "apply", score_as_trl),
    ):
        trainer.train()
    steps.finish()
    return steps
