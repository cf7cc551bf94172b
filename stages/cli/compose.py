"""Prepare the command line for Hydra, and turn a composed configuration into a checked Config, a store and a graph."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue

from stages.cli import recipes, spelling, starting_values, unread
from stages.cli.explain import unknown_setting_message
from stages.config.blocks.models import EMBEDDED, ChatML, Own
from stages.config.choices import Command, Precision
from stages.config.errors import Errors, UserError
from stages.config.schema import Config
from stages.hardware import machine, process
from stages.pipeline.graph import wire_graph
from stages.preflight import building, constraints, servers
from stages.store import source_files
from stages.store.mirror import Mirror
from stages.store.node import Node
from stages.store.sealed_json import OUTPUTS
from stages.store.store import Store

FREE = re.compile(rf"({spelling.FREE})=")
HOME = re.compile(r"(?<=[=\[{,: ])~/[^\s,\]}'\"]*")  # Hydra cannot read it without quotes
CACHES = {
    "HF_DATASETS_CACHE": "datasets",
    "HF_MODULES_CACHE": "modules",
}


def normalise(argv: list[str]) -> list[str]:
    """Return the command line as Hydra reads it: `-m` first, and `++` before keys of open dicts (`sft.trainer.x`).

    A typed `model.path` replaces random weights, `model.random_init` replaces a path, `label=dataset` adds `pairs=all`
    and leaves generated tests out, and content of the user's leaves the default recipe out.
    Raise UserError for an argument that Hydra cannot read."""
    if os.environ.get(OUTPUTS) == "":  # otherwise Hydra writes to the root of the file system
        raise UserError(f"{OUTPUTS} is empty. Set it to a folder, or unset it.")
    argv = [re.sub(r"^(outputs=['\"]?)~(?=/)", rf"\1{Path.home()}", a) for a in argv]
    argv = [HOME.sub(r'"\g<0>"', argument) for argument in argv]
    options = [a for a in argv if a in spelling.MULTIRUN]
    arguments = [a for a in argv if a not in options]
    if options and any(re.fullmatch("--cfg.*|-c", argument) for argument in arguments):
        raise UserError(
            f"--cfg shows one configuration, and {options[0]} composes several. Leave one of both out."
        )
    for argument in arguments:
        key, _, value = argument.partition("=")
        inside = parsed(argument) if re.search(r"\{|\.extra|\.options", argument) else ()
        texts = [text for each in inside for text in servers.texts_in(each, key)]
        servers.refuse_secret([*texts, (key.partition(".extra.")[0], value)])
        spelling.validate_argument(argument)
    line = [f"++{a}" if FREE.match(a) else a for a in arguments]
    typed_values = spelling.typed_values(argv)
    typed = {key: value for key, value in typed_values.items() if value != "null"}
    path, random = "model.path" in typed, any(key.startswith("model.random_init") for key in typed)
    implied = []
    if "model" not in typed and (path or random):
        implied.append("model=tiny" if random else "model.random_init=null")
    if typed.get("label") == "dataset" and "pairs" not in typed:
        implied.append("pairs=all")
    if typed.get("label") == "dataset" and typed.keys().isdisjoint(("data", "recipe")):
        implied.append("data=demonstrations")  # the verdict is about the preferences alone
    implied += recipes.recipe_override(typed_values)
    added = [each for each in [*implied, *unlogged_overrides(argv)] if each not in line]
    place = next(
        (i for i, argument in enumerate(line) if i and argument.startswith("-")), len(line)
    )
    # overrides stand together, before or behind an option
    return [*options, *line[:place], *added, *line[place:]]


def parsed(argument: str) -> Iterator[Any]:
    """Yield the values of an argument, which are several in a sweep. Hydra will refuse one that it cannot read."""
    with suppress(HydraException):
        override = OverridesParser.create().parse_override(argument)
        if not override.is_discrete_sweep():
            yield override.value()
            return
        for value in override.sweep_string_iterator():
            yield from parsed(f"{override.key_or_group}={value}")


def unlogged_overrides(argv: list[str]) -> list[str]:
    """Return the overrides that turn off Hydra's folder and log file for a read-only store; none for a sweep."""
    typed = spelling.typed_values(argv).get("outputs", "").strip("'\"")
    root = Path(typed or os.environ.get(OUTPUTS, "outputs"))
    if Store(root).is_writable or not spelling.MULTIRUN.isdisjoint(argv):
        return []
    logs = ["~hydra.job_logging.handlers.file", "hydra.job_logging.root.handlers=[console]"]
    return ["hydra.run.dir=.", "hydra.output_subdir=null", *logs]


