"""TRL's DPOTrainer with the reference's log-probs from the store, and a loss that micro-batches do not change."""

from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from trl import DPOTrainer

from stages.errors import UserError
from stages.records import Pair, PairLogProbs


class StoredReferenceTrainer(DPOTrainer):
    """`reference` holds a row (`trl_row`) per pair id; `train_dataset` and `eval_dataset` are `trl_pairs`."""

    def __init__(self, *args: Any, reference: dict[str, dict[str, Any]], **kwargs: Any):
        self._reference = reference
        self.loss_weights: list[float]  # set by TRL
        super().__init__(*args, **kwargs)
        if isinstance(self.model, PeftModel) and "ref" in self.model.peft_config:
            self.model.delete_adapter("ref")  # TRL's copy of an adapter that is continued

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """TRL's one seam for reference log-probs: return the dataset with them instead of computing them.

        TRL tokenised the pairs itself; its tokens must be the ones that the reference scored.
        """
        rows = [self._reference[pair_id] for pair_id in dataset["id"]]
        for ours, theirs in zip(rows, dataset, strict=True):
            for column in ("prompt_ids", "chosen_ids", "rejected_ids"):
                # TRL's may go on after the end of turn, with what the template puts there.
                if theirs[column][: len(ours[column])] != ours[column]:
                    raise UserError(f"pair {theirs['id']}: TRL and the reference disagree on {column}.")
        return Dataset.from_list(rows)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Count the chosen completions' tokens of the whole step: the normaliser of TRL's `sft` loss."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        mine = torch.tensor(float(sum(map(chosen_tokens, batches))), device=self.accelerator.device)
        total = float(self.accelerator.gather(mine).sum())
        self._mean_chosen_tokens = total / (len(batches) * self.accelerator.num_processes)
        return batches, items

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """TRL's loss. Its `sft` term is a mean over the micro-batch's tokens; weighted by the micro-batch's share of
        tokens, it is the mean over the step's."""
        if not self.model.training or "sft" not in self.loss_types:
            return super().compute_loss(model, inputs, *args, **kwargs)
        weights = self.loss_weights
        share = chosen_tokens(inputs) / self._mean_chosen_tokens
        self.loss_weights = [w * share if t == "sft" else w for t, w in zip(self.loss_types, weights, strict=True)]
        try:
            return super().compute_loss(model, inputs, *args, **kwargs)
        finally:
            self.loss_weights = weights


def chosen_tokens(batch: dict[str, torch.Tensor]) -> int:
    """How many tokens of chosen completions a micro-batch scores; TRL stacks chosen over rejected."""
    mask = batch["completion_mask"][:, 1:]
    return int(mask[: len(mask) // 2].sum())


def trl_pairs(pairs: list[Pair]) -> Dataset:
    """TRL's conversational preference columns, with the pair's id."""
    return Dataset.from_list(
        [{"id": p.id, "prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in pairs]
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
