"""Check that this machine has what the nodes of a command need: one list of checks for each kind of block.

Of row files only the first rows are read, except for people's answers and known labels."""

from collections.abc import Callable, Sequence
from dataclasses import replace

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
from stages.config.blocks.models import Model, Own
from stages.config.blocks.sampling import CandidateFile, Drawn, OpenAI
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


def require_file(node: Node, store: Store) -> None:
    """Raise UserError if a file has no rows for its purpose, or an audit's test set has no prompts."""
    from stages.formats.column_mapping import source_purpose

    block = node.config
    if isinstance(block, CandidateFile):
        # otherwise `source_files.pin` reports the missing file
        if block.file and plugins.user_path(block.file).is_file():
            require_rows(block.source, f"{block.key}.file", "candidates")
        return
    if isinstance(block, PreferenceFile):
        require_rows(block.source, block.key, "preferences")
        return
    require_rows(block.source, block.key, source_purpose(block.source).name, block.own)
    for i, source in enumerate(block.audit.against or ()):
        require_rows(source, f"data.audit.against[{i}].path", "prompts")


def require_rows(source: Source, key: str, purpose: str, own: Own | None = None) -> None:
    """Raise UserError if a source has no rows, or the first ones do not fit their purpose. A user-defined reader
    (`own`) may take any row. Hub datasets are checked after their download."""
    if locate(source.path, key) is None:
        resolve_commit(source.path, source.revision, "dataset", key)
        return
    try:
        has_rows = read_first_rows(source, key, purpose, bool(own))
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
    people = node.config.asked_people
    if people is None or not people.answered:
        return
    from stages.labelers.people import answer_rows

    setting = f"{people.block}.answered={people.answered}"
    file = plugins.user_path(people.answered)
    if not file.is_file():
        raise UserError(f"{setting}: the file does not exist. Correct the path.")
    if not any(answer for _, answer in answer_rows.parse_answers(file)):
        raise UserError(f"{setting}: has no answers. Fill in its empty fields, or leave it out.")


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
        blocks = [node.config]
        if isinstance(node.config, ScoredGRPO):
            blocks += node.config.label.parts  # which score its completions
        for block in blocks:
            for check, kinds in CHECKS.items():
                if isinstance(block, kinds):
                    with errors, name_block(block.block if isinstance(block, Label) else "label"):
                        check(replace(node, config=block), store)
    with errors:
        require_rendezvous(cfg, missing, store)
    errors.raise_all()


def require_rendezvous(cfg: Config, missing: set[Node], store: Store) -> None:
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
        label = node.config
        if isinstance(label, ScoredGRPO):
            label = label.label
        if not isinstance(label, Label):
            continue
        for part in label.parts:
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
    """Raise UserError for trainings that would drop more rows of the user's files as too long than they allow."""
    if cfg.launch.node_rank > 0:
        return
    has_files = any(isinstance(node.config, OneSource | PreferenceFile) for node in nodes.values())
    trainings = [node for node in missing if isinstance(node.config, Training)]
    if not trainings or not has_files:
        return
    from stages.preflight.row_lengths import long_rows

    messages = long_rows(trainings, nodes, store)
    if messages:
        raise UserError(*messages)


def command_nodes(cfg: Config, nodes: dict[str, Node]) -> list[Node]:
    """Return the nodes that the command builds or plans."""
    if cfg.stage == Command.plan:
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
CHECKS: dict[Callable[[Node, Store], None], tuple[type, ...]] = {
    user_files.require_own: (Data, OneSource, Drawn, OwnLabeler),
    user_files.require_vllm: (Answer, Drawn, ScoredGRPO),
    user_files.require_engine: (Benchmark,),
    model_files.require_model: (Model,),
    model_files.require_reward_model: (RewardModel,),
    servers.require_endpoints: (OpenAI, Judge),
    servers.require_page: (Human, Ensemble),
    require_file: (OneSource, PreferenceFile, CandidateFile),
    require_answered: (Human, Ensemble),
    require_known: (Label,),
    require_arguments: (Training,),
    require_device: (object,),
}
