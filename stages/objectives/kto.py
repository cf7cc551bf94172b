"""KTO (arXiv:2402.01306): rows, the model, the trainer, and the loss before the first step.

With r = log π(y|x)/π_ref(y|x), a desirable completion has the loss λ_D (1 - σ(β (r - z))), an undesirable one
λ_U (1 - σ(β (z - r))) (Eq. 7). z is the mean log-ratio of the step's mismatched completions, or 0 if that is negative.
It is computed before the step's first micro-batch, without gradients, so micro-batches do not change it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from trl import KTOTrainer

from stages.config.blocks.training import KTO
from stages.config.errors import UserError
from stages.models.contract import Contract
from stages.models.loading import load_model
from stages.models.packing import pack_pairs, send_batch
from stages.models.scoring import autocast, round_weights_once
from stages.objectives.first_step import StoredReference, score_in_batches, scored_pairs
from stages.store.records import PairLogProbs, stream
from stages.store.single_completions import UnpairedPreference, mismatched_pairs
from stages.store.workspace import StageDir
from stages.training.fit import SplitRows
from stages.training.micro_batches import OTHERS, Batch
from stages.training.token_rows import PreferenceRows, Row

WEIGHTS = ("desirable_weight", "undesirable_weight")  # λ_D and λ_U, as the stage reports them


def read_rows(
    inputs: dict[str, Path], contract: Contract, cfg: KTO, out: StageDir
) -> tuple[SplitRows[PreferenceRows], dict[str, bool]]:
    """Return completions within `max_length` and mismatched ones in TRL's columns, and by id which are desirable."""
    rows = SplitRows(PreferenceRows, cfg, out)
    rows.train.noun = "completions"
    labels = dict[str, bool]()
    file = inputs["unpaired"] / "unpaired.parquet"
    pairs = mismatched_pairs(stream(file, UnpairedPreference))
    for pair, reference in scored_pairs(pairs, file, inputs, contract, rows.left_out):
        labels[pair.id] = pair.label
        tokens = len(reference.prompt_ids) + len(reference.chosen_ids)
        if rows.fits(pair.id, tokens):
            row = trl_row(reference, pair.label, cfg.max_length)
            rows.add(pair.split, pair.id, row, pair.prompt)
    rows.settle()
    return rows, labels


def trl_row(reference: PairLogProbs, label: bool, max_length: int) -> Row:
    """Return token ids, the label, and sums of log-probs in nats, under TRL's names; KL: of the mismatched one, which
    is cut where it does not fit."""
    room = max_length - len(reference.prompt_ids)
    return {
        "prompt_ids": reference.prompt_ids,
        "completion_ids": reference.chosen_ids,
        "KL_completion_ids": reference.rejected_ids[:room],
        "label": float(label),
        "ref_logps": sum(reference.chosen_logps),
        "ref_KL_logps": sum(reference.rejected_logps[:room]),
    }


def load_start(policy: Path, cfg: KTO, device: torch.device, out: StageDir) -> PreTrainedModel:
    """Return the SFT model, which reads completions without padding if its attention can."""
    model = load_model(policy, cfg.start_weights, device)
    if not pack_pairs(model):
        out.warn("this model's attention cannot be packed, so completions are padded.")
    return model


def with_weights(cfg: KTO, desirable: int, undesirable: int) -> KTO:
    """Return the block with λ_D and λ_U. A null one makes both kinds count alike (Eq. 8); two have a mean of 1."""
    if cfg.desirable_weight:
        total = desirable * cfg.desirable_weight
    elif cfg.undesirable_weight:
        total = undesirable * cfg.undesirable_weight
    else:
        total = (desirable + undesirable) / 2
    of_desirable, of_undesirable = cfg.desirable_weight, cfg.undesirable_weight
    if of_desirable is None:
        of_desirable = total / max(1, desirable)
    if of_undesirable is None:
        of_undesirable = total / max(1, undesirable)
    return replace(cfg, desirable_weight=of_desirable, undesirable_weight=of_undesirable)


