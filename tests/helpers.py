"""Helpers that tests share: composing the configuration, building in this process or as a command, reading nodes."""

import io
import json
import logging
import os
import pickle
import re
import runpy
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractContextManager,
    chdir,
    contextmanager,
    redirect_stderr,
    redirect_stdout,
)
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest import mock

import hydra
import pytest
from filelock import FileLock
from hydra import initialize_config_dir
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository, IConfigRepository
from hydra._internal.defaults_list import DefaultsList, Overrides, create_defaults_list
from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigStore
from hydra.core.default_element import ResultDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.singleton import Singleton
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf

from stages.cli import compose, main, recipes, unread
from stages.cli.explain import explain
from stages.cli.resolve import lower_to_maxima
from stages.cli.typed_line import read_line, read_values
from stages.config.blocks.processes import TRACKERS
from stages.config.choices import Align
from stages.config.errors import UserError
from stages.config.installation import ROOT, install_command
from stages.config.schema import Config
from stages.pipeline import build as building
from stages.pipeline.graph import wire_graph
from stages.store.manifest import digest_of
from stages.store.node import Node
from stages.store.sealed_json import OUTPUTS, file_digest
from stages.store.store import Store
from tests.browser import FITS, browser

DATA = ROOT.parent / "shared" / "data"
recipes.register({})
INSTALLED = [name for name in TRACKERS if find_spec(name)]  # trackers
SECRET = "0123456789abcdef" * 2 + "01234567"
TINY = ("recipe=tiny", "tracker=none")
# bitsandbytes is heavy, is not part of `dev`, and makes every process that loads peft a second slower.
NEEDS_4_BIT = (
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("bitsandbytes") is None, reason=f"needs {install_command('qlora')}"
    ),
)
QLORA = pytest.param("qlora", marks=NEEDS_4_BIT)


def slow_but(values: Iterable[str], *quick: str) -> list[Any]:
    """Return a test's cases; all but the quick ones are for the long tests."""
    return [
        value if value in quick else pytest.param(value, marks=pytest.mark.slow) for value in values
    ]


def extended_but(values: Iterable[str], *quick: str) -> list[Any]:
    """Return a test's cases; all except the quick ones are for `make test-all`."""
    return [
        value if value in quick else pytest.param(value, marks=pytest.mark.extended)
        for value in values
    ]


def needing(extra: str, *values: Any) -> Any:
    """Return a test's case that is skipped where this extra was removed."""
    return pytest.param(*values, marks=pytest.mark.extra(extra))


def composed_by_hydra(*line: str) -> DictConfig:
    """Compose with Hydra."""
    GlobalHydra.instance().clear()
    recipes.register(read_values(line))
    initialized = initialize_config_dir(str(ROOT / "conf"), version_base="1.3")
    with initialized, few_compositions():
        return hydra.compose("config", overrides=list(line))


# Compositions are kept as pickles. As an object, each has 6,000 parts, which slow down every run of the garbage
# collector, and its copy takes seven times as long.
@cache
def pickled_by_hydra(*line: str) -> bytes:
    return pickle.dumps(composed_by_hydra(*line))


# Overrides that decide which files are composed, or what recipes say: groups, recipes, a recipe's file, Hydra's keys
DECISIVE = re.compile(
    rf"~|\+(?!\+)|({'|'.join(path.stem for path in (ROOT / 'conf').iterdir())}|recipe)="
    r"|(eval/\w+=)|(\+\+)?hydra|data\.path="
)


def for_hydra(*arguments: str) -> list[str]:
    """Return a command line as Hydra reads it."""
    typed = read_line(arguments)
    return compose.arguments_for_hydra(typed, compose.implied_values(typed))


