"""SFT, supervised fine-tuning on the assistant's tokens: rows, TRL's SFTTrainer, model, and a check of packing."""

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice, tee
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import SFTTrainer

from stages.config.blocks.objective import Training
from stages.config.blocks.training import SFT
from stages.config.choices import Adapter, Sharding, Split, Turns, Weights
from stages.config.errors import UserError
from stages.models.contract import Contract, is_running_text
from stages.models.loading import count_embedding_rows, load_model, tokens_without_row
from stages.models.packing import add_layout, attention_name, pack_segments, send_batch
from stages.models.rendering import ContractError
from stages.models.scoring import IGNORED, allowed_gap, autocast
from stages.objectives.remarks import Remarks
from stages.store import safe_files
from stages.store.dropped import Dropped
from stages.store.records import Example, Message
from stages.store.thoughts import split_thought
from stages.store.workspace import StageDir
from stages.training.adapters import AnyModel, apply_adapter
from stages.training.end_of_turn import separate_end_of_turn
from stages.training.fit import SplitRows
from stages.training.micro_batches import OTHERS, Batch, MicroBatches
from stages.training.token_rows import Row, TokenRows

CHECKED_TOKENS = 32
EXAMPLES_READ = (
    200  # demonstrations that say whether the model is to think, and which turns are trained
)
HIGHEST_MEAN = 700.0  # nats per token; exp of more is no float
MOST_REREAD = 3  # times the tokens of the last answers' rows that rows for each answer may have


class Demonstration(NamedTuple):
    """A stretch of an example: its token ids, True for each trained token, and for each token that is part of an answer;
    `answers`: the texts of those that are trained."""

    example: Example
    ids: list[int]
    trained: list[bool]
    answered: list[bool]
    answers: list[str]

    @property
    def masked(self) -> bool:
        """True if an answer is not trained."""
        return self.trained != self.answered


class Demonstrations(SplitRows[TokenRows]):
    """The rows of SFT. The report shows `report_row`: the first row, or the first with an untrained assistant turn.
    `texts`: how many training rows are running text."""

    report_row: Demonstration
    texts: int = 0


def read_rows(
    examples: Iterable[Example],
    contract: Contract,
    cfg: SFT,
    out: StageDir,
    context: int | None = None,
) -> Demonstrations:
    """Tokenise the examples for training and evaluation. `context` is the number of tokens that the model reads.
    Raise UserError if there is nothing to train on, or too many examples were dropped."""
    rows = Demonstrations(TokenRows, cfg, out)
    report_rows = list[Demonstration]()
    answered = (e for e in examples if e.reference and e.split in (Split.sft, Split.validation))
    remarks = Remarks(contract)
    for row in tokenize_examples(answered, contract, cfg, rows.left_out, context):
        remarks.add(row.example, row.ids, row.answers)
        number = remarks.rows[row.example.id]
        name = f"{row.example.id}#{number}" if number > 1 else row.example.id
        rows.add(row.example.split, name, (row.ids, row.trained), row.example.messages)
        is_text = is_running_text(row.example.conversation)
        rows.texts += is_text and row.example.split == Split.sft
        if row.example.split == Split.sft and (
            not report_rows or (row.masked and not report_rows[-1].masked)
        ):
            report_rows.append(row)
    rows.settle()
    for sentence in remarks.sentences():
        out.warn(sentence)
    if not report_rows:
        raise UserError(
            "the data has no rows for SFT. Raise data.tasks.sft, or add a source with a share for sft."
        )
    rows.report_row = report_rows[-1]
    return rows


def think(examples: Iterable[Example]) -> bool:
    """Return whether most of the first demonstrations have thoughts."""
    answers = [str(e.reference) for e in first_demonstrations(examples)]
    thoughts = [split_thought(answer) is not None for answer in answers]
    return 2 * sum(thoughts) > len(thoughts)


