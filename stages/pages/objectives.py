"""What pages show of each objective, in objectives.yaml: a sentence on its model, its settings, its charts."""

from typing import Any

from stages.config.installation import read_beside
from stages.config.stage_table import DRAWING

OBJECTIVES: dict[str, dict[str, Any]] = read_beside(__file__)
ROLES: dict[str, str] = {name: texts["role"] for name, texts in OBJECTIVES.items()}


def objective_of(stage: str) -> dict[str, Any]:
    """Return what pages show of a stage's objective; {} for a stage that has none here."""
    return OBJECTIVES.get("draws" if stage in DRAWING else stage, {})