class UnpairedTrainer(StoredReference, KTOTrainer):
    """TRL's KTOTrainer on rows of `trl_row`. Its divergence is that of a whole step, or of all validation rows."""

    cfg: KTO
    divergence = torch.zeros(())

    def __init__(self, *args: Any, cfg: KTO, **kwargs: Any):
        if cfg.batch_size // cfg.runtime.world_size < 2:
            raise UserError(
                f"kto.batch_size={cfg.batch_size}: TRL's KTO needs two completions in every process. Raise it."
            )
        super().__init__(*args, cfg=cfg, **kwargs)
        self.data_collator = partial(collate_completions, self.data_collator)

    def count_tokens(self, row: Row) -> int:
        return len(row["prompt_ids"]) + len(row["completion_ids"])

    def count_terms(self, batch: Batch) -> dict[str, int | torch.Tensor]:
        is_desirable = torch.as_tensor(batch["label"]).bool()
        tokens = batch["completion_mask"][:, 1:].sum(-1)
        is_desirable = is_desirable.to(tokens.device)
        chosen = is_desirable.sum()
        rejected = (~is_desirable).sum()
        return {
            "entropy": tokens.sum(),
            "logits/chosen": (tokens * is_desirable).sum(),
            "logits/rejected": (tokens * ~is_desirable).sum(),
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "logps/chosen": chosen,
            "logps/rejected": rejected,
            OTHERS: len(is_desirable),
        }

    def _compute_kl_logps(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        return self.divergence.to(batch["ref_KL_logps"])

    def accumulate(self, model: torch.nn.Module, rows: list[Row], items: Any) -> torch.Tensor:
        self.divergence = self.estimate_divergence(model, rows)
        return super().accumulate(model, rows, items)

    def evaluation_loop(self, dataloader: DataLoader[Any], *args: Any, **kwargs: Any) -> Any:
        """Evaluate under the divergence of all validation rows, which every process estimates for itself."""
        self.divergence = self.estimate_divergence(self.model, [*self.eval_dataset])
        return super().evaluation_loop(dataloader, *args, **kwargs)

    @torch.no_grad()
    def estimate_divergence(self, model: torch.nn.Module, rows: list[Row]) -> torch.Tensor:
        """Return the mean log-ratio of the rows' mismatched completions in all processes, in nats."""
        total = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        mismatched = [row | {"completion_ids": row["KL_completion_ids"]} for row in rows]
        with autocast(self.cfg.precision, self.args.device):
            for part in self.micro_batches(mismatched):
                output = self.score(model, send_batch(self.collate(part), self.args.device))
                log_probs = output.log_probs.double().sum(-1)
                ratios = log_probs - log_probs.new_tensor([row["ref_KL_logps"] for row in part])
                total += torch.stack([ratios.sum(), total.new_tensor(len(part))])
        summed, count = self.accelerator.reduce(total, "sum")
        return summed / count

    def summarize(self, mode: str) -> dict[str, float]:
        """Return TRL's metrics. The margin is between the mean rewards of both kinds, as a micro-batch may lack one."""
        means = super().summarize(mode)
        if "rewards/chosen" in means and "rewards/rejected" in means:
            means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]
        return means


def collate_completions(collate: Callable[[list[Row]], Batch], rows: list[Row]) -> Batch:
    """Return TRL's batch of completions alone. Of the trainer's `divergence`, TRL then subtracts 0."""
    completions = list[Row]()
    for row in rows:
        completion = row | {"ref_KL_logps": 0.0}
        del completion["KL_completion_ids"]
        completions.append(completion)
    return collate(completions)


def starting_loss(trainer: UnpairedTrainer, count: int) -> float:
    """Return the loss of the first rows where all log-ratios and z are 0: half of their mean weight."""
    total = 0.0
    for i in range(count):
        is_desirable = trainer.train_dataset[i]["label"]
        cfg = trainer.cfg
        weight = cfg.undesirable_weight
        if is_desirable:
            weight = cfg.desirable_weight
        total += weight or 0.0
    return total / (2 * count)


def rewards(
    trainer: UnpairedTrainer, pairs: Sequence[PairLogProbs], labels: dict[str, bool]
) -> list[Row]:
    """Return the trained policy's reward of every completion, β log π(y|x)/π_ref(y|x), in nats, and its label."""
    trainer.model.eval()
    with round_weights_once(trainer.args.device):
        scored = zip(pairs, score_in_batches(trainer, pairs), strict=True)
    return [
        {
            "id": p.id,
            "reward": trainer.cfg.beta * (sum(own) - sum(p.chosen_logps)),
            "desirable": labels[p.id],
        }
        for p, (own, _) in scored
    ]