def first_demonstrations(examples: Iterable[Example]) -> list[Example]:
    """Return the first EXAMPLES_READ examples that SFT trains on, running texts apart."""
    demonstrations = (e for e in examples if e.reference and e.messages and e.split == Split.sft)
    return [*islice(demonstrations, EXAMPLES_READ)]


def choose_turns(examples: Iterable[Example], contract: Contract, out: StageDir) -> Turns:
    """Return which answers of a conversation are trained if nobody says it: each, or the last if the template changes
    earlier turns so often that the rows of each answer have more than MOST_REREAD times the tokens."""
    demonstrations = first_demonstrations(examples)
    conversations = [e.conversation for e in demonstrations if answers_in(e.messages)]
    each = last = 0
    for stretches in contract.all_stretches(conversations):
        if not isinstance(stretches, ContractError):
            each += sum(len(stretch.ids) for stretch in stretches)
            last += len(stretches[-1].ids)
    if each <= MOST_REREAD * last:
        return Turns.each
    out.warn(
        f"the chat template changes earlier turns: to train each answer after the prompt as it is generated takes "
        f"{each / last:.1f} times the tokens of the last alone. The last is trained. sft.turns=each trains all."
    )
    return Turns.last


def answers_in(messages: list[Message]) -> list[int]:
    """Return the places of the assistant's turns."""
    return [i for i, message in enumerate(messages) if message["role"] == "assistant"]


def new_tokens(contract: Contract, rows: int) -> list[str]:
    """Return the tokens that have none of the base model's `rows` of embeddings, without the pad token: nothing reads
    its row."""
    tokenizer = contract.tokenizer
    return [each for each in tokens_without_row(tokenizer, rows) if each != tokenizer.pad_token]


def require_trained_rows(contract: Contract, cfg: SFT, rows: int) -> None:
    """Raise UserError for tokens without one of the base model's `rows` of embeddings, if an adapter would leave their
    new rows as they are drawn: one over 4-bit weights, or of a sharded model."""
    sharded = cfg.runtime.sharding is not Sharding.none
    leaves_rows = cfg.adapter is Adapter.qlora or (cfg.adapter is Adapter.lora and sharded)
    new = new_tokens(contract, rows)
    if new and leaves_rows:
        problem = f"the base model has no embedding of {', '.join(new[:5])}"
        how = f"sft.adapter={cfg.adapter} {'with sharded weights ' if sharded else ''}trains none"
        raise UserError(f"{problem}, and {how}. Train all weights: sft.adapter=none.")


def tokenize_examples(
    examples: Iterable[Example],
    contract: Contract,
    cfg: SFT,
    dropped: Dropped,
    context: int | None = None,
) -> Iterator[Demonstration]:
    """Yield every example that the template can render and that fits into `max_length` and `context`: in one row, or in
    one for each stretch of which an answer is trained."""
    examples, copies = tee(examples)
    longest, reason_too_long, key = cfg.length_limit(context)
    dropped.most = context or dropped.most
    for example, stretches in zip(
        examples, contract.all_stretches(e.conversation for e in copies), strict=True
    ):
        try:
            if isinstance(stretches, ContractError):
                raise stretches
            turns = trained_turns(example, cfg)
        except ContractError as reason:
            dropped.add(example.id, reason)
            continue
        rows = list[Demonstration]()
        for each in stretches:
            mine = turns & {answer.turn for answer in each.answers}
            if mine:
                answers = [example.conversation[turn]["content"] for turn in sorted(mine)]
                trained = each.trained(mine)
                rows.append(Demonstration(example, each.ids, trained, each.trained(), answers))
        most = max((len(row.ids) for row in rows), default=0)
        if most > longest:
            dropped.add(example.id, reason_too_long, most, key)
            continue
        yield from rows