@cache
def pickled(*overrides: str) -> bytes:
    """Compose these overrides. Plain keys are set afterwards as Hydra does, so that compositions can be cached."""
    line = for_hydra(*overrides)
    decisive = [override for override in line if DECISIVE.match(override)]
    plain = [override for override in line if not DECISIVE.match(override)]
    try:
        cfg = pickle.loads(pickled_by_hydra(*decisive))
        for override in OverridesParser.create().parse_overrides(plain):
            key, value = override.get_key_element().lstrip("+"), override.value()
            OmegaConf.update(cfg, key, value, merge=True, force_add=override.is_force_add())
        return pickle.dumps(cfg)
    except Exception:  # Hydra then raises its usual error
        return pickled_by_hydra(*line)


@cache
def pickled_settings(outputs: str | None, *overrides: str) -> bytes:
    """Compose with `outputs` in the environment, which the settings name."""
    return pickle.dumps(OmegaConf.to_object(composed(*overrides)))


def forget_compositions() -> None:
    """Clear the cached compositions, since the recipes or the machine have changed."""
    for cached in (pickled_by_hydra, pickled, pickled_settings):
        cached.cache_clear()


def composed(*overrides: str) -> DictConfig:
    """Return the configuration that Hydra composes of these overrides."""
    return pickle.loads(pickled(*overrides))


def settings_by_key(cfg: DictConfig, resolve: bool = True) -> dict[str, Any]:
    """Return the values of a configuration by their dotted keys."""
    values, waiting = (
        dict[str, Any](),
        [("", OmegaConf.to_container(cfg, resolve=resolve, enum_to_str=True))],
    )
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict) and value:
            waiting += [(f"{key}.{name}" if key else str(name), v) for name, v in value.items()]
        else:
            values[key] = value
    return values


def settings(*overrides: str) -> Config:
    """Return the typed configuration of these overrides."""
    return pickle.loads(pickled_settings(os.environ.get(OUTPUTS), *overrides))


def as_typed(*overrides: str) -> AbstractContextManager[None]:
    """Make these overrides the command line of this process."""
    return mock.patch.dict(os.environ, PLUMBLINE_TYPED=json.dumps(overrides))


def build(root: Path, *overrides: str) -> None:
    """Build the tiny chain's target in this process."""
    cfg = composed(*TINY, *overrides)
    cfg.outputs = str(root)
    with as_typed(*TINY, *overrides):
        main.run(cfg)


def build_node(root: Path, name: str, *overrides: str) -> None:
    """Build one node of the tiny chain in this process, and what it needs. Some nodes are no target by themselves."""
    cfg = replace(settings(*TINY, *overrides), outputs=str(root))
    building.build([nodes(root, *overrides)[name]], Store(root), cfg, [*TINY, *overrides])


@dataclass(frozen=True)
class Refusal:
    """What a command was refused with."""

    arguments: tuple[str, ...]
    message: str
    exit_code: int


# of the test that runs; tests/goldens/refusals.py compares them with their record
refusals: list[Refusal] = []


def note_refusal(ran: subprocess.CompletedProcess[str], arguments: tuple[str, ...]) -> None:
    """Note what a command that has failed wrote last."""
    lines = (ran.stderr or "").strip().splitlines() or [""]
    if ran.returncode > 0:
        refusals.append(Refusal(arguments, lines[-1], ran.returncode))


def refused(*overrides: str) -> str:
    """Return the one line of the error with which `run.py` refuses these overrides."""
    try:
        with as_typed(*overrides):
            main.run(composed(*overrides))
    except Exception as error:
        if (line := explain(error)) is None:
            raise
        assert "\n" not in line
        refusals.append(Refusal(overrides, line, 1))
        return line
    raise AssertionError(f"{' '.join(overrides)} is not refused")


def refuse_unread(
    cfg: Config, typed: Sequence[str], interpolated: Mapping[str, list[str]] = MappingProxyType({})
) -> None:
    """Raise UserError for typed arguments that nothing in the run reads."""
    nodes = {}
    # the models of an examination may not be here
    values = read_values(typed)
    if compose.needs_graph(cfg.stage, values) and cfg.align is not Align.given:
        nodes = wire_graph(cfg, Path(), lambda block, cache: (block, {}))
    messages = unread.unread_messages(cfg, nodes, values, interpolated)
    if messages:
        raise UserError(*messages)


