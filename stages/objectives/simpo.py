"""SimPO (arXiv:2405.14734): the loss of a pair without a reference.

A completion's reward is β times the mean log-prob of its tokens. With chosen y_w and rejected y_l, the loss is
-log σ(β/|y_w| log π(y_w|x) - β/|y_l| log π(y_l|x) - γ) (Eq. 6). TRL has it in its experimental CPOTrainer."""

from statistics import fmean
from typing import Any

from torch.nn.functional import logsigmoid

from stages.objectives.dpo import StoredReferenceTrainer
from stages.training.micro_batches import Batch


class ReferenceFreeTrainer(StoredReferenceTrainer):
    """A trainer on rows of `dpo.trl_row`, of which it reads the token ids."""

    def reward(self, log_probs: list[float], _reference: list[float]) -> float:
        return self.cfg.beta * fmean(log_probs)

    def compute_loss(self, model: Any, inputs: Batch, return_outputs: bool = False, **_: Any) -> Any:
        """Return the mean loss of some pairs, and add TRL's figures of pairs to the metrics."""
        output, tokens = self.score(model, inputs), inputs["completion_mask"].sum(-1)
        log_probs = output.log_probs.sum(-1)
        chosen, rejected = (self.cfg.beta * log_probs / tokens).chunk(2)
        margins = chosen - rejected
        loss = -logsigmoid(margins - self.cfg.gamma).mean() * self.loss_weights[0]
        logps = dict(zip(("logps/chosen", "logps/rejected"), log_probs.chunk(2), strict=True))
        figures = {"rewards/chosen": chosen, "rewards/rejected": rejected, "rewards/margins": margins, **logps}
        figures["rewards/accuracies"] = (margins > 0).to(margins)
        training = self.model.training
        for name, values in figures.items():
            mean = values.detach().mean()
            self._metrics["train" if training else "eval"][name].append(mean if training else float(mean))
        if training:
            self._metrics["train"]["entropy"].append(output.entropy.sum().detach() / tokens.sum())
            self._total_train_tokens += inputs["attention_mask"].sum()
        return (loss, {}) if return_outputs else loss
