"""Stage `dpo`: direct preference optimization (arXiv:2305.18290) by TRL's DPOTrainer, on stored reference log-probs."""

import math
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from stages import contract, training
from stages.config import DPO, Precision
from stages.contract import Contract
from stages.errors import UserError
from stages.models import load_model, save_model, token_log_probs
from stages.records import Pair, PairLogProbs, load
from stages.store import Work, read_manifest

# Tolerances of the step-0 check: mean |policy - reference| per token, in nats.
AGREEMENT = {Precision.fp32: 1e-5, Precision.bf16: 0.02}
CHECKED_PAIRS = 64


class StoredReferenceTrainer(DPOTrainer):
    """TRL's trainer with the reference's log-probs from the store, and a loss that micro-batches do not change."""

    def __init__(self, *args: Any, reference: dict[str, dict[str, Any]], **kwargs: Any):
        self._reference = reference
        super().__init__(*args, **kwargs)

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """TRL's one seam for reference log-probs: return the dataset with them instead of computing them.

        TRL tokenised the pairs itself; its tokens must be the ones that the reference scored.
        """
        rows = [self._reference[pair_id] for pair_id in dataset["id"]]
        for ours, theirs in zip(rows, dataset, strict=True):
            for column in ("prompt_ids", "chosen_ids", "rejected_ids"):
                if theirs[column][: len(ours[column])] != ours[column]:
                    raise UserError(f"pair {theirs['id']}: TRL and the reference disagree on {column}.")
        return Dataset.from_list(rows)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Count what the whole step trains of chosen completions: the normaliser of TRL's `sft` loss."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        counts = [self._chosen_tokens(batch) for batch in batches]
        total = self.accelerator.gather(torch.tensor(float(sum(counts)), device=self.accelerator.device)).sum()
        self._mean_chosen_tokens = float(total) / (len(batches) * self.accelerator.num_processes)
        return batches, items

    @staticmethod
    def _chosen_tokens(batch: dict[str, torch.Tensor]) -> int:
        mask = batch["completion_mask"][:, 1:]
        return int(mask[: len(mask) // 2].sum())

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """TRL's loss. Its `sft` term is a mean over a micro-batch's tokens: weighted by their share, it is one over
        the step's."""
        if self.model.training and "sft" in self.loss_types:
            weights = self.loss_weights
            share = self._chosen_tokens(inputs) / self._mean_chosen_tokens
            self.loss_weights = [w * share if t == "sft" else w for t, w in zip(self.loss_types, weights, strict=True)]
            try:
                return super().compute_loss(model, inputs, *args, **kwargs)
            finally:
                self.loss_weights = weights
        return super().compute_loss(model, inputs, *args, **kwargs)


def run(cfg: DPO, inputs: dict[str, Path], out: Work) -> dict[str, Any]:
    """Publish `model/` under the policy's contract.

    Raises:
        UserError: where the policy is not what the reference scored, the loss does not start where it must, too
            many pairs are too long, or training diverged.
    """
    terms = contract.load(inputs["policy"] / "model")
    reference = {p.id: p for p in load(inputs["reference"] / "logprobs.parquet", PairLogProbs)}
    splits, dropped = fitting(load(inputs["pairs"] / "pairs.parquet", Pair), reference, cfg, out)
    pairs = training.cut_to_batches(splits["train"], lambda pair: pair.id, cfg.batch_size, "dpo")
    held_out = splits["validation"]

    model = load_model(inputs["policy"] / "model")
    trainer = StoredReferenceTrainer(
        model,
        reference={id_: trl_row(p, cfg.trainer.get("ld_alpha")) for id_, p in reference.items()},
        args=training.arguments(
            DPOConfig,
            cfg,
            out,
            beta=cfg.beta,
            loss_type=list(cfg.loss_type),
            loss_weights=cfg.loss_weights,
            precompute_ref_log_probs=True,
        ),
        train_dataset=trl_pairs(pairs),
        eval_dataset=trl_pairs(held_out) if held_out else None,
        processing_class=terms.tokenizer,
    )
    start = check_start(trainer, cfg, inputs, [reference[p.id] for p in pairs[:CHECKED_PAIRS]], terms)
    training.train(trainer, cfg, out)
    save_model(trainer.model, out / "model")
    terms.save(out / "model")

    curve = training.read_curves(out.path)
    figures = {**start, **last_of(curve, "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected")}
    figures |= last_of(curve, "eval_loss", "eval_rewards/accuracies", "eval_rewards/margins")
    displaced = displacement(curve)
    if displaced:
        out.warn(displaced)
    summary = f"{len(pairs)} pairs × {cfg.epochs:g} epochs, {trainer.state.global_step} steps"
    if "eval_rewards/accuracies" in figures:
        summary += f"; held-out pair accuracy {figures['eval_rewards/accuracies']:.1%} of {len(held_out)}"
    tokens = sum(2 * len(reference[p.id].prompt_ids) + completion_tokens(reference[p.id]) for p in pairs)
    return {
        "device": str(trainer.args.device),
        "pairs": len(pairs),
        "pairs_cut": len(splits["train"]) - len(pairs),
        "pairs_dropped": dropped,
        "held_out": len(held_out),
        "steps": trainer.state.global_step,
        "tokens": round(cfg.epochs * tokens),
        "displacement": bool(displaced),
        **figures,
        "summary": summary,
    }


def fitting(
    pairs: list[Pair], reference: dict[str, PairLogProbs], cfg: DPO, out: Work
) -> tuple[dict[str, list[Pair]], int]:
    """The pairs by split whose completions fit whole into `max_length`, and how many do not."""
    kept: dict[str, list[Pair]] = {"train": [], "validation": []}
    for pair in pairs:
        scored = reference.get(pair.id)
        if scored and len(scored.prompt_ids) + max(len(scored.chosen_ids), len(scored.rejected_ids)) <= cfg.max_length:
            kept[pair.split].append(pair)
    dropped = len(pairs) - sum(map(len, kept.values()))
    if dropped:
        message = f"{dropped} of {len(pairs)} pairs are longer than dpo.max_length={cfg.max_length} tokens, or unscored."
        if dropped > cfg.max_dropped * len(pairs):
            raise UserError(f"{message} dpo.max_dropped={cfg.max_dropped:g} allows fewer. Raise either.")
        out.warn(message)
    return kept, dropped


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


def completion_tokens(scored: PairLogProbs) -> int:
    return len(scored.chosen_ids) + len(scored.rejected_ids)


def check_start(
    trainer: StoredReferenceTrainer, cfg: DPO, inputs: dict[str, Path], scored: list[PairLogProbs], terms: Contract
) -> dict[str, float]:
    """Before the first step, policy and reference are the same model, and the loss is what it is at log-ratio 0.

    Raises:
        UserError: naming both sides, where either does not hold. With `reference: sft` after the first round the
            policy has moved on, and only the token ids are checked.
    """
    recorded = read_manifest(inputs["reference"])
    assert recorded is not None
    policy, anchor = inputs["policy"].name, recorded["inputs"]["reference"]["fingerprint"]
    if policy != anchor:
        return {}
    model = trainer.model
    training_mode = model.training
    model.eval()
    gaps: list[float] = []
    for p in scored:
        sequences = [(p.prompt_ids, p.chosen_ids), (p.prompt_ids, p.rejected_ids)]
        found = token_log_probs(model, sequences, terms.tokenizer.pad_token_id, cfg.precision)
        stored = (p.chosen_logps, p.rejected_logps)
        gaps += [abs(f - s) for fs, ss in zip(found, stored, strict=True) for f, s in zip(fs, ss, strict=True)]
    gap = sum(gaps) / len(gaps)
    if not gap <= AGREEMENT[cfg.precision]:
        raise UserError(
            f"the policy {policy} differs from the stored reference {anchor} by {gap:.2g} nats per token on "
            f"{len(scored)} pairs ({AGREEMENT[cfg.precision]:g} allowed in {cfg.precision}): not the same weights, "
            "template or precision. Build the reference again: rebuild=reference."
        )
    with torch.no_grad(), trainer.compute_loss_context_manager():
        batch = trainer.data_collator([trl_row(p, cfg.trainer.get("ld_alpha")) for p in scored[:8]])
        loss = float(trainer.compute_loss(model, trainer._prepare_inputs(batch)))
    trainer._metrics["eval"].clear()
    model.train(training_mode)
    expected = starting_loss(cfg)
    if expected is not None and abs(loss - expected) > 1e-3 + 100 * AGREEMENT[cfg.precision] * max(1.0, expected):
        raise UserError(f"the loss starts at {loss:.6g}; at log-ratio 0 it is {expected:.6g}.")
    return {"step_0_gap": gap, "step_0_loss": loss}


def starting_loss(cfg: DPO) -> float | None:
    """The loss at log-ratio 0, or None where it has no fixed value (`sft`, WPO weighting, MoE auxiliary loss)."""
    if cfg.trainer.get("use_weighting") or cfg.trainer.get("router_aux_loss_coef") or "sft" in cfg.loss_type:
        return None
    beta, epsilon = cfg.beta, cfg.trainer.get("label_smoothing", 0.0)
    values = dict.fromkeys(("sigmoid", "sigmoid_norm", "robust", "aot", "aot_unpaired"), math.log(2))
    values |= {"hinge": 1.0, "apo_zero": 1.0, "apo_down": 1.0, "nca_pair": 2 * math.log(2), "bco_pair": 2 * math.log(2)}
    values |= {"discopop": (1 + math.log(2)) / 2, "ipo": 1 / (4 * beta**2), "sppo_hard": 1 / (2 * beta**2)}
    if epsilon:
        values["exo_pair"] = -math.log(2) - 0.5 * math.log(epsilon * (1 - epsilon))
    weights = cfg.loss_weights or [1.0] * len(cfg.loss_type)
    return sum(w * values[t] for t, w in zip(cfg.loss_type, weights, strict=True))


def last_of(curve: list[dict[str, Any]], *names: str) -> dict[str, float]:
    """The last value of each metric that the curve holds."""
    return {name: point[name] for point in curve for name in names if name in point}


def displacement(curve: list[dict[str, Any]]) -> str:
    """A warning where chosen log-probs fell together with rejected ones (arXiv:2402.13228), else ''."""
    points = [point for point in curve if "logps/chosen" in point]
    tenth = max(1, len(points) // 10)

    def moved(name: str) -> float:
        return sum(p[name] for p in points[-tenth:]) / tenth - sum(p[name] for p in points[:tenth]) / tenth

    chosen, rejected = moved("logps/chosen"), moved("logps/rejected")
    if chosen < -1.0 and rejected < 0:
        return (
            f"likelihood displacement: log-probs of chosen fell by {-chosen:.1f} nats while those of rejected fell by "
            f"{-rejected:.1f}. A higher beta, a lower learning rate, or an `sft` term in loss_type keeps them up."
        )
    return ""