def nodes(root: Path, *overrides: str) -> dict[str, Node]:
    """Return the nodes of the tiny chain with these overrides, by name."""
    cfg = replace(settings(*TINY, *overrides), outputs=str(root))
    lower_to_maxima(cfg, read_values([*TINY, *overrides]))
    return wire_graph(cfg, root / "cache" / "digests.json")


def command(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `python run.py …` in a new process."""
    options = {"capture_output": True, "text": True, "cwd": ROOT, "timeout": 300} | options
    ran = subprocess.run([sys.executable, str(ROOT / "run.py"), *arguments], check=False, **options)
    note_refusal(ran, arguments)
    return ran


def stand_in(script: Path, program: Path) -> Path:
    """Write a program that stands for another Python: it runs the script with its arguments."""
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
    program.chmod(0o755)
    return program


def sets_hydra(group: dict[str, Any]) -> bool:
    """Return whether a recipe of this group of Hydra's store has keys of Hydra's own."""
    return any(
        sets_hydra(each) if isinstance(each, dict) else "hydra" in each.node
        for each in group.values()
    )


@contextmanager
def few_compositions() -> Iterator[None]:
    """Spare Hydra what it has composed before in this process. It looks for `hydra.mode` in one composition, and
    composes a job of a sweep three times. It copies its store for each, and then the parts that it takes out of it."""
    with (
        mock.patch.object(Hydra, "get_mode", quick_mode),
        mock.patch.object(ConfigStore, "__deepcopy__", uncopied, create=True),
        mock.patch.object(ConfigRepository, "load_config", read_once),
        mock.patch.object(config_loader_impl, "create_defaults_list", defaults_once),
        mock.patch.object(ConfigLoaderImpl, "_compose_config_from_defaults_list", composed_once),
    ):
        yield


mode_of = Hydra.get_mode
read_config = ConfigRepository.load_config
compose_defaults = ConfigLoaderImpl._compose_config_from_defaults_list
configs_by_path = dict[tuple[str, ...], bytes]()
defaults_by_choices = dict[tuple[Any, ...], DefaultsList]()
compositions_by_defaults = dict[tuple[Any, ...], bytes]()


def quick_mode(hydra: Hydra, config_name: str | None, overrides: list[str]) -> Any:
    may_be_set = any("hydra" in each for each in overrides) or sets_hydra(
        ConfigStore.instance().repo["recipe"]
    )
    return mode_of(hydra, config_name, overrides) if may_be_set else None


def uncopied(store: ConfigStore, _: dict[int, Any]) -> ConfigStore:
    return store


def read_once(repo: ConfigRepository, config_path: str) -> ConfigResult | None:
    """Return the content of a file or a class. Recipes are registered anew for each command."""
    if config_path.startswith("recipe/"):
        return read_config(repo, config_path)
    key = (*folders_of(repo), config_path)
    if key not in configs_by_path:
        configs_by_path[key] = pickle.dumps(read_config(repo, config_path))
    return pickle.loads(configs_by_path[key])


def defaults_once(
    repo: IConfigRepository, config_name: str, overrides_list: list[Override], **options: bool
) -> DefaultsList:
    """Return Hydra's list of what to compose. It depends on the chosen options of groups; other keys are set later."""
    overrides = Overrides(repo, overrides_list)
    choices = [each for each in overrides_list if each not in overrides.config_overrides]
    lines = [each.input_line for each in choices]
    key = (*sources_of(repo), config_name, *lines, *options.values())
    if key not in defaults_by_choices:
        defaults = create_defaults_list(repo, config_name, overrides_list, **options)
        defaults_by_choices[key] = defaults
    kept = defaults_by_choices[key]
    overrides.known_choices = kept.overrides.known_choices
    return replace(kept, config_overrides=overrides.config_overrides, overrides=overrides)


def composed_once(
    loader: ConfigLoaderImpl, defaults: list[ResultDefault], repo: IConfigRepository
) -> DictConfig:
    """Return what Hydra composes of a list of defaults, before it sets other keys."""
    key = (*sources_of(repo), *map(repr, defaults))
    if key not in compositions_by_defaults:
        compositions_by_defaults[key] = pickle.dumps(compose_defaults(loader, defaults, repo))
    return pickle.loads(compositions_by_defaults[key])


def sources_of(repo: IConfigRepository) -> tuple[Any, ...]:
    """Return what a composition is made of: folders, and the recipes that are registered."""
    recipes = pickle.dumps(ConfigStore.instance().repo["recipe"])
    return (*folders_of(repo), recipes)


def folders_of(repo: IConfigRepository) -> list[str]:
    return [source.full_path() for source in repo.get_sources()]


def inside(*arguments: str, typed: str = "", cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run `python run.py …` in this process, where all imports are loaded. Return its exit status and output."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    handlers, level = logging.root.handlers[:], logging.root.level
    with few_compositions():
        singletons = Singleton.get_state()
    patched_input = mock.patch.multiple(sys, argv=["run.py", *arguments], stdin=io.StringIO(typed))
    with (
        few_compositions(),
        patched_input,
        mock.patch.dict(os.environ),
        redirect_stdout(out),
        redirect_stderr(err),
        chdir(cwd),
    ):
        try:
            runpy.run_path(str(ROOT / "run.py"), run_name="__main__")
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=err)
        finally:  # Hydra has changed its own state and logging
            Singleton.set_state(singletons)
            for handler in {*logging.root.handlers} - {*handlers}:
                handler.close()
            logging.root.handlers[:] = handlers
            logging.root.setLevel(level)
    ran = subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())
    note_refusal(ran, arguments)
    return ran


