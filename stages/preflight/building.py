"""What the nodes that a command would build need of this machine: each is looked at by the kind of its block."""

from collections.abc import Callable
from importlib.util import find_spec

from stages.config.blocks.data import Data, OneSource
from stages.config.blocks.labels import Label
from stages.config.blocks.models import Model
from stages.config.blocks.sampling import CandidateFile, Sample
from stages.config.blocks.training import Training
from stages.config.choices import Command
from stages.config.errors import Errors, UserError, in_the_name_of
from stages.config.installation import install_command
from stages.config.schema import Config, Target
from stages.hardware import machine
from stages.launch.processes import listening
from stages.pipeline.graph import targets
from stages.preflight import model_files, row_files, servers, user_files
from stages.store.node import Node
from stages.store.store import Store

Look = Callable[[Node, Store], None]
LOOKS: dict[type, tuple[Look, ...]] = {
    Data: (user_files.require_data_part,),
    Model: (model_files.require_model,),
    OneSource: (user_files.require_data_part, row_files.require_source),
    Sample: (user_files.require_sampler, servers.require_sampled),
    CandidateFile: (row_files.require_candidates,),
    Label: (
        user_files.require_labeler,
        row_files.require_preferences,
        model_files.require_reward_model,
        row_files.require_known,
        row_files.require_answered,
        servers.require_judges,
        servers.require_page,
    ),
}


def refuse(cfg: Config, nodes: dict[str, Node], store: Store) -> None:
    """Raise UserError for all that nodes lack which are to be built, in one message. A node that the store holds needs
    nothing any more; of several machines the first one looks."""
    errors = Errors()
    missing = store.missing(wanted(cfg, nodes)) if cfg.launch.node_rank == 0 else set[Node]()
    for node in sorted(missing, key=str):
        for look in (*LOOKS.get(type(node.config), ()), require_device):
            with errors, in_the_name_of(node.config.name if isinstance(node.config, Label) else "label"):
                look(node, store)
    if missing and cfg.tracker.name == "trackio" and find_spec("trackio") is None:
        errors.add(f"tracker=trackio needs its package: {install_command('trackio')}, or set tracker=none.")
    if cfg.launch.nodes > 1 and any(trains_now(node, store) for node in missing):
        with errors:
            listening(str(cfg.launch.rendezvous)).close()
    errors.refuse()


def wanted(cfg: Config, nodes: dict[str, Node]) -> list[Node]:
    """Return the nodes that a command builds, or plans to."""
    if cfg.stage == Command.plan:
        return [*nodes.values()]
    return targets(cfg, nodes) if cfg.stage in [*Target] else []


def require_device(node: Node, store: Store) -> None:
    """Raise UserError where a block is to compute on a GPU, and this machine shows none."""
    block, key = node.config, node.stage
    if isinstance(block, Sample) and block.sampler == "openai":
        return  # a server computes
    if isinstance(block, Label):
        block, key = block.reward_model if block.labeler == "reward_model" else None, "label.reward_model"
    runtime = getattr(block, "runtime", None)
    if getattr(runtime, "device", None) == "cuda" and not machine.may_have_gpu():
        raise UserError(f"{key}.runtime.device=cuda: this machine has no GPU, or hides it. Use auto, or cpu.")


def trains_now(node: Node, store: Store) -> bool:
    """Return whether a command with several nodes is to train this one, and no other command does already."""
    return isinstance(node.config, Training) and not store.is_locked(node.stage, node.fingerprint)
