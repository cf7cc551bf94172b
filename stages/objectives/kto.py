"""KTO (arXiv:2402.01306): rows, TRL's KTOTrainer, and the check before the first step.

With r = log π(y|x)/π_ref(y|x), a desirable completion has the loss λ_D (1 - σ(β (r - z))), an undesirable one
λ_U (1 - σ(β (z - r))) (Eq. 7). z is the mean log-ratio of the step's mismatched completions, or 0 if that is negative.
It is computed before the step's first micro-batch, without gradients, so micro-batches do not change it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from trl import KTOTrainer
from trl.trainer import kto_trainer
from trl.trainer.utils import FusedCausalLMOutput

from stages.config.blocks.training import KTO
from stages.models.contract import Contract
from stages.models.packing import ATTENTION, attention_name, send_batch
from stages.models.scoring import autocast, require_same_tokens
from stages.objectives.dpo import FirstStepCheck, score_in_batches
from stages.pairing.contrasts import mismatched_pairs
from stages.store.records import PairLogProbs, UnpairedPreference, stream
from stages.store.workspace import StageDir
from stages.training.fit import SplitRows
from stages.training.micro_batches import Batch, MicroBatches, select_row
from stages.training.token_rows import CompletionRows, Row

BOTH_KINDS = ("chosen", "rejected")  # TRL's words for desirable and undesirable completions, in names of metrics


def read_rows(
    inputs: dict[str, Path], contract: Contract, cfg: KTO, out: StageDir
) -> tuple[SplitRows[CompletionRows], dict[str, bool]]:
    """Return the completions that fit into `max_length` with their mismatched ones, in TRL's columns, and by id
    whether each is desirable."""
    rows, completions = SplitRows(CompletionRows, cfg, out), list(stream_completions(inputs))
    scored = {p.id: p for p in stream(inputs["reference"] / "logprobs.parquet", PairLogProbs)}
    labels = {row.id: row.label for row in completions}
    for pair in mismatched_pairs(completions):
        if not (reference := scored.get(pair.id)):
            rows.left_out.add(pair.id, "not scored by the reference")
            continue
        if (tokens := len(reference.prompt_ids) + len(reference.chosen_ids)) > cfg.max_length:
            rows.left_out.add(pair.id, f"longer than kto.max_length={cfg.max_length} tokens", tokens)
            continue
        require_same_tokens(pair, reference, contract)
        rows.add(pair.split, pair.id, trl_row(reference, labels[pair.id], cfg.max_length), pair.prompt)
    rows.settle()
    return rows, labels


def stream_completions(inputs: dict[str, Path]) -> Iterable[UnpairedPreference]:
    return stream(inputs["unpaired"] / "unpaired.parquet", UnpairedPreference)


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


def with_weights(cfg: KTO, desirable: int, undesirable: int) -> KTO:
    """Return the block with the weights λ_D and λ_U. Those that are null make both kinds count alike in all (Eq. 8),
    with a mean weight of 1."""
    half, own_d, own_u = (desirable + undesirable) / 2, cfg.desirable_weight, cfg.undesirable_weight
    return replace(
        cfg,
        desirable_weight=half / max(1, desirable) if own_d is None else own_d,
        undesirable_weight=half / max(1, undesirable) if own_u is None else own_u,
    )


class StoredReferenceTrainer(MicroBatches, KTOTrainer):
    """TRL's KTOTrainer on rows of `trl_row`. The model reads packed rows (`pack_pairs`) if it can."""

    cfg: KTO
    arguments: ClassVar = {"precompute_ref_log_probs": True}
    divergence = torch.zeros(())  # z before the clamp: of a step, or of the validation rows

    def __init__(self, *args: Any, **kwargs: Any):
        with patch.multiple(kto_trainer, create_model_from_path=lambda *_, **__: None, hash_module=lambda _: ""):
            super().__init__(*args, **kwargs)

    def _prepare_dataset(self, dataset: Dataset, processing_class: Any, args: Any, dataset_name: str) -> Dataset:
        """Skip TRL's tokenising and its choice of mismatched completions: the rows have both."""
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """Skip TRL's computation of the reference's log-probs: the rows have them."""
        return dataset

    def _compute_kl_logps(self, model: Any, batch: Batch) -> torch.Tensor:
        """Return log-probs whose mean log-ratio, which TRL clamps, is the one of the whole step."""
        return batch["ref_KL_logps"] + self.divergence.to(batch["ref_KL_logps"])  # type: ignore[no-any-return]

    @property
    def is_padded(self) -> bool:
        return attention_name(self.model) != ATTENTION

    def count_tokens(self, row: Row) -> int:
        return len(row["prompt_ids"]) + len(row["completion_ids"])

    def count_items(self, metric: str, batch: Batch) -> int:
        scored, label = batch["completion_mask"][:, 1:].sum(1), batch["label"] > 0
        counts = {"entropy": int(scored.sum()), "rewards/margins": int(label.any() and not label.all())}
        for kind, chosen in zip(BOTH_KINDS, (label, ~label), strict=True):
            counts |= dict.fromkeys((f"rewards/{kind}", f"logps/{kind}"), int(chosen.sum()))
            counts[f"logits/{kind}"] = int(scored[chosen].sum())
        return counts.get(metric, len(label))

    def collate(self, rows: list[Row]) -> Batch:
        """Return rows as a batch without their mismatched completions."""
        return super().collate([{k: v for k, v in row.items() if k != "KL_completion_ids"} for row in rows])

    def row_outputs(self, model: torch.nn.Module, rows: list[Row]) -> list[FusedCausalLMOutput]:
        batch = send_batch(self.collate(rows), self.args.device)
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        model_inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "layout") if name in batch}
        output = model(**model_inputs, labels=labels, use_cache=False, fused_lm_head=True)
        widths = [self.count_tokens(row) - 1 for row in rows]
        return [select_row(output, (slice(i, i + 1), slice(width))) for i, width in enumerate(widths)]

    def compute_loss(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return super().compute_loss(*args, **kwargs).as_subclass(torch.Tensor)  # z makes it a figure that stays unread

    def accumulate(self, model: torch.nn.Module, rows: list[Row], items: Any) -> torch.Tensor:
        self.divergence = self.estimate_divergence(model, rows)
        return super().accumulate(model, rows, items)

    def evaluation_loop(self, dataloader: DataLoader[Any], *args: Any, **kwargs: Any) -> Any:
        dataset = dataloader.dataset
        here = range(self.args.process_index, len(dataset), self.args.world_size)  # type: ignore[arg-type]
        self.divergence = self.estimate_divergence(self.model, [dataset[i] for i in here])
        return super().evaluation_loop(dataloader, *args, **kwargs)

    @torch.no_grad()
    def estimate_divergence(self, model: torch.nn.Module, rows: list[Row]) -> torch.Tensor:
        """Return the mean log-ratio of the rows' mismatched completions in all processes, in nats."""
        total = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        mismatched = [row | {"completion_ids": row["KL_completion_ids"]} for row in rows]
        with autocast(self.cfg.precision, self.args.device):
            for part in self.evaluation_batches(mismatched):
                log_probs = [output.log_probs.sum().double() for output in self.row_outputs(model, part)]
                stored = [row["ref_KL_logps"] for row in part]
                total[0] += torch.stack(log_probs).sum() - sum(stored)
                total[1] += len(part)
        summed, count = self.accelerator.reduce(total, "sum")
        return summed / count

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the margin between the means of both kinds: a micro-batch may have only one of them."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        means = [metrics.get(f"rewards/{kind}") for kind in BOTH_KINDS]
        if all(means):
            desirable, undesirable = (sum(values) / len(values) for values in means if values)
            metrics["rewards/margins"] = [desirable - undesirable]
        super().log(logs, start_time)

    def log_probs(self, pairs: Sequence[PairLogProbs]) -> list[tuple[list[float], list[float]]]:
        """Return the log-probs of each completion and of its mismatched one under the policy."""
        rows = [
            {"id": p.id, "prompt_ids": p.prompt_ids, "completion_ids": p.chosen_ids + p.rejected_ids} for p in pairs
        ]
        return score_in_batches(self, pairs, rows)


class FirstStep(FirstStepCheck):
    """DPO's check for KTO, whose loss starts at half of the mean weight: all log-ratios and z are 0."""

    def start(self) -> float:
        cfg, labels = self.trainer.cfg, [self.trainer.train_dataset[i]["label"] for i in range(len(self.scored))]
        return sum(cfg.desirable_weight if label else cfg.undesirable_weight for label in labels) / (2 * len(labels))


def rewards(trainer: StoredReferenceTrainer, pairs: Sequence[PairLogProbs], labels: dict[str, bool]) -> list[Row]:
    """Return the trained policy's reward of every completion, β log π(y|x)/π_ref(y|x), in nats, and its label."""
    trainer.model.eval()
    scored = zip(pairs, trainer.log_probs(pairs), strict=True)
    return [
        {"id": p.id, "reward": trainer.cfg.beta * (sum(own) - sum(p.chosen_logps)), "desirable": labels[p.id]}
        for p, (own, _) in scored
    ]
