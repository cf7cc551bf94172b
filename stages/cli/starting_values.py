"""Starting values for a model that a recipe's own values were not chosen for: learning rates and DPO's beta, by size.

With another model than the recipe's, its learning rates are lowered to those of the table. A recipe with a model of
its own gets the table's where it gives no learning rate."""

import logging
import re
from typing import Any

from omegaconf import DictConfig, OmegaConf

from stages.cli.recipe_layers import group_options, take_out
from stages.config.blocks.models import Model
from stages.config.blocks.training import OBJECTIVES
from stages.config.choices import GROUP_LOSSES, Adapter
from stages.config.errors import UserError
from stages.config.installation import read_beside
from stages.config.schema import CONF, group_defaults
from stages.hardware.model_shape import ModelShape
from stages.preflight.model_files import model_config
from stages.store.sealed_json import Damaged

log = logging.getLogger(__name__)

STARTED = ("sft", "dpo", "grpo")  # blocks with starting values
TRAINED = [name for name, objective in OBJECTIVES.items() if objective.in_chain]
# Learning rates and beta of published runs, by objective, adapter and number of parameters
ROWS: dict[str, dict[str, list[dict[str, Any]]]] = read_beside(__file__)


def set_starting_values(name: str, layers: list[DictConfig], typed: dict[str, str]) -> None:
    """Set starting values in the first of these recipes, whose values win, and log the changes under its `name`."""
    groups, path = group_options(layers[0]), OmegaConf.select(layers[0], "model.path")
    group = groups.get("model", "embedded")
    own = {
        "model": group,
        "model.path": path or OmegaConf.load(CONF / "model" / f"{group}.yaml").path,
    }
    other = [
        f"{key}={typed[key]}" for key in own if typed.get(key, "null") not in ("null", own[key])
    ]
    if other:
        parameters, blocks = (
            count_parameters(typed.get("model", ""), typed.get("model.path", "")),
            [*STARTED],
        )
        reason = f"recipe={name}'s learning rates suit its own model; with {other[0]}"
    else:
        parameters = count_parameters(group, path or "") if path or "model" in groups else None
        blocks = [
            b
            for b in STARTED
            if b not in groups and OmegaConf.select(layers[0], f"{b}.learning_rate") is None
        ]
        reason = f"recipe={name} gives no value of its own"
    free = [block for block in blocks if block not in typed]  # a typed group gives all values
    if changes := [
        text for block in free if (text := start_block(block, layers, typed, parameters))
    ]:
        log.warning("warning: %s: %s. Type others to choose.", reason, ", ".join(changes))


def start_block(
    block: str, layers: list[DictConfig], typed: dict[str, str], parameters: int | None
) -> str:
    """Set the starting values of a block, for a model of so many parameters. Return the changes as text, which names
    their source if the size is known; '' if nothing changes that this run reads."""

    def stated(key: str, default: str) -> str:
        return str(typed.get(f"{block}.{key}") or first_of(layers, f"{block}.{key}", default))

    row = table_row(block, stated("adapter", Adapter.none), parameters) if parameters else {}
    changes, rate_key, beta_key = list[str](), f"{block}.learning_rate", f"{block}.beta"
    if (
        rate := lower_rate(rate_key, layers, row.get("learning_rate"))
    ) is not None and rate_key not in typed:
        changes.append(f"{rate_key}={rate:g}")
    if block == "sft" and row:  # the control is SFT, too
        lower_rate("control_learning_rate", layers, row["learning_rate"])
    fits = {*re.findall(r"\w+", stated("loss_type", "sigmoid"))} <= {
        "sigmoid",
        "sft",
        *GROUP_LOSSES,
    }
    # other losses of DPO have betas of another size
    if "beta" in row and fits and not stated("beta", ""):
        OmegaConf.update(layers[0], beta_key, row["beta"], force_add=True)
        changes.append(f"{beta_key}={row['beta']:g}")
    is_read = block in TRAINED or any(
        block in typed.get(key, "") for key in ("align", "arms", "stage")
    )
    source = f" ({row['source']})" if row else ""
    return ", ".join(changes) + source if changes and is_read else ""


def lower_rate(key: str, layers: list[DictConfig], most: float | None) -> float | None:
    """Take learning rates above `most` out of recipes, and set it if the general default is higher, too. Without
    `most`, it is that default. Return the new rate, or None if it stays."""
    block, _, name = key.rpartition(".")
    default = float(
        OmegaConf.select(
            group_defaults(block) if block else OmegaConf.load(CONF / "config.yaml"), name
        )
    )
    before, most = first_of(layers, key, default), default if most is None else most
    for recipe in (r for r in layers if OmegaConf.select(r, key, default=0.0) > most):
        take_out(recipe, key)
    if first_of(layers, key, default) > most:
        OmegaConf.update(layers[0], key, most, force_add=True)
    after = float(first_of(layers, key, default))
    return None if after == before else after


def first_of(layers: list[DictConfig], key: str, default: Any) -> Any:
    """Return the value of a key in the first recipe that states it."""
    values = (OmegaConf.select(recipe, key) for recipe in layers)
    return next((value for value in values if value is not None), default)


def table_row(objective: str, adapter: str, parameters: int) -> dict[str, Any]:
    """Return the row of the table: `learning_rate` (the most), perhaps `beta`, and the `source` of both."""
    rows = ROWS[objective]["none" if adapter == Adapter.none else "lora"]
    return next(row for row in rows if parameters < 1e9 * row["below"])


def count_parameters(model: str, path: str) -> int | None:
    """Return the parameters of the model at a path (a folder or a hub id) or, without a path, of an option of `model`.
    Return None if the model cannot be read, or the hub cannot be reached."""
    option = CONF / "model" / f"{model}.yaml"
    group = DictConfig(OmegaConf.load(option) if option.is_file() and not path else {})
    try:
        config = model_config(
            Model(path or group.get("path"), None, config=dict(group.get("config") or {}))
        )
    except (OSError, ValueError, Damaged, UserError):
        return None
    shape = ModelShape.from_config(config) if config else None
    return shape.parameters if shape else None
