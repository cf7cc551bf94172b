"""Stage `grpo`: group-relative policy optimization (arXiv:2402.03300) on completions that `label` scores."""

from pathlib import Path
from typing import Any

from stages.config.blocks.grpo import GRPO
from stages.objectives.grpo import GroupTrainer
from stages.store.workspace import StageDir
from stages.training.drawing import train_on_draws


def run(cfg: GRPO, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish `model/` under the policy's contract, any `adapter/`, and `held_out.json`: each held-out reward."""
    return train_on_draws(GroupTrainer, cfg, inputs, out)
