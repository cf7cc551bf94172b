"""Learning rates and DPO's beta of published runs, by model size: for `learning_rate=auto`, and for a warning.

A recipe's rates suit a model of about 135M parameters or the recipe's own. A number is never changed."""

import logging
from collections.abc import Mapping
from typing import Any

from stages.cli import recipes
from stages.config.blocks.models import Model
from stages.config.blocks.objective import Training
from stages.config.blocks.training import OBJECTIVES
from stages.config.choices import GROUP_LOSSES, Adapter
from stages.config.errors import UserError
from stages.config.installation import read_beside
from stages.config.schema import Config
from stages.hardware.model_shape import ModelShape
from stages.preflight.model_files import model_config
from stages.store.sealed_json import Damaged, warn_once

log = logging.getLogger(__name__)

AUTO = "auto"
# By objective and adapter, with growing models: each row has a `learning_rate` (the most), perhaps a `beta`, the
# `source` of both, and the billions of parameters that its models are `below`
PUBLISHED_RUNS: dict[str, dict[str, list[dict[str, Any]]]] = read_beside(__file__)
PAIRWISE = {"sigmoid", "sft", *GROUP_LOSSES}  # the losses that the table's betas are of


def learning_rates(cfg: Config) -> dict[str, float]:
    """Return the learning rate of each objective as a number: `auto` is that of published runs. Raise UserError for
    another word, or an objective without published runs."""
    rates: dict[str, float] = {}
    for name in OBJECTIVES:
        block = vars(cfg)[name]
        if not isinstance(block, Training):  # sft=none
            continue
        if block.learning_rate != AUTO:
            rates[name] = require_number(name, block.learning_rate)
        elif name not in PUBLISHED_RUNS:
            raise UserError(f"{name}.learning_rate=auto: no published runs here. Type a number.")
        elif name in cfg.trained:
            rates[name] = rate_by_model_size(name, block, cfg.model)
    return rates


def require_number(objective: str, rate: float | str) -> float:
    """Return an objective's learning rate as a number. Raise UserError for a word."""
    try:
        return float(rate)
    except ValueError:
        problem = f"{objective}.learning_rate={rate}: this value is not accepted"
        raise UserError(f"{problem}. Accepted: a number, or auto.") from None


def rate_by_model_size(objective: str, block: Training, model: Model) -> float:
    """Return the learning rate of published runs of an objective, and log it with its source. Raise UserError if the
    size of the model cannot be read."""
    key = f"{objective}.learning_rate"
    parameters = count_parameters(model)
    if parameters is None:
        raise UserError(f"{key}=auto: the size of the model cannot be read. Type a number.")
    row = published_run(objective, block.adapter, parameters)
    rate = float(row["learning_rate"])
    log.info("%s=auto: %g, for %s (%s)", key, rate, size_words(parameters), row["source"])
    return rate


def warn_of_high_rates(cfg: Config, typed: Mapping[str, str]) -> None:
    """Warn if another model than the recipe's is typed, and learning rates that are not typed are above those of
    published runs."""
    other_model = typed_other_model(typed)
    parameters = count_parameters(cfg.model) if other_model else None
    if parameters is None:
        return
    for name, block in cfg.trained.items():
        if name not in PUBLISHED_RUNS or f"{name}.learning_rate" in typed:
            continue
        row = published_run(name, block.adapter, parameters)
        rate = require_number(name, block.learning_rate)
        advice = f"{name}.learning_rate=auto"
        losses = {*getattr(block, "loss_type", ())}
        if "beta" in row and losses <= PAIRWISE and f"{name}.beta" not in typed:
            advice += f" {name}.beta={row['beta']:g}"
        if rate > row["learning_rate"]:
            warn_once(
                f"{name}.learning_rate={rate:g} is high for {other_model}, which has {size_words(parameters)}. "
                f"Published runs have {row['learning_rate']:g} ({row['source']}): type {advice}."
            )


def typed_other_model(typed: Mapping[str, str]) -> str | None:
    """Return the argument that names another model than the recipe's, or None."""
    for key in ("model.path", "model"):
        if key in typed and typed[key] != recipes.own_option(recipes.recipe_of_job(typed), "model"):
            return f"{key}={typed[key]}"
    return None


def size_words(parameters: int) -> str:
    return f"{parameters / 1e9:.2g}B parameters"


def published_run(objective: str, adapter: str, parameters: int) -> dict[str, Any]:
    """Return the row of published runs for an objective, with or without an adapter, and a number of parameters."""
    rows = PUBLISHED_RUNS[objective]["none" if adapter == Adapter.none else "lora"]
    return next(row for row in rows if parameters < 1e9 * row["below"])


def count_parameters(model: Model) -> int | None:
    """Return the parameters of a model, or None if it cannot be read, or the hub cannot be reached."""
    try:
        config = model_config(model)
    except (OSError, ValueError, Damaged, UserError):
        return None
    shape = ModelShape.from_config(config) if config else None
    return shape.parameters if shape else None
