"""Settle a composed configuration: what one key leaves to another, to published runs or to this machine.

`resolve` is the one place that assigns to a block. All code behind it only reads blocks, or copies them with other
values (`dataclasses.replace`). OmegaConf takes no frozen dataclasses as its schema, so a test holds this."""

from collections.abc import Container, Mapping
from dataclasses import is_dataclass
from typing import Any

from stages.cli import starting_values
from stages.cli.settings import all_settings
from stages.cli.spelling import is_inside
from stages.cli.typed_lists import read_value
from stages.config.blocks.models import EMBEDDED, ChatML
from stages.config.choices import Precision
from stages.config.errors import UserError
from stages.config.schema import Config
from stages.hardware import machine
from stages.preflight import constraints
from stages.preflight.arguments import warn_of_dropped_arguments


def resolve(cfg: Config, typed: Mapping[str, str]) -> None:
    """Settle a configuration, and check it. Raise UserError for settings that cannot work."""
    lower_to_maxima(cfg, typed)
    fit_micro_batches(cfg, typed)
    resolve_rates(cfg)
    fill_prices(cfg)
    constraints.validate_config(cfg)
    starting_values.warn_of_high_rates(cfg, typed)
    warn_of_dropped_arguments(cfg)
    machine.plan_for(cfg.planned_gpu)
    resolve_precision(cfg)
    resolve_template(cfg)


def lower_to_maxima(cfg: Config, typed: Mapping[str, str]) -> None:
    """Lower each size that is not typed to its maximum, as scale=toy has them. Where no SFT teaches a random model to
    end, candidates keep their length. Raise UserError for what cannot be a maximum."""
    exempt = set() if cfg.sft.train else {"sample.max_new_tokens"}
    lower_sizes(cfg, cfg.maxima, typed, exempt)


def lower_sizes(
    block: Any,
    maxima: Mapping[str, Any],
    typed: Mapping[str, str],
    exempt: Container[str] = (),
    prefix: str = "",
) -> None:
    """Lower the sizes of a block, and of the blocks inside it, but for the keys that are `exempt`."""
    for name, most in maxima.items():
        key = f"{prefix}{name}"
        if key not in all_settings():
            raise UserError(f"maxima.{key}: {key} is not a setting. Leave it out.")
        size = vars(block).get(name)
        if size is None or key in exempt:  # an option of a group may not have the key
            continue
        require_maximum(key, size, most)
        if is_dataclass(size):
            lower_sizes(size, most, typed, exempt, f"{key}.")
        elif isinstance(size, int | float) and size > most and not is_typed(key, typed):
            vars(block)[name] = most


def require_maximum(key: str, size: Any, most: Any) -> None:
    """Raise UserError if `most` cannot be the maximum of a key that is now `size`."""
    if is_dataclass(size):
        if not isinstance(most, Mapping):
            raise UserError(f"maxima.{key}={most}: {key} is a block. Type {{KEY: NUMBER}}.")
        return
    if isinstance(size, bool):
        raise UserError(f"maxima.{key}={most}: {key} is not a size. Leave it out.")
    kinds = (int,) if isinstance(size, int) else (int, float)
    if type(most) not in kinds:
        number = "whole number" if isinstance(size, int) else "number"
        raise UserError(f"maxima.{key}={most}: this is not a {number}. Type one, as {size}.")


def is_typed(key: str, typed: Mapping[str, str]) -> bool:
    """Return whether the command line has a key, alone or in the mapping of a block around it."""
    for typed_key, text in typed.items():
        if typed_key == key:
            return True
        if is_inside(key, typed_key) and has_key(text, key.removeprefix(f"{typed_key}.")):
            return True
    return False


def has_key(text: str, key: str) -> bool:
    """Return whether a typed mapping has a key, which may stand in a mapping inside it: `a.b` of `{a: {b: 1}}`."""
    value = read_value(text)
    for name in key.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return False
        value = value[name]
    return True


def fit_micro_batches(cfg: Config, typed: Mapping[str, str]) -> None:
    """Lower each micro-batch that is not typed to the largest size that divides a process's rows of a step."""
    for name, block in cfg.trained.items():
        runtime = block.runtime
        has_typed_size = is_typed(f"{name}.runtime.micro_batch", typed)
        if has_typed_size or type(runtime.micro_batch) is not int or runtime.world_size < 1:
            continue
        rows_of_process, remainder = divmod(block.batch_size, runtime.world_size)
        while remainder == 0 and rows_of_process % runtime.micro_batch:
            runtime.micro_batch -= 1


def resolve_rates(cfg: Config) -> None:
    """Replace `learning_rate=auto` by the number of published runs, which fingerprints then name."""
    for name, rate in starting_values.learning_rates(cfg).items():
        vars(cfg)[name].learning_rate = rate


def fill_prices(cfg: Config) -> None:
    """Fill in the price of each endpoint that has none, from `prices` by its model."""
    for endpoint in cfg.endpoints.values():
        if not endpoint.price.is_complete:
            endpoint.price = cfg.prices.get(str(endpoint.model), endpoint.price)


def resolve_precision(cfg: Config) -> None:
    """Replace `precision=auto` by this machine's precision in every block, since fingerprints name the real one."""
    of_machine = Precision.bf16 if machine.computes_bf16() else Precision.fp32
    blocks: list[Any] = [*vars(cfg).values()]
    for block in blocks:  # which grows by the blocks inside
        if is_dataclass(block):
            blocks += vars(block).values()
            if vars(block).get("precision") is Precision.auto:
                vars(block)["precision"] = of_machine


def resolve_template(cfg: Config) -> None:
    """Train the embedded model in ChatML unless a template is typed. Every other model keeps its own."""
    # its own template writes a system turn with its name before every prompt without one
    if cfg.model.path == EMBEDDED and cfg.sft.train and cfg.sft.template.kind == "auto":
        settings = {key: value for key, value in vars(cfg.sft.template).items() if key != "kind"}
        cfg.sft.template = ChatML(**settings)
