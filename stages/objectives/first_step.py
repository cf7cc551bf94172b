"""What objectives with a stored reference share: rows with its log-probs, a trainer of them, and the check before the first
step that the policy is the model whose log-probs the store has."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, TypeVar

import torch
from datasets import Dataset
from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from stages.config.blocks.training import DPO
from stages.config.choices import DPOReference, Precision, Sharding
from stages.config.errors import UserError
from stages.models.contract import Contract
from stages.models.scoring import (
    IGNORED,
    allowed_gap,
    batches_by_length,
    pair_log_probs,
    tokens_digest,
)
from stages.store.dropped import Dropped, read_dropped_ids
from stages.store.manifest import manifest_of
from stages.store.records import Pair, PairLogProbs, stream
from stages.store.sealed_json import read_note, write_note
from stages.store.workspace import SCRATCH
from stages.training.micro_batches import Batch, MicroBatches
from stages.training.saving import checkpoint_folder, list_checkpoints

CHECKED = 64  # rows
# Handed to TRL as the reference. Without one TRL loads or hashes all weights a second time, or copies the adapter.
STORED = object()
BUILD_AGAIN = "Build it again: rebuild=reference."
AnyPair = TypeVar("AnyPair", bound=Pair)
# the log-probs of each token of a chosen and of a rejected completion
Scores = tuple[list[float], list[float]]
# The relative distance of the first loss from its value at log-ratio 0 that rounding explains.
LOSS_TOLERANCE = {Precision.fp32: 1e-3, Precision.bf16: 0.02}


class StoredReference(MicroBatches):
    """Mixin before a TRL trainer with a reference, on rows of token ids with the reference's stored log-probs."""

    # TRL does not know all columns of the rows
    arguments: ClassVar = {"remove_unused_columns": False}

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, ref_model=STORED, **kwargs)
        self.precompute_ref_logps = True

    @property
    def ref_model(self) -> None:
        """No model, whatever TRL assigns: the rows have the reference's log-probs."""
        return None

    @ref_model.setter
    def ref_model(self, _: object) -> None:
        """Keep nothing, so that TRL shards and moves no reference either."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        """Skip TRL's tokenising of text, which may differ from the sampled tokens: the rows have token ids."""
        return dataset

    def score(self, model: torch.nn.Module, batch: Batch) -> Any:
        """Return the output of a forward, with the log-probs of completion tokens."""
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, IGNORED)
        model_inputs = {
            name: batch[name] for name in ("input_ids", "attention_mask", "layout") if name in batch
        }
        return model(**model_inputs, labels=labels, use_cache=False, fused_lm_head=True)


class FirstStepCheck(TrainerCallback):
    """Before the first step, check that the policy reproduces the reference's stored log-probs, and that the loss has
    its known start: `start` of so many rows, or None if it has no fixed value. The policy is measured when it is ready
    to train, sharded if it will train so. Scratch keeps the figures for a resumed run, whose policy has changed."""

    def __init__(
        self,
        trainer: Any,
        inputs: dict[str, Path],
        ids: list[str],
        start: Callable[[int], float | None],
    ):
        self.trainer = trainer
        self.inputs = inputs
        self.start = start
        self.scored = read_reference(inputs, ids[:CHECKED])
        self.file = trainer.out / SCRATCH / "first_step.json"
        has_started = bool(list_checkpoints(checkpoint_folder(trainer.out)))
        is_lost = has_started and read_note(self.file, parse_first_figures) is None
        if is_lost and trainer.cfg.runtime.sharding is Sharding.none:
            self.measure()  # the loaded policy is still untrained

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step == 0:
            self.measure()

    @property
    def figures(self) -> dict[str, float]:
        return read_note(self.file, parse_first_figures) or {}

    def measure(self) -> None:
        """Store the mean gap in nats per token, and the loss. In a later round of `dpo.reference=sft` the policy is
        not the reference, and nothing is stored.
        Raise UserError, naming both models, if they differ, or if the loss is not that of log-ratio 0."""
        policy = manifest_of(self.inputs["policy"])
        reference = manifest_of(self.inputs["reference"])
        model = reference["inputs"]["reference"]
        cfg = self.trainer.cfg
        names = f"the policy ({policy['stage']} {policy['fingerprint']}) and the reference ({model['fingerprint']})"
        same_weights = policy["digest"] == model["digest"]
        if not same_weights and not (isinstance(cfg, DPO) and cfg.reference is DPOReference.sft):
            raise UserError(
                f"{names} are not the same weights. Build the reference again: rebuild=reference."
            )
        figures = dict[str, float]()
        if same_weights:
            was_training = self.trainer.model.training
            self.trainer.model.eval()
            gap, nats = self.compare_log_probs()
            loss = mean_loss(self.trainer, len(self.scored))
            self.trainer.model.train(was_training)
            self.require_small_gap(names, gap, nats)
            self.require_known_start(names, loss)
            figures = {"step_0_gap": gap, "step_0_loss": loss}
        if self.trainer.out.is_main:
            write_note(self.file, figures)

    def compare_log_probs(self) -> tuple[float, float]:
        """Score the first 64 pairs with the policy. Return the mean gap between its log-probs and the stored ones, and the
        mean of the stored ones without their sign."""
        stored = list[float]()
        now = list[float]()
        scores = score_in_batches(self.trainer, self.scored)
        for pair, (chosen, rejected) in zip(self.scored, scores, strict=True):
            stored += [*pair.chosen_logps, *pair.rejected_logps]
            now += [*chosen, *rejected]
        gap = fmean(abs(a - b) for a, b in zip(now, stored, strict=True))
        return gap, fmean(map(abs, stored))

    def require_small_gap(self, names: str, gap: float, nats: float) -> None:
        """Raise UserError if rounding does not explain a gap between log-probs with a mean of so many nats."""
        precision = self.trainer.cfg.precision
        allowed = allowed_gap(precision, nats)
        if not gap <= allowed:
            raise UserError(
                f"{names} differ by {gap:.2g} nats per token on {len(self.scored)} pairs ({allowed:.2g} is allowed in "
                f"{precision}): other weights, template or precision. {BUILD_AGAIN}"
            )

    def require_known_start(self, names: str, loss: float) -> None:
        """Raise UserError if the loss is not that of log-ratio 0."""
        start = self.start(len(self.scored))
        if start is None:
            return
        tolerance = LOSS_TOLERANCE[self.trainer.cfg.precision] * max(1.0, abs(start))
        if not abs(loss - start) <= tolerance:
            raise UserError(
                f"the loss of {names} starts at {loss:.6g}; at log-ratio 0 it is {start:.6g}."
            )


