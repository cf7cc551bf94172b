"""Check that this machine has what the nodes of a command need: one list of checks for each kind of block.

Of row files only the first rows are read, except for people's answers and known labels."""

import importlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from stages.config.blocks.data import Data, OneSource, Source
from stages.config.blocks.draws import Drawing
from stages.config.blocks.evaluation import Answer
from stages.config.blocks.labels import (
    Judge,
    Label,
    OwnLabeler,
    PreferenceDataset,
    RewardModel,
)
from stages.config.blocks.models import Model, Own
from stages.config.blocks.objective import OwnTraining, Training
from stages.config.blocks.sampling import CandidateFile, DrawnCandidates, OpenAI
from stages.config.errors import Errors, UserError
from stages.config.extras import modules_of_extras
from stages.config.schema import Config
from stages.config.stage_table import Target
from stages.hardware import machine
from stages.launch.processes import listen_at
from stages.pipeline.graph import requested_nodes
from stages.preflight import model_files, servers, user_files
from stages.preflight.arguments import require_accepted_arguments
from stages.store import plugins
from stages.store.node import Node
from stages.store.source_files import locate, resolve_commit
from stages.store.store import Store

Checks = dict[Callable[[Node, Store], None], tuple[type, ...]]


def require_rows_of_files(node: Node, store: Store) -> None:
    """Raise UserError if a file has no rows for its purpose, or an audit's test set has no prompts."""
    from stages.formats.column_mapping import source_purpose

    block = node.config
    if isinstance(block, CandidateFile):
        # `source_files.pin` reports a missing file
        if block.file and plugins.user_path(block.file).is_file():
            require_rows(block.source, f"{block.key}.file", "candidates")
        return
    if isinstance(block, PreferenceDataset):
        require_rows(block.source, block.key, "preferences")
        return
    require_rows(block.source, block.key, source_purpose(block.source).name, block.own)
    for i, test_set in enumerate(block.audit.against or ()):
        require_rows(test_set, f"data.audit.against[{i}].path", "prompts")


def require_rows(source: Source, key: str, purpose: str, user_reader: Own | None = None) -> None:
    """Raise UserError if a source has no rows, or the first ones do not fit their purpose. A user-defined reader
    may take any row. Hub datasets are checked after their download."""
    if locate(source.path, key) is None:
        resolve_commit(source.path, source.revision, "dataset", key)
        return
    try:
        has_rows = recognise_first_rows(source, key, purpose, bool(user_reader))
    except UserError as error:
        setting = key.removesuffix(".path").removesuffix(".file")
        if setting in str(error):
            raise
        raise UserError(f"{key}: {error}") from error
    if not has_rows:
        raise UserError(f"{key}={source.path}: has no rows. Name another file.")


def recognise_first_rows(source: Source, key: str, purpose: str, by_user_reader: bool) -> bool:
    """Return whether a source has a row. Raise UserError if the first rows do not fit their purpose."""
    from stages.formats import detection
    from stages.formats.column_mapping import Purpose
    from stages.formats.readers import files

    of_preferences = purpose == "preferences"
    for table in files.source_tables(source, key, of_preferences):
        if next(table.rows(), None):
            if not by_user_reader:
                first_rows = detection.first_rows(table)
                detection.recognise_format(table, first_rows, source, key, Purpose[purpose])
            return True
    return False


def require_known_labels(node: Node, store: Store) -> None:
    """Raise UserError if every `known` in the file of known labels is empty."""
    known = node.config.known
    key = f"{node.config.block}.known"
    # `source_files.pin` reports a missing file
    if not known or not plugins.user_path(known).is_file():
        return
    from stages.evaluation.reliability import read_known_words

    if not read_known_words(plugins.user_path(known), key):
        raise UserError(f"{key}={known}: every `known` in it is empty. Fill some in.")


def require_buildable(cfg: Config, nodes: dict[str, Node], store: Store) -> None:
    """Raise one UserError for everything that nodes lack which are not in the store. Only the first machine checks."""
    if cfg.launch.node_rank > 0:
        return
    missing_nodes = store.missing(command_nodes(cfg, nodes))
    stages = {node.stage for node in missing_nodes}
    if cfg.rebuild and missing_nodes and cfg.rebuild not in stages:
        raise UserError(
            f"rebuild={cfg.rebuild}: not a stage of this command, which has {', '.join(sorted(stages))}."
        )
    errors = Errors()
    for node in sorted(missing_nodes, key=str):
        blocks = [node.config]
        if isinstance(node.config, Drawing):
            blocks += node.config.scorer.parts  # which score its completions
        for block in blocks:
            for check, block_types in all_checks().items():
                if isinstance(block, block_types):
                    with errors:
                        check(replace(node, config=block), store)
    with errors:
        require_free_rendezvous(cfg, missing_nodes, store)
    errors.raise_all()