def set_cache_folders(root: Path) -> None:
    """Put the caches of libraries under the store. Downloaded models stay in the hub's shared cache."""
    cache = (root / "cache").resolve()
    for variable, name in CACHES.items():
        os.environ.setdefault(variable, str(cache / name))


def prepare(
    composed: DictConfig, overrides: Sequence[str] | None = None
) -> tuple[Config, Store, dict[str, Node]]:
    """Return a composed configuration as a checked Config, its artifact store, and its nodes by name. `overrides`: the
    overrides of this job, if Hydra does not run it yet.
    Raise UserError for settings that are missing or unknown, or cannot work."""
    process.prepare()  # a sweep may run each job in a separate process
    try:
        refuse_unknown_keys(composed)
        cfg: Config = OmegaConf.to_object(composed)  # type: ignore[assignment]
    except (MissingMandatoryValue, InterpolationToMissingValueError) as error:
        missing = min(OmegaConf.missing_keys(composed))
        raise UserError(f"{missing} is required and has no value. Set {missing}=VALUE.") from error
    set_cache_folders(Path(cfg.outputs))
    if HydraConfig.initialized():
        hydra = HydraConfig.get()
        require_typed_code(cfg, list(hydra.overrides.task), hydra.sweeper.get("params") or {})
        overrides = overrides or hydra.overrides.task
    if overrides is not None:
        fit_micro_batches(cfg, spelling.typed_values([*overrides]))
    servers.fill_prices(cfg)
    constraints.validate_config(cfg)
    typed_arguments = process.read_typed_arguments()
    unread.refuse_unread(cfg, typed_arguments)
    starting_values.warn_of_rates(cfg, typed_in_job(overrides or []))
    machine.plan_for(cfg.planned_gpu)
    resolve_precision(cfg)
    resolve_template(cfg)
    mirror = Mirror(cfg.store.remote, Path(cfg.outputs)) if cfg.store.remote else None
    store = Store(Path(cfg.outputs), cfg.rebuild, os.environ.get("PLUMBLINE_COMMAND"), mirror)
    return (
        cfg,
        store,
        checked_graph(cfg, store) if needs_graph(cfg.stage, typed_arguments) else {},
    )


def typed_in_job(overrides: Sequence[str]) -> dict[str, str]:
    """Return the typed keys and groups, each with the value that it has in the job with these overrides."""
    typed = spelling.typed_values(process.read_typed_arguments())
    of_job = spelling.typed_values([*overrides])
    return {key: of_job.get(key, value) for key, value in typed.items()}


def checked_graph(cfg: Config, store: Store) -> dict[str, Node]:
    """Return the nodes of a configuration, after checking that they can be built on this machine.
    Raise UserError for all missing files, and for everything that building the nodes would fail on."""
    if machine.planned_gpu.get():  # a plan for another machine looks for nothing on this one
        return wire_graph(cfg, store.digest_cache, lambda block, cache: (block, {}))
    errors, nodes = Errors(), dict[str, Node]()

    def pin(block: Any, cache: Path) -> tuple[Any, dict[str, str]]:
        with errors:
            return source_files.pin(block, cache)
        return block, {}

    with errors:
        nodes = wire_graph(cfg, store.digest_cache, pin, is_built=store.is_built)
        building.require_buildable(cfg, nodes, store)
    errors.raise_all()
    return nodes


