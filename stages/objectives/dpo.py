"""DPO (arXiv:2305.18290): rows, TRL's DPOTrainer, the policy, the check before the first step, and figures.

The reference's log-probs come from the store. The loss does not depend on the micro-batches, unless
`depends_on_micro_batch`. With chosen y_w and rejected y_l it is
-log σ(β log π(y_w|x)/π_ref(y_w|x) - β log π(y_l|x)/π_ref(y_l|x)) (Eq. 7)."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from trl import DPOTrainer

from stages.config.blocks.training import DPO
from stages.models.contract import Contract
from stages.models.loading import read_context_length
from stages.models.run_attention import send_tensor
from stages.models.scoring import round_weights_once, tokenize_pairs
from stages.objectives.first_step import (
    StoredReference,
    read_reference,
    score_in_batches,
    scored_pairs,
)
from stages.store.dropped import Dropped
from stages.store.records import Pair, PairLogProbs, stream
from stages.store.text_units import count_shared_prefix
from stages.store.workspace import StageDir
from stages.training.adapters import AnyModel, apply_adapter
from stages.training.fit import SplitRows, pack_if_possible
from stages.training.micro_batches import OTHERS, Batch
from stages.training.token_rows import PreferenceRows, Row


class PairTrainer(StoredReference, DPOTrainer):
    """TRL's DPOTrainer on rows of `trl_row`, without a reference model."""

    cfg: DPO

    def __init__(self, *args: Any, **kwargs: Any):
        self.loss_weights: list[float]  # TRL sets it
        super().__init__(*args, **kwargs)
        self.data_collator = partial(collate_masked, self.data_collator)

    def count_terms(self, batch: Batch) -> dict[str, int | torch.Tensor]:
        chosen, rejected = count_completion_tokens(batch)
        return {
            "entropy": chosen.sum() + rejected.sum(),
            "mean_token_accuracy": chosen.sum(),
            "logits/chosen": chosen.sum(),
            "logits/rejected": rejected.sum(),
            OTHERS: len(chosen),
        }

    def count_tokens(self, row: Row) -> int:
        prompt = len(row["prompt_ids"])
        chosen = len(row["chosen_ids"])
        rejected = len(row["rejected_ids"])
        if self.is_padded:
            return 2 * (prompt + max(chosen, rejected))
        return prompt + chosen + rejected

    @abstractmethod
    def reward(self, log_probs: list[float], reference: list[float]) -> float:
        """Return a completion's reward in nats, from its tokens' log-probs."""


class StoredReferenceTrainer(PairTrainer):
    """DPO. TRL computes Eq. 7 from the policy's log-probs and the columns `ref_chosen_logps` and `ref_rejected_logps`,
    which `StoredReference` makes it read. Only the weight of the `sft` term is ours."""

    def reward(self, log_probs: list[float], reference: list[float]) -> float:
        return self.cfg.beta * (sum(log_probs) - sum(reference))

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Also count the step's chosen completion tokens per pair, which the weight of the `sft` loss needs."""
        steps, items = super().get_batch_samples(*args, **kwargs)
        # the last call of an epoch may bring no step
        if "sft" in self.loss_types and steps:
            [step] = steps
            ratio_here = chosen_per_pair(self.data_collator(step.rows)).float()
            ratios = self.accelerator.gather(send_tensor(ratio_here, self.args.device))
            self._chosen_per_pair = ratios.mean()
        return steps, items

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Return TRL's loss with a weight for its `sft` term that makes the step's sum a mean over the step's chosen
        tokens. The term is a mean over a micro-batch's chosen tokens, and a micro-batch has the weight of its pairs.
        The new factor is its tokens per pair over those of the step."""
        if not self.model.training or "sft" not in self.loss_types:
            return super().compute_loss(model, inputs, *args, **kwargs)
        weights = self.loss_weights
        place = self.loss_types.index("sft")
        factor = chosen_per_pair(inputs) / self._chosen_per_pair
        self.loss_weights = [*weights]
        self.loss_weights[place] = (weights[place] * factor).float()
        try:
            return super().compute_loss(model, inputs, *args, **kwargs)
        finally:
            self.loss_weights = weights


def collate_masked(collate: Callable[[list[Row]], Batch], rows: list[Row]) -> Batch:
    """Return TRL's batch, in which the masks of rows leave out the completion tokens that are only read."""
    batch = collate(rows)
    prompts = [len(row["prompt_ids"]) for row in rows] * 2
    masks = [row["chosen_mask"] for row in rows] + [row["rejected_mask"] for row in rows]
    for i, (start, mask) in enumerate(zip(prompts, masks, strict=True)):
        if mask is not None:
            batch["completion_mask"][i, start : start + len(mask)] = torch.tensor(mask).long()
    return batch


