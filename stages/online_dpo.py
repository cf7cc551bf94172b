"""Stage `online_dpo`: DPO on pairs of the policy's own completions, which `label` scores (arXiv:2402.04792)."""

from pathlib import Path
from typing import Any

from stages.config.blocks.online_dpo import OnlineDPO
from stages.objectives.online_dpo import OnlinePairTrainer
from stages.store.workspace import StageDir
from stages.training.drawing import train_on_draws


def run(cfg: OnlineDPO, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish `model/` under the policy's contract, any `adapter/`, and `held_out.json`: each held-out reward."""
    return train_on_draws(OnlinePairTrainer, cfg, inputs, out)
