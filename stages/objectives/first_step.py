"""Before DPO's first step: the policy must give the stored reference's log-probs, and the loss its known start."""

import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stages.config.blocks.training import DPO
from stages.config.choices import DPOReference, Precision, Sharding
from stages.config.errors import UserError
from stages.models.scoring import agreement, autocast
from stages.objectives.preference import StoredReferenceTrainer
from stages.store.manifest import manifest_of
from stages.store.records import PairLogProbs
from stages.store.sealed_json import note, recall
from stages.store.workspace import SCRATCH, Work
from stages.training.checkpoints import checkpoint_folder, saved

PAIRS = 64
# How far the loss may start from its value at log-ratio 0, relative to that: rounding, and no mistake.
LOSS_AGREEMENT = {Precision.fp32: 1e-3, Precision.bf16: 0.02}


class FirstStep(TrainerCallback):
    """Measures the policy when it is ready to train, sharded if it will train so. The figures are kept in scratch: a
    resumed run, whose policy has moved on, reads them there."""

    def __init__(
        self,
        trainer: StoredReferenceTrainer,
        cfg: DPO,
        inputs: dict[str, Path],
        scored: list[PairLogProbs],
        out: Work,
    ):
        self.trainer, self.cfg, self.inputs, self.scored, self.out = trainer, cfg, inputs, scored, out
        self.file = out / SCRATCH / "first_step.json"
        if (
            saved(checkpoint_folder(out))
            and cfg.runtime.sharding is Sharding.none
            and recall(self.file, figures) is None
        ):
            self.measure()  # the note was lost; the policy is still as it was loaded

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step == 0:
            self.measure()

    def measure(self) -> None:
        found = measure(self.trainer, self.cfg, self.inputs, self.scored)
        if self.out.main:
            note(self.file, found)

    @property
    def found(self) -> dict[str, float]:
        return recall(self.file, figures) or {}


def figures(value: Any) -> dict[str, float]:
    """The shape of the note."""
    if not isinstance(value, dict) or not value.keys() <= {"step_0_gap", "step_0_loss"}:
        raise ValueError("no figures of a first step")
    return {name: float(figure) for name, figure in value.items()}


def measure(
    trainer: StoredReferenceTrainer, cfg: DPO, inputs: dict[str, Path], scored: list[PairLogProbs]
) -> dict[str, float]:
    """Score the first 64 pairs with the policy as it was loaded for training, beside the stored log-probs.

    Returns:
        The mean gap in nats per token, and the loss. Nothing in a later round of `dpo.reference=sft`, whose policy is
        no longer the reference.

    Raises:
        UserError: naming policy and reference, where they are not the same model, or where the loss is not what it is
            at log-ratio 0.
    """
    policy, reference = manifest_of(inputs["policy"]), manifest_of(inputs["reference"])
    anchor = reference["inputs"]["reference"]
    names = f"the policy ({policy['stage']} {policy['fingerprint']}) and the reference ({anchor['fingerprint']})"
    if policy["digest"] != anchor["digest"]:
        if cfg.reference is DPOReference.sft:
            return {}
        raise UserError(f"{names} are not the same weights. Build the reference again: rebuild=reference.")
    training = trainer.model.training
    trainer.model.eval()
    gap, loss = mean_gap(trainer, scored[:PAIRS]), mean_loss(trainer, cfg, len(scored[:PAIRS]))
    trainer.model.train(training)
    allowed = agreement(cfg.precision, mean_nats(scored[:PAIRS]))
    if not gap <= allowed:
        raise UserError(
            f"{names} differ by {gap:.2g} nats per token on {len(scored[:PAIRS])} pairs ({allowed:.2g} is "
            f"allowed in {cfg.precision}): other weights, template or precision. Build the reference again: "
            "rebuild=reference."
        )
    expected = starting_loss(cfg)
    if expected is not None and not abs(loss - expected) <= LOSS_AGREEMENT[cfg.precision] * max(1.0, abs(expected)):
        raise UserError(f"the loss of {names} starts at {loss:.6g}; at log-ratio 0 it is {expected:.6g}.")
    return {"step_0_gap": gap, "step_0_loss": loss}


def mean_gap(trainer: StoredReferenceTrainer, scored: list[PairLogProbs]) -> float:
    """Mean |policy - stored reference| per completion token, in nats."""
    gaps: list[float] = []
    for p, found in zip(scored, trainer.log_probs(scored), strict=True):
        for ours, stored in zip(found, (p.chosen_logps, p.rejected_logps), strict=True):
            gaps += [abs(a - b) for a, b in zip(ours, stored, strict=True)]
    return sum(gaps) / len(gaps)


def mean_nats(scored: list[PairLogProbs]) -> float:
    """Mean |log-prob| per completion token under the reference."""
    values = [abs(value) for p in scored for value in (*p.chosen_logps, *p.rejected_logps)]
    return sum(values) / len(values)


def mean_loss(trainer: StoredReferenceTrainer, cfg: DPO, pairs: int) -> float:
    """TRL's loss on the first pairs, in micro-batches."""
    total = 0.0
    with autocast(cfg.precision, trainer.args.device):
        for rows in trainer.micro_batches([trainer.train_dataset[i] for i in range(pairs)]):
            loss, _, _ = trainer.prediction_step(trainer.model, trainer.data_collator(rows), prediction_loss_only=True)
            total += float(loss) * len(rows)
    trainer._metrics["eval"].clear()
    return total / pairs


def starting_loss(cfg: DPO) -> float | None:
    """The loss at log-ratio 0, or None where it has no fixed value (`sft`, WPO weighting, MoE auxiliary loss)."""
    if cfg.trainer.get("use_weighting") or cfg.trainer.get("router_aux_loss_coef") or "sft" in cfg.loss_type:
        return None
    ln2, beta, epsilon = math.log(2), cfg.beta, cfg.trainer.get("label_smoothing", 0.0)
    values = dict.fromkeys(("sigmoid", "sigmoid_norm", "robust", "aot", "aot_unpaired"), ln2)
    values |= {"hinge": 1.0, "apo_zero": 1.0, "apo_down": 1.0, "nca_pair": 2 * ln2, "bco_pair": 2 * ln2}
    values |= {"discopop": (1 + ln2) / 2, "ipo": 1 / (4 * beta**2), "sppo_hard": 1 / (2 * beta**2)}
    if epsilon:
        values["exo_pair"] = -ln2 - 0.5 * math.log(epsilon * (1 - epsilon))
    weights = cfg.loss_weights or [1.0] * len(cfg.loss_type)
    return sum(w * values[t] for t, w in zip(cfg.loss_type, weights, strict=True))
