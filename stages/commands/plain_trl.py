"""The first steps of a training by our trainer and by TRL's own, on the same rows with the same start and arguments.

TRL prepares the rows from their text, pads them, and computes log-probs and reference itself.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import release_memory
from datasets import Dataset
from jinja2 import TemplateError
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments
from trl import DPOTrainer, RewardTrainer, SFTTrainer

from stages.config.blocks.training import DPO, SFT, Reward, Training
from stages.config.choices import Adapter, Forward
from stages.config.errors import UserError
from stages.config.schema import Parity
from stages.models import lm_head
from stages.models.chat_templates import establish_contract
from stages.models.contract import load_contract
from stages.models.loading import count_embedding_rows, load_model, load_tokenizer, read_context_length
from stages.models.scoring import join_reference
from stages.objectives import dpo, reward, sft
from stages.store.records import Example, Pair, PairLogProbs, stream
from stages.store.source_files import read_template
from stages.store.workspace import StageDir
from stages.training.adapters import AnyModel, cast_trained_to_fp32
from stages.training.arguments import training_arguments
from stages.training.callbacks import TrainingProgress
from stages.training.fit import Fit, train_with_callbacks
from stages.training.token_rows import Row

POSITION, PARTLY = "position", "partly_trained"  # columns next to TRL's
TRL_ROWS = 8  # TRL's default of rows in a micro-batch

Tokens = tuple[list[int], list[bool]]  # a sequence's token ids, and True for each token with a loss


class TokenRow(NamedTuple):
    """The sequences of a row. `partly`: whether an SFT row has an untrained turn; None for pairs."""

    sequences: list[Tokens]
    partly: bool | None


@dataclass
class Setup:
    """A training that both trainers can run. `load` returns the start model of a block, `texts` yields TRL's columns
    of each row with its id, and `reference` is the folder of DPO's reference model."""

    fit: Fit[Any, Any]
    trl: type[Trainer]
    load: Callable[[Any], AnyModel]
    texts: Iterable[tuple[str, Row]]
    reference: Path | None = None


class FirstSteps(TrainerCallback):
    """Record the first `limit` steps of a training, and end it. `rates` replaces the learning rates of the trainer's
    schedule, if not empty. `trained` counts the tokens of each step that have a loss; of a reward model, which has no
    labels, those that it does not take for padding. `trained_padding` counts padding with a loss."""

    def __init__(self, trainer: Trainer, limit: int, rates: Sequence[float] = ()):
        self.trainer, self.limit, self.rates = trainer, limit, rates
        self.trained, self.trained_padding = list[int](), 0
        trainer.model.register_forward_pre_hook(self.count_trained, with_kwargs=True)

    def count_trained(self, model: Any, args: Any, inputs: dict[str, torch.Tensor]) -> None:
        if "labels" in inputs:
            marked = inputs["labels"] != -100
        else:
            marked = inputs["input_ids"] != model.config.get_text_config().pad_token_id
        self.trained[-1] += int(marked[:, 1:].sum())
        self.trained_padding += int((marked & (inputs["attention_mask"] == 0)).sum())

    def on_step_begin(self, args: Any, state: Any, control: Any, *, optimizer: Any, **_: Any) -> None:
        self.trained.append(0)
        for group in optimizer.param_groups if self.rates else ():
            group["lr"] = self.rates[state.global_step]

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step >= self.limit

    def finish(self) -> None:
        """Take loss, gradient norm and learning rate of each step and the trained weights, and drop the trainer."""
        state = self.trainer.state
        self.total, self.figures = state.max_steps, [log for log in state.log_history if "grad_norm" in log]
        parameters = self.trainer.model.named_parameters()
        self.weights = {name: p.detach().cpu() for name, p in parameters if p.requires_grad}
        del self.trainer
        release_memory()


def set_up_sft(cfg: SFT, inputs: dict[str, Path], out: StageDir) -> Setup:
    base, table = inputs["base"] / "model", inputs["data"] / "examples.parquet"
    contract = establish_contract(load_tokenizer(base), cfg.template, cfg.train, count_embedding_rows(base))
    rows = sft.read_rows(stream(table, Example), contract, cfg, out, read_context_length(base))
    fit = Fit(sft.SupervisedTrainer, cfg, rows, contract, base, out)
    examples = stream(table, Example)
    texts = ((e.id, {"messages": e.conversation, PARTLY: sft.has_masked_turn(e, cfg)}) for e in examples)
    return Setup(fit, SFTTrainer, lambda block: sft.trainable_model(base, contract, block, fit.args.device), texts)


def set_up_dpo(cfg: DPO, inputs: dict[str, Path], out: StageDir) -> Setup:
    policy, pairs = inputs["policy"], inputs["pairs"] / "pairs.parquet"
    contract, frozen = load_contract(policy / "model"), inputs.get("frozen", policy) / "model"
    scored = join_reference(stream(pairs, Pair), stream(inputs["reference"] / "logprobs.parquet", PairLogProbs))
    fit = Fit(dpo.StoredReferenceTrainer, cfg, dpo.read_rows(scored, contract, cfg, out), contract, frozen, out)
    load = lambda block: dpo.trainable_model(frozen, policy / "adapter", block, fit.args.device, out)
    return Setup(fit, DPOTrainer, load, pair_texts(pairs), inputs["reference_model"] / "model")