def count_completion_tokens(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the number of trained tokens of every chosen and of every rejected completion."""
    chosen, rejected = batch["completion_mask"][:, 1:].sum(-1).chunk(2)
    return chosen, rejected


def chosen_per_pair(batch: Batch) -> torch.Tensor:
    chosen, _ = count_completion_tokens(batch)
    return chosen.double().mean()


def trl_row(scored: PairLogProbs, ld_alpha: float | None) -> dict[str, Any]:
    """Return token ids, masks, and the sums of log-probs in nats under TRL's names. LD-DPO (arXiv:2409.06411) weights
    tokens beyond the shorter completion's length by `ld_alpha`."""
    shorter = min(len(scored.chosen_logps), len(scored.rejected_logps))

    def total(log_probs: list[float]) -> float:
        if ld_alpha is None:
            return sum(log_probs)
        return sum(log_probs[:shorter]) + ld_alpha * sum(log_probs[shorter:])

    return {
        "prompt_ids": scored.prompt_ids,
        "chosen_ids": scored.chosen_ids,
        "rejected_ids": scored.rejected_ids,
        "chosen_mask": scored.chosen_mask,
        "rejected_mask": scored.rejected_mask,
        "ref_chosen_logps": total(scored.chosen_logps),
        "ref_rejected_logps": total(scored.rejected_logps),
    }


def cut_at_difference(scored: PairLogProbs) -> PairLogProbs:
    """Return the pair with the rejected completion up to its first token that differs from the chosen one. The equal
    tokens before it cancel out in the loss, and later ones may be right. Pairs that part in a user turn stay whole."""
    end = 1 + count_shared_prefix(scored.chosen_ids, scored.rejected_ids)
    mask = scored.rejected_mask and scored.rejected_mask[:end]
    if mask and not mask[-1]:
        return scored
    logps = scored.rejected_logps[: sum(mask) if mask else end]
    return replace(
        scored, rejected_ids=scored.rejected_ids[:end], rejected_logps=logps, rejected_mask=mask
    )


def read_rows(
    inputs: dict[str, Path], contract: Contract, cfg: DPO, out: StageDir
) -> SplitRows[PreferenceRows]:
    """Return the pairs whose completions fit into `max_length`, as rows of `trl_row`."""
    rows = SplitRows(PreferenceRows, cfg, out)
    for pair, reference in tokenized_pairs(inputs, contract, cfg, rows.left_out):
        longer = max(len(reference.chosen_ids), len(reference.rejected_ids))
        tokens = len(reference.prompt_ids) + longer
        if not rows.fits(pair.id, tokens):
            continue
        scored = cut_at_difference(reference) if cfg.first_difference else reference
        row = trl_row(scored, cfg.trainer.ld_alpha)
        if cfg.own:
            row |= {
                "ref_chosen_tokens": scored.chosen_logps,
                "ref_rejected_tokens": scored.rejected_logps,
            }
        rows.add(pair.split, pair.id, row, pair.prompt)
    rows.settle()
    return rows


def tokenized_pairs(
    inputs: dict[str, Path], contract: Contract, cfg: DPO, left_out: Dropped
) -> Iterator[tuple[Pair, PairLogProbs]]:
    """Yield every pair with its token ids and the reference's log-probs, of which a loss without reference has none.
    Pairs that the reference did not score, or that cannot be rendered, are added to `left_out`."""
    file = inputs["pairs"] / "pairs.parquet"
    pairs = stream(file, Pair)
    if cfg.reference_free:
        context = read_context_length(inputs["policy"] / "model")
        return tokenize_pairs(pairs, contract, context, left_out)
    return scored_pairs(pairs, file, inputs, contract, left_out)


def read_held_out(inputs: dict[str, Path], rows: PreferenceRows) -> list[PairLogProbs]:
    """Return the held-out pairs with the reference's log-probs, of which a loss without reference has none."""
    if "reference" in inputs:
        return read_reference(inputs, rows.ids)
    return [
        PairLogProbs(
            name,
            row["prompt_ids"],
            row["chosen_ids"],
            row["rejected_ids"],
            [],
            [],
            row["chosen_mask"],
            row["rejected_mask"],
        )
        for name, row in zip(rows.ids, rows.rows, strict=True)
    ]


def trainable_model(model: PreTrainedModel, adapter: Path, cfg: DPO, out: StageDir) -> AnyModel:
    """Return the policy with what `dpo.adapter` trains: all weights, a new adapter, or the SFT's adapter continued."""
    return apply_adapter(pack_if_possible(model, cfg, out), cfg, before=adapter)


def starting_loss(cfg: DPO) -> float | None:
    """Return the loss at log-ratio 0, or None if it has no fixed value (`sft`, WPO weighting, MoE auxiliary loss, a
    user-defined loss)."""
    arguments = cfg.trainer
    if (
        not cfg.has_trl_loss
        or arguments.use_weighting
        or arguments.router_aux_loss_coef
        or "sft" in cfg.loss_type
    ):
        return None
    ln2 = math.log(2)
    epsilon = arguments.label_smoothing
    values = {
        "sigmoid": ln2,
        "sigmoid_norm": ln2,
        "robust": ln2,
        "aot": ln2,
        "aot_unpaired": ln2,
        "hinge": 1.0,
        "apo_zero": 1.0,
        "apo_down": 1.0,
        "nca_pair": 2 * ln2,
        "bco_pair": 2 * ln2,
        "discopop": (1 + ln2) / 2,
        "ipo": 1 / (4 * cfg.beta**2),
        "sppo_hard": 1 / (2 * cfg.beta**2),
    }
    if epsilon:
        values["exo_pair"] = -ln2 - 0.5 * math.log(epsilon * (1 - epsilon))
    weights = cfg.loss_weights or [1.0] * len(cfg.loss_type)
    return sum(w * values[t] for t, w in zip(cfg.loss_type, weights, strict=True))


def reward_margins(trainer: PairTrainer, pairs: list[PairLogProbs]) -> list[dict[str, Any]]:
    """Return the trained policy's reward margin of every pair, in nats: β log π(y_w|x)/π_ref(y_w|x) - β log
    π(y_l|x)/π_ref(y_l|x), or SimPO's. TRL's rewards/margins is its mean, but for `first_difference` and `ld_alpha`."""
    trainer.model.eval()
    with round_weights_once(trainer.args.device):
        scores = score_in_batches(trainer, pairs)
    margins = list[dict[str, Any]]()
    for pair, (chosen, rejected) in zip(pairs, scores, strict=True):
        margin = trainer.reward(chosen, pair.chosen_logps)
        margin -= trainer.reward(rejected, pair.rejected_logps)
        margins.append({"id": pair.id, "margin": margin})
    return margins
