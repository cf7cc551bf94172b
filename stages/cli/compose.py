"""Around Hydra: what the command line may look like, and what a composed configuration says."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from stages.cli import recipes, spelling, unread
from stages.cli.explain import no_setting
from stages.config.blocks.models import Own
from stages.config.blocks.training import OBJECTIVES
from stages.config.choices import Command, Precision
from stages.config.errors import Errors, UserError
from stages.config.schema import Config
from stages.hardware import machine, process
from stages.pipeline.graph import graph
from stages.preflight import building, constraints, servers
from stages.store import source_files
from stages.store.node import Node
from stages.store.sealed_json import OUTPUTS
from stages.store.store import Store

FREE = re.compile(rf"({spelling.FREE})=")


def normalise(argv: list[str]) -> list[str]:
    """`-m` may stand anywhere; dicts of any keys need no plus sign: TRL's arguments (`sft.trainer.weight_decay=0.1`),
    the options of one's own parts. A path that is typed takes the place of random weights, and the other way round.
    With preferences of a file all of them become pairs, where nothing else is said of pairs.

    Raises:
        UserError: for an argument that Hydra cannot take.
    """
    if os.environ.get(OUTPUTS) == "":  # Hydra would begin to write at the root of the file system
        raise UserError(f"{OUTPUTS} names no folder: set it to one, or unset it.")
    options = [a for a in argv if a in ("-m", "--multirun")]
    given = [a for a in argv if a not in options]
    for argument in given:
        spelling.refuse(argument)
    rest = [f"++{a}" if FREE.match(a) else a for a in given]
    typed = {key: value for key, value in recipes.overrides(argv).items() if value != "null"}
    path, random = "model.path" in typed, any(key.startswith("model.random_init") for key in typed)
    follows = []
    if "model" not in typed and (path or random):
        follows.append("model=tiny" if random else "model.random_init=null")
    if typed.get("label") == "dataset" and "pairs" not in typed:
        follows.append("pairs=all")
    return options + rest + [each for each in [*follows, *unlogged(argv)] if each not in rest]


def unlogged(argv: list[str]) -> list[str]:
    """Return the overrides that keep Hydra from writing to a store that may only be read, as another user's: no folder
    and no log of this command. A sweep needs both."""
    typed = recipes.overrides(argv).get("outputs", "").strip("'\"")
    root = Path(typed or os.environ.get(OUTPUTS, "outputs"))
    if Store(root).writable or {"-m", "--multirun"} & {*argv}:
        return []
    logs = ["~hydra.job_logging.handlers.file", "hydra.job_logging.root.handlers=[console]"]
    return ["hydra.run.dir=.", "hydra.output_subdir=null", *logs]


def caches(root: Path) -> None:
    """Keep the libraries' own files under the store. Downloaded models stay in the hub's shared cache."""
    cache = (root / "cache").resolve()
    for variable, name in {
        "HF_DATASETS_CACHE": "datasets",
        "HF_MODULES_CACHE": "modules",
        "MPLCONFIGDIR": "matplotlib",
        "TRACKIO_DIR": "trackio",
    }.items():
        os.environ.setdefault(variable, str(cache / name))


def prepare(composed: DictConfig, overrides: Sequence[str] | None = None) -> tuple[Config, Store, dict[str, Node]]:
    """What a composed configuration says: typed and checked, with its artifact store, and as a graph.

    Args:
        overrides: those of this job, before Hydra runs it and says so itself.

    Raises:
        UserError: for what is missing, unknown or cannot work.
    """
    process.prepare()  # a job of a sweep may be a process of its own
    if missing := sorted(OmegaConf.missing_keys(composed)):
        raise UserError(f"{missing[0]} is required and has no value.")
    unknown_keys(composed)
    cfg: Config = OmegaConf.to_object(composed)  # type: ignore[assignment]
    caches(Path(cfg.outputs))
    if HydraConfig.initialized():
        hydra = HydraConfig.get()
        own_parts(cfg, list(hydra.overrides.task), hydra.sweeper.get("params") or {})
        overrides = overrides or hydra.overrides.task
    if overrides is not None:
        fit_micro_batches(cfg, recipes.overrides([*overrides]))
    servers.priced(cfg)
    constraints.refuse(cfg)
    unread.refuse(cfg, process.typed())
    resolve_precision(cfg)
    store = Store(Path(cfg.outputs), cfg.rebuild, os.environ.get("PLUMBLINE_COMMAND"))
    return cfg, store, looked_at(cfg, store) if needs_graph(cfg.stage, process.typed()) else {}


def looked_at(cfg: Config, store: Store) -> dict[str, Node]:
    """The graph of a configuration of which nothing lacks on this machine.

    Raises:
        UserError: for every file that is not there, and for what building the nodes would fail on.
    """
    errors, nodes = Errors(), dict[str, Node]()

    def pin(block: Any, cache: Path) -> tuple[Any, dict[str, str]]:
        with errors:
            return source_files.pin(block, cache)
        return block, {}

    with errors:
        nodes = graph(cfg, store.remembered, pin, built=lambda node: store.find(node) is not None)
        building.refuse(cfg, nodes, store)
    errors.refuse()
    return nodes


def needs_graph(stage: str, typed: list[str]) -> bool:
    """Return whether a command is about the nodes of a configuration: those that look at the store are not, nor those
    that use a finished run, unless settings are typed that say of which."""
    if stage in (Command.chat, Command.export):
        keys = {key.partition(".")[0] for key in recipes.overrides(typed)}
        return bool(keys - {"stage", "outputs", "chat", "export", "tracker", "upstream", "hydra"})
    return stage not in (Command.compare, Command.sync, Command.doctor, Command.gc)


def own_parts(cfg: Config, overrides: list[str], swept: Iterable[str]) -> None:
    """Only the command line may name code to be run: a recipe that came with a model, or what it sweeps, must not, nor
    may it slip overrides of its own among the typed ones.

    Raises:
        UserError: naming the key that was set elsewhere.
    """
    for name, own in cfg.own_parts.items():
        mine = re.compile(rf"\+*{name}\.own[.=]")
        given, typed = ([o for o in told if mine.match(o)] for told in (overrides, process.typed()))
        hidden = any(mine.match(f"{key}=") for key in swept)
        if not hidden and not given and own == Own():
            continue  # as nearly always: a parser is not made for nothing
        said = OmegaConf.structured(Own)
        with open_dict(said):
            for override in OverridesParser.create().parse_overrides(given):
                key = override.key_or_group.removeprefix(f"{name}.own").lstrip(".")
                if key:
                    OmegaConf.update(said, key, override.value())
                else:
                    said.merge_with(override.value())
        if hidden or len(given) > len(typed) or OmegaConf.to_object(said) != own:
            raise UserError(
                f"{name}.own runs code, so only the command line may set it: {name}.own={{file: FILE, name: NAME}}."
            )


def resolve_precision(cfg: Config) -> None:
    """Put what `auto` means here into every block: the fingerprint names the arithmetic, not the wish."""
    here = Precision.bf16 if machine.computes_bf16() else Precision.fp32
    scoring = (cfg.sample, *(label.reward_model for label in (cfg.label, cfg.eval.judged)), cfg.reference)
    scoring += (cfg.answer, cfg.eval, cfg.chat)
    for block in (*(vars(cfg)[name] for name in OBJECTIVES), *scoring):
        if block.precision is Precision.auto:
            block.precision = here


def fit_micro_batches(cfg: Config, typed: Mapping[str, str]) -> None:
    """Lower a recipe's micro-batch, where none is typed, to the most rows that divide those of a step."""
    for name, block in cfg.trained.items():
        key, runtime = f"{name}.runtime.micro_batch", block.runtime
        is_typed = any(
            key == each or ("micro_batch" in value and key.startswith(f"{each}.")) for each, value in typed.items()
        )
        if is_typed or type(runtime.micro_batch) is not int or runtime.world_size < 1:
            continue
        rows, rest = divmod(block.batch_size, runtime.world_size)
        if not rest:
            runtime.micro_batch = max((n for n in range(1, runtime.micro_batch + 1) if rows % n == 0), default=1)


def unknown_keys(composed: DictConfig, prefix: str = "") -> None:
    """Refuse keys that were added with + or ++ and that no dataclass has: they would be ignored.

    Raises:
        UserError: naming the key and the nearest that exists.
    """
    kind = OmegaConf.get_type(composed)
    known = [f.name for f in fields(kind)] if is_dataclass(kind) else None
    for key in composed:
        if known is not None and key not in known:
            raise UserError(no_setting(f"{prefix}{key!s}", kind))  # type: ignore[arg-type]  # a dataclass
        if OmegaConf.is_interpolation(composed, key):  # type: ignore[arg-type]  # any key
            continue
        if isinstance(value := composed[key], DictConfig):
            unknown_keys(value, f"{prefix}{key!s}.")


def register(line: list[str]) -> None:
    """Tell Hydra the schema, and the recipes (`recipe=NAME` is `recipes/NAME.yaml`, composed after the groups) as they
    are under this command line."""
    # OmegaConf derives its loader from this one: with libyaml's parser it reads conf/ and recipes/ much faster.
    yaml.SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    # Hydra copies the whole store for every group that --help lists: seconds, for a singleton that it never changes.
    ConfigStore.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]
    ConfigStore.instance().store(name="schema", node=Config)
    recipes.register(line)