def needs_graph(stage: str, typed: list[str]) -> bool:
    """Return whether a command needs the nodes of its configuration. Commands that read the whole store do not; chat,
    export and gate only do if typed settings select a run: a dataset of the last run may have another threshold."""
    if stage in (Command.chat, Command.export, Command.gate):
        keys = {
            re.split("[./]", key)[0]
            for key in spelling.typed_values(typed)
            if key != "unpaired.threshold"
        }
        return not keys.issubset(
            [
                "stage",
                "outputs",
                "chat",
                "export",
                "gate",
                "tracker",
                "upstream",
                "store",
                "launch",
                "rebuild",
                "hydra",
            ]
        )
    return stage not in (
        Command.compare,
        Command.sync,
        Command.doctor,
        Command.gc,
        Command.convert,
        Command.context,
    )


def require_typed_code(cfg: Config, overrides: list[str], swept: Iterable[str]) -> None:
    """Require that only the command line names code to run: no recipe, no value that a recipe sweeps, and no override
    that a recipe adds. Raise UserError, naming the key that was set elsewhere."""
    for name, own in cfg.own_parts.items():
        pattern = re.compile(rf"\+*{name}\.own[.=]")
        lines = overrides, process.read_typed_arguments()
        applied, typed = (
            [argument for argument in line if pattern.match(argument)] for line in lines
        )
        hidden = any(pattern.match(f"{key}=") for key in swept)
        if not hidden and not applied and own == Own():
            continue  # skips the parser, which is slow to create
        composed = OmegaConf.structured(Own)
        with open_dict(composed):
            for override in OverridesParser.create().parse_overrides(applied):
                key = override.key_or_group.removeprefix(f"{name}.own").lstrip(".")
                if key:
                    OmegaConf.update(composed, key, override.value())
                else:
                    composed.merge_with(override.value())
        if hidden or len(applied) > len(typed) or OmegaConf.to_object(composed) != own:
            raise UserError(
                f"{name}.own runs code. Type it in the command: {name}.own={{file: FILE, name: NAME}}."
            )


def resolve_precision(cfg: Config) -> None:
    """Replace `precision=auto` by this machine's precision in every block, so that fingerprints name the real one."""
    precision = Precision.bf16 if machine.computes_bf16() else Precision.fp32
    blocks: list[Any] = [*vars(cfg).values()]
    for block in blocks:  # which grows by the blocks inside
        if is_dataclass(block):
            blocks += vars(block).values()
            if vars(block).get("precision") is Precision.auto:
                vars(block)["precision"] = precision


def resolve_template(cfg: Config) -> None:
    """Train the embedded model in ChatML unless a template is typed: its own writes a system turn with its name before
    every prompt without one. Every other model keeps its own."""
    if cfg.model.path == EMBEDDED and cfg.sft.train and cfg.sft.template.kind == "auto":
        settings = {key: value for key, value in vars(cfg.sft.template).items() if key != "kind"}
        cfg.sft.template = ChatML(**settings)


def fit_micro_batches(cfg: Config, typed: Mapping[str, str]) -> None:
    """Lower each micro-batch that is not typed to the largest size that divides the rows of a step."""
    for name, block in cfg.trained.items():
        key, runtime = f"{name}.runtime.micro_batch", block.runtime
        is_typed = any(
            key == k or ("micro_batch" in v and key.startswith(f"{k}.")) for k, v in typed.items()
        )
        if is_typed or type(runtime.micro_batch) is not int or runtime.world_size < 1:
            continue
        rows, remainder = divmod(block.batch_size, runtime.world_size)
        if not remainder:
            runtime.micro_batch = max(
                (n for n in range(1, runtime.micro_batch + 1) if rows % n == 0), default=1
            )


def refuse_unknown_keys(composed: DictConfig, prefix: str = "") -> None:
    """Refuse keys added with + or ++ that no dataclass has. Raise UserError, naming the key and the nearest one."""
    kind = OmegaConf.get_type(composed)
    field_names = [f.name for f in fields(kind)] if is_dataclass(kind) else None
    for key in composed:
        if field_names is not None and key not in field_names:
            raise UserError(unknown_setting_message(f"{prefix}{key!s}", kind))  # type: ignore[arg-type]  # a dataclass
        if OmegaConf.is_interpolation(composed, key):  # type: ignore[arg-type]  # any key
            continue
        if isinstance(value := composed[key], DictConfig):
            refuse_unknown_keys(value, f"{prefix}{key!s}.")
