"""Prepare the command line for Hydra, and turn a composed configuration into a checked Config, a store and a graph."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import (
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from stages.cli import recipes, spelling, typed_lists, value_types
from stages.cli.explain import unknown_key_message
from stages.cli.resolve import resolve
from stages.cli.settings import all_settings
from stages.cli.typed_line import MULTIRUN, TypedLine
from stages.commands.finished_run import is_about_last_run, selects_run
from stages.config.blocks.models import Own
from stages.config.command_record import Object
from stages.config.commands import commands_on
from stages.config.errors import Errors, UserError
from stages.config.installation import untyped_programs
from stages.config.limits import SEVERAL
from stages.config.schema import Config
from stages.hardware import machine, process
from stages.pipeline.graph import wire_graph, wire_unpinned
from stages.preflight import building, programs_and_servers, servers
from stages.preflight.programs_and_servers import Reach
from stages.store import source_files
from stages.store.mirror import Mirror
from stages.store.node import Node
from stages.store.sealed_json import OUTPUTS
from stages.store.store import Store

# Hydra cannot read it without quotes; a name in it may have spaces
HOME_PATH = re.compile(r"(?<=[=\[{,: ])~[\w.-]*/(?:[^,\]}'\"]*[^\s,\]}'\"])?")
# several texts, with or without brackets
TEXTS = re.compile(r"([\w.]+)=\[?([^\[\]{}()'\",]+(?:,[^\[\]{}()'\",]+)+)\]?")
# Commands about a finished run, which is the last one unless typed settings select another
COMMANDS_ON_FINISHED_RUN = commands_on(Object.model, Object.evaluation)
# Commands on results, which make no store
COMMANDS_ON_RESULTS = (*COMMANDS_ON_FINISHED_RUN, *commands_on(Object.store))
COMMANDS_WITHOUT_GRAPH = commands_on(Object.store, Object.nothing)
LAUNCHER = "hydra/launcher"  # Hydra's group
# Downloaded models stay in the hub's shared cache
LIBRARY_CACHES = {
    "HF_DATASETS_CACHE": "datasets",
    "HF_MODULES_CACHE": "modules",
}


def arguments_for_hydra(typed: TypedLine, implied: Mapping[str, str]) -> list[str]:
    """Return the command line as Hydra reads it: `-m` first, `++` before keys that mappings may add
    (`sft.trainer.extra.x`), and the values that the typed ones imply.
    Raise UserError for an argument that Hydra cannot read, or that holds a secret."""
    if os.environ.get(OUTPUTS) == "":  # otherwise Hydra writes to the root of the file system
        raise UserError(f"{OUTPUTS} is empty. Set it to a folder, or unset it.")
    readable = [with_readable_home(argument) for argument in typed.arguments]
    line = typed_lists.with_items_in_lists(readable)
    multirun = [argument for argument in line if argument in MULTIRUN]
    line = [argument for argument in line if argument not in multirun]
    if not multirun:
        line = [with_texts_as_one(argument) for argument in line]
    shows_configuration = any(re.fullmatch("--cfg.*|-c", argument) for argument in line)
    if multirun and shows_configuration:
        raise UserError(
            f"--cfg shows one configuration, and {multirun[0]} composes several. Leave out {multirun[0]}."
        )
    for argument in line:
        refuse_secret(argument)
        spelling.validate_argument(argument)
        validate_value(argument)
    line = [f"++{argument}" if spelling.may_add_keys(argument) else argument for argument in line]
    added = [f"{key}={value}" for key, value in implied.items()]
    added += overrides_without_hydra_files(typed)
    added = [override for override in added if override not in line]
    place = place_of_first_option(line)
    # overrides stand together, before or behind an option such as `--cfg job`
    return [*multirun, *line[:place], *added, *line[place:]]


def with_readable_home(argument: str) -> str:
    """Return an argument with paths in the home folder as Hydra reads them: `outputs` whole, others in quotes."""
    with_whole_outputs = re.sub(r"^(outputs=['\"]?)~(?=/)", rf"\1{Path.home()}", argument)
    return HOME_PATH.sub(r'"\g<0>"', with_whole_outputs)


def with_texts_as_one(argument: str) -> str:
    """Return an argument with several texts as one, if its key takes several. Hydra would take them for a sweep."""
    match = TEXTS.fullmatch(argument)
    setting = all_settings().get(match[1]) if match else None
    if match is None or setting is None or SEVERAL not in setting.field.metadata:
        return argument
    return f"{match[1]}='{match[2]}'"


def refuse_secret(argument: str) -> None:
    """Raise UserError if the value of an argument, or a text in it, is a key or a password."""
    key, _, value = argument.partition("=")
    texts = [(key.partition(".extra.")[0], value)]
    may_hold_texts = re.search(r"\{|\.extra|\.options", argument)
    if may_hold_texts:
        for parsed in parsed_values(argument):
            texts += servers.nested_texts(parsed, key)
    servers.refuse_secret(texts)


def validate_value(argument: str) -> None:
    """Raise UserError for a value that OmegaConf would convert to another one."""
    key, _, value = argument.lstrip("+").partition("=")
    value_types.validate_spelling(key, value)
    for parsed in parsed_values(argument):
        value_types.validate_types(key, parsed)


def place_of_first_option(line: list[str]) -> int:
    """Return the place of the first option behind another word, or the length of the line."""
    for place, argument in enumerate(line):
        is_option = argument.startswith("-")
        if place > 0 and is_option:
            return place
    return len(line)


def implied_values(typed: TypedLine) -> dict[str, str]:
    """Return the keys and groups that typed arguments imply, with their values: `model.path` replaces random weights,
    `model.random_init` replaces a path, `label=dataset` adds `pairs=all` and leaves generated tests out, and another
    recipe may replace the default one."""
    values = {key: value for key, value in typed.values.items() if value != "null"}
    implied: dict[str, str] = {}
    if "model" not in values:
        if any(key.startswith("model.random_init") for key in values):
            implied["model"] = "tiny"  # in place of a path
        elif "model.path" in values:
            implied["model.random_init"] = "null"
    if values.get("label") == "dataset" and "pairs" not in values:
        implied["pairs"] = "all"
    if values.get("label") == "dataset" and values.keys().isdisjoint(("data", "recipe")):
        implied["data"] = "demonstrations"  # no generated tests: the preferences alone decide
    recipe = recipes.recipe_in_place_of_default(typed.values)
    if recipe:
        implied["recipe"] = recipe
    return implied


def parsed_values(argument: str) -> Iterator[Any]:
    """Yield the values of an argument: several in a sweep, and none if Hydra cannot read it."""
    with suppress(HydraException):  # Hydra itself will refuse the argument
        override = OverridesParser.create().parse_override(argument)
        if not override.is_discrete_sweep():
            yield override.value()
            return
        for value in override.sweep_string_iterator():
            yield from parsed_values(f"{override.key_or_group}={value}")


def overrides_without_hydra_files(typed: TypedLine) -> list[str]:
    """Return the overrides that turn off Hydra's folder and log file for a read-only store, and for a store that does
    not exist and is to be read; none for a sweep."""
    root = Path(spelling.store_folder(typed.values))
    is_missing = typed.values.get("stage") in COMMANDS_ON_RESULTS and not root.exists()
    if typed.is_sweep or (Store(root).is_writable and not is_missing):
        return []
    no_log = ["~hydra.job_logging.handlers.file", "hydra.job_logging.root.handlers=[console]"]
    return ["hydra.run.dir=.", "hydra.output_subdir=null", *no_log]


def set_cache_folders(store_root: Path) -> None:
    """Put the caches of libraries under the store."""
    cache = (store_root / "cache").resolve()
    for variable, name in LIBRARY_CACHES.items():
        os.environ.setdefault(variable, str(cache / name))


def prepare(
    composed: DictConfig, typed: Mapping[str, str]
) -> tuple[Config, Store, dict[str, Node]]:
    """Return a composed configuration as a checked Config, its artifact store, and its nodes by name. `typed`: the typed
    keys and groups, with their values in this job.
    Raise UserError for settings that are missing or unknown, or cannot work."""
    # a sweep may run each job in a separate process
    process.prepare()
    recipes.register_schema()
    try:
        refuse_unknown_keys(composed)
        cfg: Config = OmegaConf.to_object(composed)  # type: ignore[assignment]
    except (MissingMandatoryValue, InterpolationToMissingValueError) as error:
        missing = min(OmegaConf.missing_keys(composed))
        raise UserError(f"{missing} is required and has no value. Set {missing}=VALUE.") from error
    set_cache_folders(Path(cfg.outputs))
    require_typed_code(cfg, typed)
    resolve(cfg, typed)
    mirror = Mirror(cfg.store.remote, Path(cfg.outputs)) if cfg.store.remote else None
    store = Store(Path(cfg.outputs), cfg.rebuild, os.environ.get("PLUMBLINE_COMMAND"), mirror)
    is_pulled = cfg.stage in COMMANDS_ON_FINISHED_RUN and mirror is not None
    if cfg.stage in COMMANDS_ON_RESULTS and not is_pulled:
        require_folder(store.root)
    if not needs_graph(cfg.stage, typed) or is_about_last_run(cfg.stage, typed, store):
        return cfg, store, {}
    return checked_run(cfg, store)


def untyped_reaches(composed: DictConfig, typed: Mapping[str, str]) -> list[Reach]:
    """Return the settings that name a program, code or a server, and that nobody typed. From here on, a plan runs no
    such program."""
    as_written = OmegaConf.to_container(composed, resolve=False)
    values = as_written
    with suppress(OmegaConfBaseException):  # `prepare` will refuse it
        values = OmegaConf.to_container(composed, resolve=True)
    reaches = programs_and_servers.untyped_reaches(values, as_written, typed)
    reaches += untyped_launcher(typed)
    is_plan = composed.stage == "plan"
    programs = [reach.value for reach in reaches if is_plan and reach.is_program]
    untyped_programs.set(frozenset(programs))
    return reaches


def require_folder(root: Path) -> None:
    """Raise UserError if a store whose results are to be read does not exist."""
    if not root.exists():
        raise UserError(
            f"outputs={root} does not exist, so nothing was built there. Correct the path, or build something first."
        )
    if not root.is_dir():
        raise UserError(f"outputs={root} is a file, and a store is a folder. Correct the path.")


def untyped_launcher(typed: Mapping[str, str]) -> list[Reach]:
    """Return the launcher of a sweep's jobs, if it is not Hydra's own and nobody typed it."""
    if not HydraConfig.initialized():
        return []
    launcher = HydraConfig.get().runtime.choices.get(LAUNCHER)
    if launcher in (None, "basic") or LAUNCHER in typed:
        return []
    return [Reach("a launcher of jobs", f"{LAUNCHER}={launcher}")]


def checked_graph(cfg: Config, store: Store) -> dict[str, Node]:
    """Return the nodes of a configuration, after checking that they can be built on this machine.
    Raise UserError for all missing files, and for everything that building the nodes would fail on."""
    if machine.planned_gpu.get():  # a plan for another machine looks for nothing on this one
        return wire_unpinned(cfg)
    errors, nodes = Errors(), dict[str, Node]()

    def pin_or_note_error(block: Any, cache: Path) -> tuple[Any, dict[str, str]]:
        with errors:
            return source_files.pin(block, cache)
        return block, {}

    with errors:
        nodes = wire_graph(cfg, store.digest_cache, pin_or_note_error, is_built=store.is_built)
        building.require_buildable(cfg, nodes, store)
    errors.raise_all()
    return nodes


def checked_run(cfg: Config, store: Store) -> tuple[Config, Store, dict[str, Node]]:
    """Return what `prepare` does. If the models of a run cannot be used, an extra may have nodes that stand alone. Raise
    UserError if not even these can be built."""
    try:
        return cfg, store, checked_graph(cfg, store)
    except UserError as error:
        alone = cfg.alone_after(error)
        if alone is None:
            raise
        try:
            return alone, store, checked_graph(alone, store)
        except UserError:
            raise error from None


def needs_graph(stage: str, typed: Iterable[str]) -> bool:
    """Return whether a command needs the nodes of its configuration. Commands that read the whole store do not; chat,
    export and gate only do if typed keys select a run."""
    if stage not in COMMANDS_ON_FINISHED_RUN:
        return stage not in COMMANDS_WITHOUT_GRAPH
    return selects_run(typed)


def require_typed_code(cfg: Config, typed: Mapping[str, str]) -> None:
    """Require that only the command line names code to run, and no recipe. Raise UserError, naming the block."""
    for name, code in cfg.own_parts.items():
        # as texts, since an option may be NaN, which equals nothing
        if str(code) not in (str(Own()), str(typed_code(f"{name}.own", typed))):
            way_out = f"Type it in the command: {name}.own={{file: FILE, name: NAME}}"
            raise UserError(f"{name}.own runs code. {way_out}.")


def typed_code(block: str, typed: Mapping[str, str]) -> Any:
    """Return the user's code of a block as the typed arguments alone name it."""
    arguments = [f"{key}={value}" for key, value in typed.items() if spelling.is_inside(key, block)]
    composed = OmegaConf.structured({"own": Own})
    with open_dict(composed):
        for override in OverridesParser.create().parse_overrides(arguments):
            key = override.key_or_group.replace(block, "own", 1)
            OmegaConf.update(composed, key, override.value())
    return OmegaConf.to_object(composed.own)


def refuse_unknown_keys(composed: DictConfig, prefix: str = "") -> None:
    """Raise UserError for a key that its block's dataclass does not have, naming the key and the nearest one."""
    kind = OmegaConf.get_type(composed)
    field_names = [f.name for f in fields(kind)] if is_dataclass(kind) else None
    for key in composed:
        if field_names is not None and key not in field_names:
            raise UserError(unknown_key_message(f"{prefix}{key!s}", kind))  # type: ignore[arg-type]  # a dataclass
        if OmegaConf.is_interpolation(composed, key):  # type: ignore[arg-type]  # any key
            continue
        value = composed[key]
        if isinstance(value, DictConfig):
            refuse_unknown_keys(value, f"{prefix}{key!s}.")