def trained_turns(example: Example, cfg: SFT) -> set[int]:
    """Return the turns of a conversation that are trained: those of the assistant, but not of weight 0, or the last.
    Raise ContractError if none is."""
    turns = answers_in(example.conversation)
    weights = example.trained or [True] * len(turns)
    if len(weights) != len(turns):
        raise ContractError(f"{len(weights)} weights stand beside {len(turns)} answers")
    trained = {turn for turn, weight in zip(turns, weights, strict=True) if weight}
    if cfg.turns is Turns.last:
        trained &= {turns[-1]}
    if not trained:
        raise ContractError("no token is trained: the conversation's answers have weight 0")
    return trained


class SupervisedTrainer(MicroBatches, SFTTrainer):
    """TRL's SFTTrainer on rows of `input_ids` and `labels`, and in packed rows `seq_lengths`. The loss is the mean of
    -log π(token | preceding tokens) over the trained tokens of a step."""

    arguments: ClassVar = {"eval_packing": False, "dataset_kwargs": {"skip_prepare_dataset": True}}
    # of Trainer and TRL
    label_smoother: Any
    router_aux_loss_coef: float

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # Trainer sets what the model says. Some models say no, and then no step's tokens are counted.
        self.model_accepts_loss_kwargs = True

        # sum and number of tokens of each held-out running text
        self.text_nats = list[torch.Tensor]()

    @property
    def is_padded(self) -> bool:
        return not self.data_collator.padding_free

    def count_tokens(self, row: Row) -> int:
        return len(row["input_ids"])

    def count_terms(self, batch: Batch) -> dict[str, int | torch.Tensor]:
        return {OTHERS: (batch["labels"][:, 1:] != IGNORED).sum()}

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Add the perplexity of held-out running texts to the metrics: e to the mean of -log π over all their tokens."""
        self.text_nats.clear()
        output = super().evaluation_loop(*args, **kwargs)
        nats, tokens = torch.cat(self.text_nats).sum(0).tolist()
        if tokens:
            mean = min(nats / tokens, HIGHEST_MEAN)
            output.metrics["eval_text_perplexity"] = math.exp(mean)
        return output

    @contextmanager
    def scoring_by_nll(self) -> Iterator[None]:
        """Let the loss be -log π while the block runs."""
        loss_type = self.args.loss_type
        smoother = self.label_smoother
        coefficient = self.router_aux_loss_coef
        self.args.loss_type = "nll"
        self.label_smoother = None
        self.router_aux_loss_coef = 0.0
        try:
            yield
        finally:
            self.args.loss_type = loss_type
            self.label_smoother = smoother
            self.router_aux_loss_coef = coefficient

    def prediction_step(self, model: Any, inputs: Row, *args: Any, **kwargs: Any) -> Any:
        """Evaluate a row by -log π alone. The loss `dft` is small for improbable tokens, so it orders no models; smoothed
        labels and an auxiliary loss would be part of a perplexity.
        Note the sum of a running text. A row is one if its second token is trained: a prompt is longer."""
        with self.scoring_by_nll():
            loss, *others = super().prediction_step(model, inputs, *args, **kwargs)
        marks = inputs["labels"].flatten()[1:] != IGNORED
        tokens = marks.sum() * marks[0]
        nats = torch.stack([loss * tokens, tokens.to(loss)])
        self.text_nats.append(self.accelerator.gather_for_metrics(nats[None].to(self.args.device)))
        return loss, *others


class IsolationCheck(TrainerCallback):
    """Before the first step on packed rows, check that an example does not attend to the one before it. The model
    scores the first 32 tokens of an example, packed with a copy of themselves.

    A mask from positions, lengths given to a kernel, or our layout separates packed examples. A model may silently
    ignore any of these. So the model itself is measured, and no list of implementations is trusted."""

    def __init__(self, trainer: SFTTrainer, cfg: SFT, example: list[int]):
        self.trainer = trainer
        self.cfg = cfg
        self.ids = example[:CHECKED_TOKENS]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        try:
            gap, nats = self.measure()
        except ValueError as error:  # as transformers' for a convolution that cannot separate them
            raise UserError(f"sft.packing=true: {error} Set sft.packing=false.") from error
        # If the model attends to the first copy, it predicts the second from it, and the log-probs of a trained model
        # rise by nats. `allowed_gap` is 1e-5 in fp32 and 0.03 in bf16.
        if not gap <= allowed_gap(self.cfg.precision, nats):
            problem = f"this model ({attention_name(self.trainer.model)} attention) does not separate packed examples"
            evidence = (
                f"after a copy of itself, an example's log-probs move by {gap:.2g} nats per token"
            )
            raise UserError(f"sft.packing=true: {problem}: {evidence}. Set sft.packing=false.")

    @torch.no_grad()
    def measure(self) -> tuple[float, float]:
        """Return mean |copy - first| and mean |first| of the log-probs, in nats per token."""
        count = len(self.ids)
        row = {"input_ids": self.ids * 2, "labels": self.ids * 2, "seq_lengths": [count, count]}
        batch = send_batch(
            add_layout(self.trainer.model, self.trainer.data_collator([row])),
            self.trainer.args.device,
        )
        with autocast(self.cfg.precision, self.trainer.args.device):
            output = self.trainer.model(**batch, use_cache=False, fused_lm_head=True)
        scored = output.log_probs[0].float()
        # The position before the copy's first token is left out, and so is padding.
        first = scored[: count - 1]
        copy = scored[count : 2 * count - 1]
        return float((copy - first).abs().mean()), float(first.abs().mean())


def trainable_model(base: Path, contract: Contract, cfg: SFT, device: torch.device) -> AnyModel:
    """Return the base model, or a new adapter on it, ready to train."""
    model = load_start(base, contract, cfg, cfg.start_weights, device)
    if cfg.packing:
        pack_segments(model)
    new = new_tokens(contract, count_embedding_rows(base))
    ids = contract.tokenizer.convert_tokens_to_ids(new)
    return apply_adapter(model, cfg, new_tokens=ids)


def load_start(
    base: Path,
    contract: Contract,
    cfg: Training,
    weights: Weights,
    device: torch.device | None = None,
) -> PreTrainedModel:
    """Return the base model under the contract, with a row of its own for the end of turn."""
    return separate_end_of_turn(
        apply_contract(load_model(base, weights, device), contract, cfg.seed), contract
    )


def apply_contract(model: PreTrainedModel, contract: Contract, seed: int) -> PreTrainedModel:
    """Return the model with an embedding row per token of the contract, and its stop and pad tokens for generation."""
    generation = model.generation_config
    try:
        generation.validate(strict=True)
    except ValueError:
        # as Vicuna's, a temperature without do_sample: transformers saves it only unchanged
        model.generation_config = type(generation)(bos_token_id=generation.bos_token_id)
    if len(contract.tokenizer) > model.get_input_embeddings().num_embeddings:
        torch.manual_seed(seed)
        is_loaded = model.device.type != "meta"  # else another process sends the rows
        # with template.resize=true
        model.resize_token_embeddings(len(contract.tokenizer), mean_resizing=is_loaded)
    model.generation_config.eos_token_id = contract.stop_ids
    model.generation_config.pad_token_id = contract.tokenizer.pad_token_id
    return model


def write_token_example(row: Demonstration, contract: Contract, path: Path) -> None:
    """Write a training example token by token: text, trained or not, end of turn (or of running text) or not, in a masked
    turn or not."""
    is_text = is_running_text(row.example.conversation)
    described = contract.describe_tokens(row.ids, row.trained, is_text)
    tokens = [
        token | ({"masked": True} if answer and not token["trained"] else {})
        for token, answer in zip(described, row.answered, strict=True)
    ]
    safe_files.write(path, json.dumps(tokens, ensure_ascii=False))
