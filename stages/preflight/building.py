"""Check that this machine has what the nodes of a command need: one list of checks for each kind of block.

Of row files only the first rows are read, except for people's answers and known labels."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from stages.config.blocks.data import Data, OneSource, Source
from stages.config.blocks.evaluation import Answer, Benchmark
from stages.config.blocks.labels import (
    Ensemble,
    Human,
    Judge,
    Label,
    OwnLabeler,
    PreferenceFile,
    RewardModel,
)
from stages.config.blocks.models import Model
from stages.config.blocks.sampling import DRAWING, CandidateFile, OpenAI
from stages.config.blocks.training import ScoredGRPO, Training
from stages.config.choices import Command
from stages.config.errors import Errors, UserError, name_block
from stages.config.schema import Config, Target
from stages.hardware import machine
from stages.launch.processes import listen_at
from stages.pipeline.graph import requested_nodes
from stages.preflight import model_files, servers, user_files
from stages.preflight.arguments import require_arguments
from stages.store import plugins
from stages.store.node import Node
from stages.store.source_files import locate, resolve_commit
from stages.store.store import Store

log = logging.getLogger(__name__)


def require_source(node: Node, store: Store) -> None:
    """Raise UserError if a data source lacks rows for its splits, or an audit's test set has no prompts."""
    from stages.formats.column_mapping import source_purpose

    block = node.config
    purpose = source_purpose(block.source).name
    require_rows(block.source, block.key, purpose, own_reader=bool(block.own))
    for i, source in enumerate(block.audit.against or ()):
        require_rows(source, f"data.audit.against[{i}].path", "prompts")


def require_preferences(node: Node, store: Store) -> None:
    """Raise UserError if the preference file of `label=dataset` has no preferences."""
    require_rows(node.config.source, node.config.key, "preferences")


def require_candidates(node: Node, store: Store) -> None:
    """Raise UserError if the file of candidates has no candidates."""
    # otherwise `source_files.pin` reports the missing file
    if plugins.user_path(node.config.file).is_file():
        require_rows(node.config.source, f"{node.config.key}.file", "candidates")


def require_rows(source: Source, key: str, purpose: str, own_reader: bool = False) -> None:
    """Raise UserError if a source has no rows, or the first ones do not fit their purpose. A user-defined reader
    (`own_reader`) may take any row. Hub datasets are checked after their download."""
    if locate(source.path, key) is None:
        resolve_commit(source.path, source.revision, "dataset", key)
        return
    try:
        has_rows = read_first_rows(source, key, purpose, own_reader)
    except UserError as error:
        block = key.removesuffix(".path").removesuffix(".file")
        if block in str(error):
            raise
        raise UserError(f"{key}: {error}") from error
    if not has_rows:
        raise UserError(f"{key}={source.path}: has no rows. Name another file.")


def read_first_rows(source: Source, key: str, purpose: str, own_reader: bool) -> bool:
    """Return whether a source has a row. Raise UserError if the first rows do not fit their purpose."""
    from stages.formats import detection
    from stages.formats.column_mapping import Purpose
    from stages.formats.readers import files

    are_preferences = purpose == "preferences"
    for table in files.source_tables(source, key, are_preferences):
        if next(table.rows(), None):
            if not own_reader:
                rows = detection.first_rows(table)
                detection.recognise_format(table, rows, source, key, Purpose[purpose])
            return True
    return False


def require_known(node: Node, store: Store) -> None:
    """Raise UserError if `label.known` has a line that is not a row of audit.jsonl, or no known label."""
    known = node.config.known
    if not known or not plugins.user_path(known).is_file():  # else `source_files.pin` reports it
        return
    from stages.evaluation.reliability import read_known_words

    if not read_known_words(plugins.user_path(known)):
        raise UserError(f"label.known={known}: every `known` in it is empty. Fill some in.")


def require_answered(node: Node, store: Store) -> None:
    """Raise UserError if the file of people's answers does not exist or has no answers."""
    people = node.config.asks
    if people is None or not people.answered:
        return
    from stages.labelers.people import answer_rows

    setting = f"{people.block}.answered={people.answered}"
    file = plugins.user_path(people.answered)
    if not file.is_file():
        raise UserError(f"{setting}: the file does not exist. Correct the path.")
    if not any(answer for _, answer in answer_rows.parse_answers(file)):
        raise UserError(f"{setting}: has no answers. Fill in its empty fields, or leave it out.")


Check = Callable[[Node, Store], None]


def require_scorers(node: Node, store: Store) -> None:
    """Raise UserError for what the labelers of GRPO's completions lack."""
    for part in node.config.label.parts:
        for check in SCORERS.get(type(part), ()):
            with name_block(part.block):
                check(replace(node, config=part), store)


