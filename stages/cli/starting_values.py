"""Learning rates and beta of published runs, by objective, adapter and number of parameters."""

import struct
from typing import Any

from omegaconf import DictConfig, OmegaConf

from stages.config.blocks.models import Model
from stages.config.choices import Adapter
from stages.config.errors import UserError
from stages.config.installation import read_beside
from stages.config.schema import CONF
from stages.hardware.model_shape import ModelShape
from stages.preflight.model_files import model_config
from stages.store.sealed_json import Damaged

ROWS: dict[str, dict[str, list[dict[str, Any]]]] = read_beside(__file__)


def starting_values(objective: str, adapter: str, parameters: int) -> dict[str, Any]:
    """Return the row of the table: `learning_rate` (the most), perhaps `beta`, and the `source` of both."""
    rows = ROWS[objective]["none" if adapter == Adapter.none else "lora"]
    return next(row for row in rows if parameters < 1e9 * row["below"])


def count_parameters(model: str, path: str) -> int | None:
    """Return the parameters of the model at a path (a folder, a GGUF file or a hub id) or, without a path, of an
    option of the group `model`. Return None if the model cannot be read, or the hub cannot be reached."""
    option = CONF / "model" / f"{model}.yaml"
    group = DictConfig(OmegaConf.load(option) if option.is_file() and not path else {})
    try:
        config = model_config(Model(path or group.get("path"), None, config=dict(group.get("config") or {})))
    except (OSError, ValueError, LookupError, ArithmeticError, struct.error, Damaged, UserError):
        return None
    shape = ModelShape.from_config(config) if config else None
    return shape.parameters if shape else None
