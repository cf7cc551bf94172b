"""Before SFT's first step on packed rows: an example must not attend to the one before it.

A mask made from positions, lengths handed to a kernel, or our layout keeps packed examples apart. A model may ignore
any of these and say nothing. So no list of implementations is trusted: the model itself is measured, ready to train.
"""

from typing import Any

import torch
from accelerate.utils import send_to_device
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTTrainer

from stages.config.blocks.training import SFT
from stages.config.errors import UserError
from stages.models.packing import attention_of
from stages.models.scoring import agreement, autocast

TOKENS = 32


class Isolation(TrainerCallback):
    """Packs the first 32 tokens of an example with a copy of themselves, and has the model score both."""

    def __init__(self, trainer: SFTTrainer, cfg: SFT, example: list[int]):
        self.trainer, self.cfg, self.ids = trainer, cfg, example[:TOKENS]

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        gap, nats = self.measure()
        # A model that attends to the first copy predicts the second from it. The log-probs of a trained model then
        # rise by nats; `agreement` allows 1e-5 in fp32 and 0.03 in bf16.
        if not gap <= agreement(self.cfg.precision, nats):
            attention = attention_of(self.trainer.model)
            raise UserError(
                f"sft.packing=true: with this model ({attention} attention) an example would see the one packed "
                f"before it: behind a copy of itself its log-probs move by {gap:.2g} nats per token. Set it to false."
            )

    @torch.no_grad()
    def measure(self) -> tuple[float, float]:
        """Mean |copy - first| and mean |first| of the log-probs per token, in nats."""
        count = len(self.ids)
        row = {"input_ids": self.ids * 2, "labels": self.ids * 2, "seq_lengths": [count, count]}
        batch = send_to_device(self.trainer.data_collator([row]), self.trainer.args.device)
        with autocast(self.cfg.precision, self.trainer.args.device):
            scored = self.trainer.model(**batch, use_cache=False, fused_lm_head=True).log_probs[0].float()
        first, copy = scored[: count - 1], scored[count:]  # left out: what scores the copy's first token
        return float((copy - first).abs().mean()), float(first.abs().mean())