def common(factory: pytest.TempPathFactory) -> Path:
    """Return the folder that all pytest workers of this run share."""
    return (
        factory.getbasetemp().parent
        if os.environ.get("PYTEST_XDIST_WORKER")
        else factory.getbasetemp()
    )


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder that the first worker creates with `make`, and that all workers read."""
    root = common(factory) / name
    done = root.with_name(f"{name}.done")
    with FileLock(root.with_name(f"{name}.lock")):
        if not done.exists():
            make(root)
            done.touch()
    return root


@dataclass
class Chain:
    """A store with the tiny chain in it."""

    root: Path

    def folder(self, name: str, *overrides: str) -> Path:
        return Store(self.root).folder(nodes(self.root, *overrides)[name])

    def manifest(self, name: str, *overrides: str) -> dict[str, Any]:
        return json.loads((self.folder(name, *overrides) / "manifest.json").read_text())

    def count(self) -> Counter[str]:
        """Count the published nodes of each stage."""
        return Counter(manifest["stage"] for _, manifest in Store(self.root).manifests())


def conversational(pairs: Sequence[Any]) -> Any:
    """Return a dataset of pairs as text in TRL's preference columns, which TRL's own trainers tokenise."""
    from datasets import Dataset  # imported late: tests of commands do not need it

    return Dataset.from_list(
        [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in pairs]
    )


def as_published(folder: Path, name: str) -> None:
    """Change a node's manifest so that the present content of a file counts as published."""
    manifest = json.loads((folder / "manifest.json").read_text())
    stat = (folder / name).stat()
    file_record = {
        "bytes": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "sha256": file_digest(folder / name),
    }
    manifest["files"][name] = file_record
    (folder / "manifest.json").write_text(
        json.dumps(manifest | {"digest": digest_of(manifest["files"])})
    )


def confusion(one: Sequence[Any], other: Sequence[Any]) -> Any:
    """Count the pairs of labels that two labellers gave: (labels, labels), in the order of the labels."""
    import numpy as np  # imported late: a plan must not load it

    counts = Counter(zip(one, other, strict=True))
    labels = sorted({*one, *other})
    return np.array([[counts[a, b] for b in labels] for a in labels], float)


def fits(page: Path, width: int, tmp_path: Path) -> bool:
    """Return True if the page is not wider than a window of this width."""
    with browser(tmp_path / "browser") as tab:
        tab.open(page, width)
        return bool(tab.evaluate(FITS))