def set_up_reward(cfg: Reward, inputs: dict[str, Path], out: StageDir) -> Setup:
    policy, pairs = inputs["policy"] / "model", inputs["pairs"] / "pairs.parquet"
    contract = load_contract(policy)
    rows = reward.read_rows(stream(pairs, Pair), contract, cfg, out, read_context_length(policy))
    fit = Fit(reward.PairwiseRewardTrainer, cfg, rows, contract, policy, out)
    load = lambda block: reward.trainable_model(policy, contract, block, fit.args.device, out)
    return Setup(fit, RewardTrainer, load, pair_texts(pairs, *(["margin"] if cfg.margin else [])))


def pair_texts(table: Path, *more: str) -> Iterator[tuple[str, Row]]:
    columns = ("prompt", "chosen", "rejected", *more)
    return ((pair.id, {name: getattr(pair, name) for name in columns}) for pair in stream(table, Pair))


def train_ours(setup: Setup, limit: int) -> tuple[FirstSteps, list[str], Dataset]:
    """Train the first steps by our trainer. Return them, with ids and token columns of their rows in order."""
    fit = setup.fit
    trainer = fit.build_trainer(setup.load(fit.cfg))
    steps = FirstSteps(trainer, limit)
    train_with_callbacks(trainer, fit.cfg, fit.out, steps)
    steps.finish()
    epochs = chain.from_iterable(fit.schedule.epoch(number) for number in count())
    order = list(islice(epochs, len(steps.figures) * fit.cfg.batch_size))
    rows = trainer.train_dataset.select(order)
    steps.rows = [collate_row(trainer, row) for row in rows]
    columns = [name for name in rows.column_names if not name.startswith("ref_")]
    return steps, [fit.rows.train.ids[i] for i in order], rows.select_columns(columns)


def build_trl_trainer(setup: Setup, cfg: Parity, ids: list[str], total: int) -> Trainer:
    """Return TRL's trainer of the text of these rows in order, with the template, EOS and arguments of `cfg`. `total`:
    the steps of the whole training, by which the learning rate falls.

    Raises:
        UserError: if TRL refuses the arguments, the template or the rows.
    """
    fit, block, tokenizer = setup.fit, setup.fit.cfg, copy.deepcopy(setup.fit.contract.tokenizer)
    if cfg.template:
        tokenizer.chat_template = read_template(Path(cfg.template), "parity.template")
    if cfg.eos_token:
        if cfg.eos_token not in tokenizer.get_vocab():
            raise UserError(f"parity.eos_token={cfg.eos_token}: the vocabulary does not have this token.")
        tokenizer.eos_token = cfg.eos_token
    args = trl_arguments(setup, total, cfg.trl)
    unique = {*ids}
    texts = {name: row for name, row in setup.texts if name in unique}
    data = Dataset.from_list([{**texts[name], POSITION: position} for position, name in enumerate(ids)])
    model = setup.load(block if isinstance(block, SFT) else replace(block, forward=Forward.padded))
    frozen: dict[str, Any] = {}
    if setup.reference:
        frozen["ref_model"] = load_model(setup.reference, block.start_weights, fit.args.device)
    try:
        trainer = setup.trl(model, args=args, train_dataset=data, processing_class=tokenizer, **frozen)
    except (ValueError, RuntimeError, TemplateError) as error:
        raise UserError(f"stage=parity: TRL refuses this. {' '.join(str(error).split())[:300]}") from error
    if block.adapter is not Adapter.none:
        cast_trained_to_fp32(trainer.model)  # TRL would train an adapter over 4-bit weights in bf16
    return trainer


def trl_arguments(setup: Setup, total: int, changes: dict[str, Any] | None = None) -> TrainingArguments:
    """Return TRL's arguments of the training, with our batches and all steps of the schedule, and with `changes`."""
    block = setup.fit.cfg
    rows = math.gcd(block.batch_size, TRL_ROWS)
    arguments = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": block.batch_size // rows}
    arguments |= {"max_steps": total, "train_sampling_strategy": "sequential", "save_strategy": "no"}
    arguments |= {"assistant_only_loss": True} if isinstance(block, SFT) else {}
    return training_arguments(replace(block, trainer=block.trainer | arguments | (changes or {})), setup.fit.out)


def train_trl(trainer: Trainer, limit: int, followed: Sequence[dict[str, float]]) -> FirstSteps:
    """Train the first steps by TRL's trainer, with the learning rates of the `followed` steps if there are any."""
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    steps = FirstSteps(trainer, limit, [figures["learning_rate"] for figures in followed])
    trainer.add_callback(steps)
    trainer.add_callback(TrainingProgress())
    with lm_head.trl_head():
        trainer.train()
    steps.finish()
    return steps


def collate_by_position(trainer: Trainer) -> dict[int, TokenRow]:
    """Return the rows that TRL has prepared, by their position in the text."""
    return {row[POSITION]: collate_row(trainer, row) for row in trainer.train_dataset}


def collate_row(trainer: Trainer, row: Row) -> TokenRow:
    """Return a row's tokens as TRL's collator passes them to the model. For a reward model, all tokens are marked."""
    batch = trainer.data_collator([row])
    read = batch["attention_mask"].bool()
    marked = batch["labels"] != -100 if "labels" in batch else batch.get("completion_mask", read).bool()
    sequences = zip(batch["input_ids"], marked, read, strict=True)
    return TokenRow([(ids[real].tolist(), mark[real].tolist()) for ids, mark, real in sequences], row.get(PARTLY))
