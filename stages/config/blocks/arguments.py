"""Blocks `trainer`: the arguments that go to TRL's trainers, under TRL's names."""

from dataclasses import dataclass, field
from typing import Any

from stages.config.choices import DIVERGENCES, SCHEDULES
from stages.config.limits import (
    Limit,
    at_least,
    between,
    limited,
    partial_share,
    positive,
    share,
    words,
)


@dataclass
class TrainerArguments:
    """Arguments of every trainer, by TRL's names. Null is TRL's default."""

    # of the learning rate: linear, constant, constant_with_warmup, cosine, cosine_with_restarts,
    # polynomial, inverse_sqrt, cosine_with_min_lr, cosine_warmup_with_min_lr or warmup_stable_decay
    lr_scheduler_type: str | None = words(*SCHEDULES, default=None)
    # options of the schedule, as {power: 2}
    lr_scheduler_kwargs: dict[str, Any] = field(default_factory=dict)
    # steps until the learning rate is at its highest; below 1, a share of all steps, which is 4 steps at least
    warmup_steps: int | float | None = None
    weight_decay: int | float | None = None  # of each step; null: 0
    # of a step's gradient; null: any
    max_grad_norm: int | float | None = 1.0
    # an optimizer of transformers, as adamw_torch or sgd; null: adamw_torch_fused
    optim: str | None = None
    adam_beta1: int | float | None = partial_share(None)  # of the mean gradient; null: 0.9
    adam_beta2: int | float | None = partial_share(
        None
    )  # of the mean squared gradient; null: 0.999
    adam_epsilon: int | float | None = None  # null: 1e-8
    # noise on embeddings (arXiv:2310.05914), for padded rows alone; null: none
    neftune_noise_alpha: int | float | None = None
    use_liger_kernel: bool | None = None  # true: kernels of liger for norms and SwiGLU, on CUDA
    # seconds to wait for other processes; null: 1800
    ddp_timeout: int | None = at_least(1, None)
    extra: dict[str, Any] = field(default_factory=dict)  # further ones, as TRL takes them

    @property
    def given(self) -> dict[str, Any]:
        """The arguments that are not at their defaults, and those of `extra`."""
        values = vars(self).copy()
        extra = values.pop("extra")
        defaults = vars(type(self)())
        changed = {name: value for name, value in values.items() if value != defaults[name]}
        if self.max_grad_norm is None:
            changed["max_grad_norm"] = 0.0  # which clips nothing; transformers compares null with 0
        return changed | extra


@dataclass
class SFTArguments(TrainerArguments):
    """Arguments of TRL's SFT trainer."""

    # nll, or dft (arXiv:2508.05629); null: nll
    loss_type: str | None = words("nll", "dft", default=None)
    # share of the label that all other tokens get; null: 0
    label_smoothing_factor: int | float | None = partial_share(None)
    # weight of the auxiliary loss of a mixture of experts; null: 0
    router_aux_loss_coef: int | float | None = None


@dataclass
class RewardArguments(TrainerArguments):
    """Arguments of TRL's reward trainer."""

    # weight of the mean reward's square, which keeps rewards near 0 (arXiv:2312.09244); null: 0
    center_rewards_coefficient: int | float | None = None
    disable_dropout: bool | None = None  # null: true


@dataclass
class DPOArguments(TrainerArguments):
    """Arguments of TRL's DPO trainer."""

    # share of wrong labels that robust, exo_pair and aot losses assume; null: 0
    label_smoothing: int | float | None = limited(Limit(0, 0.5, below=True), None)
    use_weighting: bool | None = None  # true: pairs count by their probability (arXiv:2406.11827)
    # reverse_kl, forward_kl, js_divergence or alpha_divergence, from the reference; null: reverse_kl
    f_divergence_type: str | None = words(*DIVERGENCES, default=None)
    # of alpha_divergence; null: 0.5
    f_alpha_divergence_coef: int | float | None = between(-1_000_000, 1_000_000, None)
    # weight of tokens beyond the shorter completion's length (arXiv:2409.06411); null: 1
    ld_alpha: int | float | None = share(None)
    discopop_tau: int | float | None = positive(None)  # of the loss discopop; null: 0.05
    # weight of the auxiliary loss of a mixture of experts; null: 0
    router_aux_loss_coef: int | float | None = None
    disable_dropout: bool | None = None  # null: true