def parse_first_figures(value: Any) -> dict[str, float]:
    """Return the stored figures of a first step, or raise ValueError if they are something else."""
    if not isinstance(value, dict) or not value.keys() <= {"step_0_gap", "step_0_loss"}:
        raise ValueError("these are not the figures of a first step")
    return {name: float(figure) for name, figure in value.items()}


def mean_loss(trainer: MicroBatches, pairs: int) -> float:
    """The mean of TRL's loss over the first pairs, computed in micro-batches."""
    total = 0.0
    for rows in trainer.micro_batches([trainer.train_dataset[i] for i in range(pairs)]):
        loss, _, _ = trainer.prediction_step(
            trainer.model, trainer.collate(rows), prediction_loss_only=True
        )
        total += float(loss) * len(rows)
    trainer.forget_metrics("eval")
    return total / pairs


def score_in_batches(trainer: MicroBatches, pairs: Sequence[PairLogProbs]) -> list[Scores]:
    """Return `pair_log_probs` of every pair under the policy."""
    lengths = list[int]()
    for pair in pairs:
        longer = max(len(pair.chosen_ids), len(pair.rejected_ids))
        lengths.append(2 * (len(pair.prompt_ids) + longer))
    pad_id = trainer.processing_class.pad_token_id
    scores = dict[int, Scores]()
    for places in batches_by_length(lengths, trainer.token_budget, trainer.args.device):
        batch = [pairs[i] for i in places]
        scored = pair_log_probs(trainer.model, batch, pad_id, trainer.cfg.precision)
        scores |= zip(places, scored, strict=True)
    return [scores[i] for i in range(len(pairs))]


def scored_pairs(
    pairs: Iterable[AnyPair],
    file: Path,
    inputs: dict[str, Path],
    contract: Contract,
    left_out: Dropped,
) -> Iterator[tuple[AnyPair, PairLogProbs]]:
    """Yield the pairs of a file with the reference's log-probs, which come in the same order. Pairs that the reference
    dropped are added to `left_out`. Raise UserError, naming the file and the first pair, if it is not the pair that the
    reference scored, or the table has other tokens of it."""
    table = inputs["reference"] / "logprobs.parquet"
    dropped_ids = read_dropped_ids(inputs["reference"])
    scored_rows = stream(table, PairLogProbs)
    for pair in pairs:
        if pair.id in dropped_ids:
            left_out.add(pair.id, "not scored by the reference")
            continue
        scored = next(scored_rows, None)
        if scored and scored.digest is None:
            raise UserError(
                f"{table}: an earlier version wrote it, without digests of the pairs. {BUILD_AGAIN}"
            )
        if scored is None or scored.digest != tokens_digest(pair, scored, contract):
            raise UserError(
                f"{file}: pair {pair.id}: its text, token ids or template are not those that the reference scored "
                f"({table}). {BUILD_AGAIN}"
            )
        yield pair, scored
    missing = next(scored_rows, None)
    if missing:
        raise UserError(
            f"{file}: pair {missing.id} is missing, which the reference scored ({table}). {BUILD_AGAIN}"
        )


def read_reference(inputs: dict[str, Path], pair_ids: Collection[str]) -> list[PairLogProbs]:
    """Read the reference's log-probs of these pairs, in the order of the table, and stop after the last one."""
    wanted_ids = {*pair_ids}
    scored = (
        p
        for p in stream(inputs["reference"] / "logprobs.parquet", PairLogProbs)
        if p.id in wanted_ids
    )
    return list(islice(scored, len(wanted_ids)))