def require_free_rendezvous(cfg: Config, missing_nodes: set[Node], store: Store) -> None:
    """Raise UserError if node 0 cannot listen for the others, unless another command trains already."""
    if cfg.launch.nodes == 1:
        return
    for node in missing_nodes:
        # the command that holds the lock listens already
        if isinstance(node.config, Training) and not store.is_locked(node.stage, node.fingerprint):
            listen_at(str(cfg.launch.rendezvous)).close()
            return


def try_user_code(cfg: Config, missing_nodes: Sequence[Node], store: Store) -> None:
    """Try the user-defined labelers and losses that the missing nodes need, before anything is built. Raise UserError if
    one fails."""
    if cfg.launch.node_rank > 0 or not store.is_writable:
        return
    try_own_labelers(missing_nodes, store)
    try_own_losses(missing_nodes)


def try_own_losses(missing_nodes: Sequence[Node]) -> None:
    """Raise UserError if a user-defined loss, or advantages, of a missing training cannot train."""
    blocks_by_code = dict[str, OwnTraining]()
    for node in missing_nodes:
        if isinstance(node.config, OwnTraining) and node.config.own:
            blocks_by_code[repr(node.config.own)] = node.config
    for block in blocks_by_code.values():
        # imports torch, and runs the user's code
        module, _, function = block.own_loader.partition(":")
        load = getattr(importlib.import_module(module), function)
        with TemporaryDirectory() as folder:
            load(block.own, block.own_key, Path(folder))


def try_own_labelers(missing_nodes: Sequence[Node], store: Store) -> None:
    """Raise UserError if a user-defined labeler of the missing nodes fails."""
    labelers_by_code = dict[str, OwnLabeler]()
    nodes_by_code = defaultdict[str, list[Node]](list)
    for node in missing_nodes:
        label = node.config
        if isinstance(label, Drawing):
            label = label.scorer
        if not isinstance(label, Label):
            continue
        for labeler in label.parts:
            # an ensemble's members are nodes of their own, and its block does not have their files
            if isinstance(labeler, OwnLabeler) and labeler.own:
                labelers_by_code[repr(labeler.own)] = labeler
                nodes_by_code[repr(labeler.own)].append(node)
    if not labelers_by_code:
        return
    # runs the user's code, so only commands that build come here
    from stages.labelers.own import try_own_labeler
    from stages.preflight.first_columns import read_first_columns

    for code, labeler in labelers_by_code.items():
        try_own_labeler(labeler, read_first_columns(nodes_by_code[code], store))


def require_rows_within_length(
    cfg: Config, missing_nodes: Sequence[Node], nodes: dict[str, Node], store: Store
) -> None:
    """Raise UserError for trainings that would drop more rows of the user's files as too long than `max_dropped`."""
    if cfg.launch.node_rank > 0:
        return
    has_user_files = any(
        isinstance(node.config, OneSource | PreferenceDataset) for node in nodes.values()
    )
    trainings = [node for node in missing_nodes if isinstance(node.config, Training)]
    if not trainings or not has_user_files:
        return
    from stages.preflight.row_lengths import messages_of_long_rows

    messages = messages_of_long_rows(trainings, nodes, store)
    if messages:
        raise UserError(*messages)


def command_nodes(cfg: Config, nodes: dict[str, Node]) -> list[Node]:
    """Return the nodes that the command builds or plans."""
    if cfg.stage == "plan":
        return [*nodes.values()]
    return requested_nodes(cfg, nodes) if cfg.stage in [*Target] else []


def require_device(node: Node, store: Store) -> None:
    """Raise UserError if a block asks for more GPUs than this machine shows."""
    block = node.config
    device = getattr(getattr(block, "runtime", None), "device", None)
    # of an endpoint the server computes, not this machine
    if device == "cuda" and not isinstance(block, OpenAI) and not machine.may_have_gpu():
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


# By check: the blocks whose nodes need it
CHECKS: Checks = {
    user_files.require_user_code: (Data, OneSource, DrawnCandidates, OwnLabeler, OwnTraining),
    user_files.require_vllm: (Answer, DrawnCandidates, Drawing),
    model_files.require_base_model: (Model,),
    model_files.require_reward_model: (RewardModel,),
    servers.require_endpoints: (OpenAI, Judge),
    require_rows_of_files: (OneSource, PreferenceDataset, CandidateFile),
    require_known_labels: (Label,),
    require_accepted_arguments: (Training,),
    require_device: (object,),
}


def all_checks() -> Checks:
    """Return the checks with the blocks whose nodes need them, with those of extras."""
    checks = CHECKS.copy()
    for module in modules_of_extras("preflight"):
        checks |= module.CHECKS
    return checks
