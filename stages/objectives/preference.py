"""TRL's DPOTrainer with the reference's log-probs from the store, and a loss that no division of a step changes."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from trl import DPOTrainer
from trl.trainer.utils import FusedCausalLMOutput

from stages.config.errors import UserError
from stages.models.contract import Contract
from stages.models.packing import ATTENTION, attention_of
from stages.models.pair_tokens import tokenized
from stages.models.scoring import pair_log_probs
from stages.store.records import Pair, PairLogProbs
from stages.training.micro_batches import MicroBatches, Row, of_row
from stages.training.step_metrics import Batch


class StoredReferenceTrainer(MicroBatches, DPOTrainer):
    """`train_dataset` and `eval_dataset` hold rows of `trl_row`: token ids, with the reference's log-probs."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.loss_weights: list[float]  # set by TRL
        super().__init__(*args, **kwargs)
        if isinstance(self.model, PeftModel) and "ref" in self.model.peft_config:
            self.model.delete_adapter("ref")  # TRL's copy of an adapter that is continued

    def _prepare_dataset(self, dataset: Dataset, processing_class: Any, args: Any, dataset_name: str) -> Dataset:
        """TRL tokenises text here, which need not give what was drawn: the rows hold the ids already."""
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """TRL computes the reference's log-probs here: the rows hold those of the store."""
        return dataset

    @property
    def padded(self) -> bool:
        return attention_of(self.model) != ATTENTION

    def tokens(self, row: Row) -> int:
        prompt, chosen, rejected = (len(row[f"{part}_ids"]) for part in ("prompt", "chosen", "rejected"))
        return 2 * (prompt + max(chosen, rejected)) if self.padded else prompt + chosen + rejected

    def weight(self, metric: str, batch: Batch) -> int:
        chosen, rejected = completion_tokens(batch)
        scored = {"entropy": chosen + rejected, "logits/chosen": chosen, "mean_token_accuracy": chosen}
        scored |= {"logits/rejected": rejected}
        return scored.get(metric, len(batch["ref_chosen_logps"]))

    def scored(self, model: torch.nn.Module, rows: list[Row]) -> list[FusedCausalLMOutput]:
        batch = self._prepare_inputs(self.data_collator(rows))
        ids = batch["input_ids"]
        labels = ids.masked_fill(batch["completion_mask"] == 0, -100)
        read = {"input_ids": ids, "attention_mask": batch["attention_mask"], "labels": labels}
        output = model(**read, use_cache=False, fused_lm_head=True)
        widths = [self.data_collator([row])["input_ids"].shape[1] for row in rows]
        return [of_row(output, ([i, len(rows) + i], slice(width - 1))) for i, width in enumerate(widths)]

    def log_probs(self, pairs: Sequence[PairLogProbs]) -> list[tuple[list[float], list[float]]]:
        """`pair_log_probs` of every pair under the policy, many to a forward."""
        by_id, found = {p.id: p for p in pairs}, dict[str, tuple[list[float], list[float]]]()
        for rows in self.evaluated_together([vars(p) for p in pairs]):
            batch = [by_id[row["id"]] for row in rows]
            scores = pair_log_probs(self.model, batch, self.processing_class.pad_token_id, self.cfg.precision)
            found |= zip([p.id for p in batch], scores, strict=True)
        return [found[p.id] for p in pairs]

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Count the chosen completions' tokens per pair over the whole step, for the weight of the `sft` loss."""
        (step,), items = super().get_batch_samples(*args, **kwargs)
        if "sft" in self.loss_types:
            mine = torch.tensor(chosen_per_pair(self.data_collator(step.rows)), device=self.accelerator.device)
            self._chosen_per_pair = float(self.accelerator.gather(mine).mean())
        return [step], items

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """TRL's loss, with another weight for its `sft` term. That term is a mean over the chosen tokens of a
        micro-batch, and a micro-batch counts by its share of the step's pairs. Weighted by its tokens per pair over
        those of the step, it counts by its share of the tokens: the sum is the mean over the step's tokens."""
        if not self.model.training or "sft" not in self.loss_types:
            return super().compute_loss(model, inputs, *args, **kwargs)
        weights = self.loss_weights
        share = chosen_per_pair(inputs) / self._chosen_per_pair
        self.loss_weights = [w * share if t == "sft" else w for t, w in zip(self.loss_types, weights, strict=True)]
        try:
            return super().compute_loss(model, inputs, *args, **kwargs)
        finally:
            self.loss_weights = weights


def completion_tokens(batch: Batch) -> tuple[int, int]:
    """How many tokens of chosen and of rejected completions are scored; TRL stacks chosen over rejected."""
    chosen, rejected = batch["completion_mask"][:, 1:].chunk(2)
    return int(chosen.sum()), int(rejected.sum())


def chosen_per_pair(batch: Batch) -> float:
    return completion_tokens(batch)[0] / len(batch["ref_chosen_logps"])


def beside(pairs: Iterable[Pair], reference: Iterable[PairLogProbs]) -> Iterator[tuple[Pair, PairLogProbs | None]]:
    """Every pair with the reference's log-probs, which come in the order of the pairs; None where it has none."""
    scored = iter(reference)
    waiting = next(scored, None)
    for pair in pairs:
        if waiting and waiting.id == pair.id:
            yield pair, waiting
            waiting = next(scored, None)
        else:
            yield pair, None


def refuse_other_tokens(pair: Pair, scored: PairLogProbs, terms: Contract) -> None:
    """Raise UserError where the reference scored other token ids than those of the pair."""
    ours = tokenized(pair, terms)
    for column in ("prompt_ids", "chosen_ids", "rejected_ids"):
        if getattr(scored, column) != getattr(ours, column):
            raise UserError(
                f"pair {pair.id}: the reference scored other {column} than the pair has. Build the reference "
                "again: rebuild=reference."
            )


def trl_row(scored: PairLogProbs, ld_alpha: float | None) -> dict[str, Any]:
    """Token ids and the sums that TRL's loss wants. LD-DPO (arXiv:2409.06411) weighs tokens beyond the shorter
    completion's length by `ld_alpha`."""
    shared = min(len(scored.chosen_ids), len(scored.rejected_ids))
    alpha = 1.0 if ld_alpha is None else ld_alpha
    return {
        "prompt_ids": scored.prompt_ids,
        "chosen_ids": scored.chosen_ids,
        "rejected_ids": scored.rejected_ids,
        "ref_chosen_logps": sum(scored.chosen_logps[:shared]) + alpha * sum(scored.chosen_logps[shared:]),
        "ref_rejected_logps": sum(scored.rejected_logps[:shared]) + alpha * sum(scored.rejected_logps[shared:]),
    }