SCORERS: dict[type, tuple[Check, ...]] = {
    OwnLabeler: (user_files.require_own,),
    RewardModel: (model_files.require_reward_model,),
    Judge: (servers.require_judges,),
}
CHECKS: dict[type, tuple[Check, ...]] = {
    Data: (user_files.require_own,),
    Model: (model_files.require_model,),
    OneSource: (user_files.require_own, require_source),
    Answer: (user_files.require_vllm,),
    Benchmark: (user_files.require_engine,),
    **dict.fromkeys(
        DRAWING.values(),
        (user_files.require_own, user_files.require_vllm, servers.require_sampled),
    ),
    CandidateFile: (require_candidates,),
    **SCORERS,
    PreferenceFile: (require_preferences,),
    Human: (require_answered, servers.require_page),
    Ensemble: (require_answered, servers.require_page),
    ScoredGRPO: (require_scorers, user_files.require_vllm),
}


def require_buildable(cfg: Config, nodes: dict[str, Node], store: Store) -> None:
    """Raise one UserError for everything that nodes lack which are not in the store. Only the first machine checks."""
    if cfg.launch.node_rank > 0:
        return
    missing = store.missing(command_nodes(cfg, nodes))
    stages = {node.stage for node in missing}
    if cfg.rebuild and missing and cfg.rebuild not in stages:
        raise UserError(
            f"rebuild={cfg.rebuild}: not a stage of this command, which has {', '.join(sorted(stages))}."
        )
    errors = Errors()
    for node in sorted(missing, key=str):
        block = node.config
        for check in checks_of(block):
            with errors, name_block(block.block if isinstance(block, Label) else "label"):
                check(node, store)
    with errors:
        require_rendezvous(cfg, missing, store)
    errors.raise_all()


def checks_of(block: Any) -> list[Check]:
    """Return what a node with this block needs."""
    checks = [*CHECKS.get(type(block), ()), require_device]
    if isinstance(block, Label):
        checks.append(require_known)
    if isinstance(block, Training):
        checks.append(require_arguments)
    return checks


def require_rendezvous(cfg: Config, missing: Iterable[Node], store: Store) -> None:
    """Raise UserError if node 0 cannot listen for the others, unless another command trains already."""
    if cfg.launch.nodes == 1:
        return
    for node in missing:
        if isinstance(node.config, Training) and not store.is_locked(node.stage, node.fingerprint):
            listen_at(str(cfg.launch.rendezvous)).close()
            return


def try_own_labelers(cfg: Config, missing: Sequence[Node], store: Store) -> None:
    """Run the code of user-defined labelers that the missing nodes need, before anything is built. Only commands that
    build call this, after the check that the user typed the code's place.
    Raise UserError if a labeler cannot be loaded, or fails on made-up rows."""
    if cfg.launch.node_rank > 0 or not store.is_writable:
        return
    own_parts = dict[str, OwnLabeler]()
    for node in missing:
        block = node.config
        label = block.label if isinstance(block, ScoredGRPO) else block
        for part in label.parts if isinstance(label, Label) else []:
            # an ensemble's members are nodes of their own, and its block does not have their files
            if isinstance(part, OwnLabeler) and part.own:
                own_parts[repr(part.own)] = part
    if not own_parts:
        return
    from stages.labelers.own import try_own_labeler

    for part in own_parts.values():
        with name_block(part.block):
            try_own_labeler(part.own)


def require_rows_fit(
    cfg: Config, missing: Sequence[Node], nodes: dict[str, Node], store: Store
) -> None:
    """Warn of rows of the user's files that missing trainings would leave out as too long.
    Raise UserError for trainings that would drop more rows than `max_dropped` allows."""
    if cfg.launch.node_rank > 0:
        return
    has_files = any(isinstance(node.config, OneSource | PreferenceFile) for node in nodes.values())
    trainings = [node for node in missing if isinstance(node.config, Training)]
    if not trainings or not has_files:
        return
    from stages.preflight.row_lengths import long_rows

    errors, warnings = long_rows(trainings, nodes, store)
    for warning in warnings:
        log.warning("warning: %s", warning)
    if errors:
        raise UserError(*errors)


def command_nodes(cfg: Config, nodes: dict[str, Node]) -> list[Node]:
    """Return the nodes that the command builds or plans."""
    if cfg.stage == Command.plan:
        return [*nodes.values()]
    return requested_nodes(cfg, nodes) if cfg.stage in [*Target] else []


def require_device(node: Node, store: Store) -> None:
    """Raise UserError if a block asks for more GPUs than this machine shows."""
    block = node.config
    if isinstance(block, OpenAI):
        return  # the server computes, not this machine
    device = getattr(getattr(block, "runtime", None), "device", None)
    if device == "cuda" and not machine.may_have_gpu():
        raise UserError(
            f"{node.stage}.runtime.device=cuda: this machine shows no GPU. Use auto or cpu."
        )
    if not isinstance(block, Training) or device == "cpu" or machine.planned_gpu.get():
        return
    gpu_count = len(machine.visible_gpus())
    if 0 < gpu_count < block.runtime.processes:
        raise UserError(
            f"launch.processes={block.runtime.processes} needs as many GPUs; CUDA shows {gpu_count}."
        )
