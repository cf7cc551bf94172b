"""Check that this machine has what the nodes of a command need: one list of checks for each kind of block.

Of row files only the first rows are read, except for people's answers and known labels."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

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
    require_rows(
        block.source, block.key, source_purpose(block.source).name, own_reader=bool(block.own)
    )
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


def require_rows(source: Source, key: str, purpose_name: str, own_reader: bool = False) -> None:
    """Raise UserError if a source has no rows, or the first ones do not fit their purpose. A user-defined reader
    (`own_reader`) may take any row. Hub datasets are checked after their download."""
    from stages.formats import detection
    from stages.formats.column_mapping import Purpose
    from stages.formats.readers import files

    if locate(source.path, key) is None:
        resolve_commit(source.path, source.revision, "dataset", key)
        return
    purpose = Purpose[purpose_name]
    try:
        for table in files.source_tables(source, key, purpose is Purpose.preferences):
            if next(table.rows(), None):
                if not own_reader:
                    detection.recognise_format(
                        table, detection.first_rows(table), source, key, purpose
                    )
                return
    except UserError as error:
        block = key.removesuffix(".path").removesuffix(".file")
        raise UserError(str(error) if block in str(error) else f"{key}: {error}") from error
    raise UserError(f"{key}={source.path}: has no rows. Name another file.")


def require_known(node: Node, store: Store) -> None:
    """Raise UserError if `label.known` has a line that is not a row of audit.jsonl, or no known label."""
    if node.config.known and (file := plugins.user_path(node.config.known)).is_file():
        from stages.evaluation.reliability import read_known_words

        require_readable(file, "label.known")
        if not read_known_words(file):
            raise UserError(
                f"label.known={node.config.known}: every `known` in it is empty. Fill some in."
            )


def require_answered(node: Node, store: Store) -> None:
    """Raise UserError if the file of people's answers has none."""
    people = node.config.asks
    if people is None or not people.answered:
        return
    from stages.labelers.people import answer_rows

    file = plugins.user_path(people.answered)
    require_readable(file, f"{people.block}.answered")
    if not any(answer for _, answer in answer_rows.parse_answers(file)):
        raise UserError(
            f"{people.block}.answered={file}: has no answers. Fill in its empty fields, or leave it out."
        )


def require_readable(file: Path, key: str) -> None:
    try:
        with open(file, "rb"):
            return
    except OSError as error:
        raise UserError(f"{key}={file}: {error.strerror}. Name a file that can be read.") from error


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
    errors = Errors()
    missing = store.missing(command_nodes(cfg, nodes)) if cfg.launch.node_rank == 0 else set[Node]()
    if cfg.rebuild and missing and cfg.rebuild not in (stages := {node.stage for node in missing}):
        raise UserError(
            f"rebuild={cfg.rebuild}: not a stage of this command, which has {', '.join(sorted(stages))}."
        )
    for node in sorted(missing, key=str):
        block, checks = node.config, [*CHECKS.get(type(node.config), ()), require_device]
        if isinstance(block, Label):
            checks.append(require_known)
        if isinstance(block, Training):
            checks.append(require_arguments)
        for check in checks:
            with errors, name_block(block.block if isinstance(block, Label) else "label"):
                check(node, store)
    trainings = [node for node in missing if isinstance(node.config, Training)]
    # The rendezvous must be free, except if other commands train already.
    if cfg.launch.nodes > 1 and not all(
        store.is_locked(node.stage, node.fingerprint) for node in trainings
    ):
        with errors:
            listen_at(str(cfg.launch.rendezvous)).close()
    errors.raise_all()


def try_own_labelers(cfg: Config, missing: Sequence[Node], store: Store) -> None:
    """Run the code of user-defined labelers that the missing nodes need, before anything is built. Only commands that
    build call this, after the check that the user typed the code's place.
    Raise UserError if a labeler cannot be loaded, or fails on made-up rows."""
    if cfg.launch.node_rank > 0 or not store.is_writable:
        return
    blocks = [node.config for node in missing]
    labels = [block.label if isinstance(block, ScoredGRPO) else block for block in blocks]
    parts = [part for label in labels if isinstance(label, Label) for part in label.parts]
    # an ensemble's members are nodes of their own, and its block does not have their files
    own_parts = {
        repr(part.own): part for part in parts if isinstance(part, OwnLabeler) and part.own
    }
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
    """Raise UserError if a block asks for a GPU and this machine shows none."""
    block, key = node.config, node.stage
    if isinstance(block, OpenAI):
        return  # the server computes, not this machine
    runtime = getattr(block, "runtime", None)
    if getattr(runtime, "device", None) == "cuda" and not machine.may_have_gpu():
        raise UserError(f"{key}.runtime.device=cuda: this machine shows no GPU. Use auto or cpu.")
    if (
        isinstance(block, Training)
        and block.runtime.device != "cpu"
        and not machine.planned_gpu.get()
    ):
        gpu_count = len(machine.visible_gpus())
        if 0 < gpu_count < block.runtime.processes:
            raise UserError(
                f"launch.processes={block.runtime.processes} needs as many GPUs; CUDA shows {gpu_count}."
            )
