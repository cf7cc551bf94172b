"""What enters the fingerprint of every node of a command, without the numbers of stages: its stage, its settings and the
names of its inputs, as differences from the default's node. No model and no file of a user is read."""

import json
import shlex
import tempfile
from contextlib import ExitStack, chdir
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from omegaconf import OmegaConf

from stages.cli import compose
from stages.cli.typed_line import line_of_job
from stages.config.blocks.labels import Judge
from stages.config.choices import Precision
from stages.config.schema import Config
from stages.config.stage_table import STAGES
from stages.pipeline.graph import wire_graph
from stages.preflight import constraints, machine_needs
from stages.store import source_files
from stages.store.node import Graph, Node
from stages.store.store import Store
from tests.goldens import chains, users
from tests.goldens.configurations import DEFAULT, REFUSED, compose_first_job
from tests.goldens.names import refused_key
from tests.goldens.records import Commands, changes
from tests.helpers import as_typed, settings_by_key
from tests.pipeline.test_recipes import NAMES, overrides

SEED = "_seed_"  # between the name of a node and the seed of its chain


def commands() -> list[str]:
    """Return the lines of all recipes and of the tiny chains, the default first."""
    recipes = [shlex.join(overrides(name)).replace("=TRAINED", "=hub/trained") for name in NAMES]
    chain_lines = [shlex.join([*chains.TINY, *shlex.split(line)]) for line in chains.LINES]
    recipes += [f"recipe={path}" for path in users.EXAMPLES]
    return [*dict.fromkeys([DEFAULT, *recipes, *users.LINES, *chain_lines])]


def measure(lines: list[str]) -> dict[str, Any]:
    """Return by line and name what of each node is not the default's. The default line has all of it."""
    default = describe_graph(DEFAULT)
    values = dict[str, Any]()
    for line in lines:
        values[line] = nodes = describe_graph(line)
        if line != DEFAULT and REFUSED not in nodes:
            values[line] = changed_nodes(nodes, default)
    return values


def changed_nodes(
    nodes: dict[str, dict[str, str]], default: dict[str, dict[str, str]]
) -> dict[str, dict[str, str]]:
    """Return by name what of each node is not that of the default's node with this name; else that of the same chain's
    node of the run's own seed; else that of the default's first node of this stage."""
    by_stage = {node["(stage)"]: node for node in reversed(default.values())}
    changed = dict[str, dict[str, str]]()
    for name, node in nodes.items():
        same_name = default.get(name)
        chain, seed, _ = name.partition(SEED)
        of_main_seed = nodes[chain] if seed else None
        of_stage = by_stage.get(node["(stage)"], {})
        changed[name] = changes(node, same_name or of_main_seed or of_stage)
    return changed


def describe_graph(line: str) -> dict[str, Any]:
    """Return by name what enters each node's fingerprint, and the fingerprint of the last node, which all others lead
    to. Return the refused key if the line is refused."""
    try:
        nodes = wire(line)
    except Exception as error:
        return {REFUSED: refused_key(error)}
    names = {id(node): name for name, node in reversed(nodes.items())}
    described = {name: describe_node(node, names) for name, node in nodes.items()}
    last = [*nodes][-1]
    described[last]["(fingerprint)"] = nodes[last].fingerprint
    return described


def describe_node(node: Node, names: dict[int, str]) -> dict[str, str]:
    """Return a node's stage and inputs, and every setting in its fingerprint, as JSON by dotted key."""
    inputs = [
        f"{role}: {names.get(id(each), each.stage)}" for role, each in sorted(node.inputs.items())
    ]
    settings = settings_by_key(OmegaConf.create(node.settings))
    described = {"(stage)": node.stage, "(inputs)": ", ".join(inputs)}
    return described | {key: json.dumps(value) for key, value in sorted(settings.items())}


def wire(line: str) -> Graph:
    """Return the nodes of a line as `run.py` wires them, in stages of number 0. Every extra counts as installed, and
    `precision=auto` is bf16."""
    composed = compose_first_job(line)
    if composed.precision == Precision.auto:
        composed.precision = Precision.bf16
    typed = shlex.split(line)
    unnumbered = {name: replace(stage, version=0) for name, stage in STAGES.items()}
    with ExitStack() as stack:
        stack.enter_context(as_typed(*typed))
        stack.enter_context(chdir(users.folder_of(line)))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        composed.outputs = folder
        stack.enter_context(mock.patch.dict(STAGES, unnumbered))
        for module in (constraints, machine_needs):
            stack.enter_context(mock.patch.object(module, "find_spec", lambda package: package))
        stack.enter_context(mock.patch.object(compose, "checked_graph", wire_without_files))
        _, _, nodes = compose.prepare(composed, line_of_job().values)
        return nodes


def wire_without_files(cfg: Config, store: Store) -> Graph:
    """Return the nodes with files and hub revisions as the configuration names them, but with digests of rubrics, since
    those belong to the project."""
    return wire_graph(cfg, store.digest_cache, pin_rubric)


def pin_rubric(block: Any, cache: Path) -> tuple[Any, dict[str, str]]:
    if isinstance(block, Judge):
        return source_files.pin(block, cache)
    return block, {}


PART = Commands("fingerprints", commands, measure)
