"""Learning rates and DPO's beta of published runs, by model size: what a command is told that names another model.

Nothing is changed. A recipe's rates, like the general defaults, suit a model of about 135M parameters or the recipe's
own."""

from typing import Any

from stages.cli import recipes
from stages.config.blocks.models import Model
from stages.config.choices import GROUP_LOSSES, Adapter
from stages.config.errors import UserError
from stages.config.installation import read_beside
from stages.config.schema import Config
from stages.hardware.model_shape import ModelShape
from stages.preflight.model_files import model_config
from stages.store.sealed_json import Damaged, warn_once

# Learning rates and beta of published runs, by objective, adapter and number of parameters
ROWS: dict[str, dict[str, list[dict[str, Any]]]] = read_beside(__file__)
STARTED = tuple(ROWS)  # blocks with starting values
PAIRWISE = {"sigmoid", "sft", *GROUP_LOSSES}  # the losses that the table's betas are of


def warn_of_rates(cfg: Config, typed: dict[str, str]) -> None:
    """Warn if another model than the recipe's is typed, and learning rates that are not typed are above those of
    published runs."""
    typed_models = {key: typed[key] for key in ("model.path", "model") if key in typed}
    if "model" in typed:  # without one, the recipe is not read again
        recipe = recipes.recipe_of_job(typed)
        if typed["model"] == recipes.own_option(recipe, "model"):
            del typed_models["model"]
    model = next((f"{key}={value}" for key, value in typed_models.items()), None)
    parameters = count_parameters(cfg.model) if model else None
    if parameters is None:
        return
    for name, block in cfg.trained.items():
        if name not in ROWS or f"{name}.learning_rate" in typed:
            continue
        row = table_row(name, block.adapter, parameters)
        if block.learning_rate <= row["learning_rate"]:
            continue
        advice = f"{name}.learning_rate={row['learning_rate']:g}"
        is_of_loss = {*getattr(block, "loss_type", ())} <= PAIRWISE
        if "beta" in row and is_of_loss and f"{name}.beta" not in typed:
            advice += f" {name}.beta={row['beta']:g}"
        warn_once(
            f"{name}.learning_rate={block.learning_rate:g} is high for {model}, which has "
            f"{parameters / 1e9:.2g}B parameters. Published runs have {advice} ({row['source']})."
        )


def table_row(objective: str, adapter: str, parameters: int) -> dict[str, Any]:
    """Return the row of the table: `learning_rate` (the most), perhaps `beta`, and the `source` of both."""
    rows = ROWS[objective]["none" if adapter == Adapter.none else "lora"]
    return next(row for row in rows if parameters < 1e9 * row["below"])


def count_parameters(model: Model) -> int | None:
    """Return the parameters of a model, or None if it cannot be read, or the hub cannot be reached."""
    try:
        config = model_config(model)
    except (OSError, ValueError, Damaged, UserError):
        return None
    shape = ModelShape.from_config(config) if config else None
    return shape.parameters if shape else None
