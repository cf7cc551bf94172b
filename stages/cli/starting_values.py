"""Learning rates and beta of published runs, by objective, adapter and number of parameters."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from stages.config.choices import Adapter
from stages.config.errors import UserError
from stages.config.installation import read_beside
from stages.config.schema import CONF
from stages.hardware.model_shape import ModelShape, read_config
from stages.store.sealed_json import Damaged

ROWS: dict[str, dict[str, list[dict[str, Any]]]] = read_beside(__file__)


def starting_values(objective: str, adapter: str, parameters: int) -> dict[str, Any]:
    """Return the row of the table: `learning_rate` (the most), perhaps `beta`, and the `source` of both."""
    rows = ROWS[objective]["none" if adapter == Adapter.none else "lora"]
    return next(row for row in rows if parameters < 1e9 * row["below"])


def count_parameters(model: str, path: str) -> int | None:
    """Return the parameters of the model in a folder or, for an option of the group `model`, as published. Return None
    if neither says so, as for a model on the hub."""
    option = CONF / "model" / f"{model}.yaml"
    config = OmegaConf.select(OmegaConf.load(option), "config") if option.is_file() and not path else None
    try:
        shape = ModelShape.from_config(dict(config) if config else read_config(Path(path)))
    except (OSError, Damaged, UserError):
        return None
    return shape.parameters if shape else None
