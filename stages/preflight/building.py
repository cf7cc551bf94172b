"""Check that this machine has what the nodes of a command need: one list of checks for each kind of block."""

from collections.abc import Callable
from importlib.util import find_spec

from stages.config.blocks.data import Data, OneSource
from stages.config.blocks.evaluation import Answer, Benchmark
from stages.config.blocks.labels import Label
from stages.config.blocks.models import Model
from stages.config.blocks.sampling import CandidateFile, Sample
from stages.config.blocks.training import Training
from stages.config.choices import Command
from stages.config.errors import Errors, UserError, name_block
from stages.config.installation import install_command
from stages.config.schema import Config, Target
from stages.hardware import machine
from stages.launch.processes import listen_at
from stages.pipeline.graph import requested_nodes
from stages.preflight import model_files, row_files, servers, user_files
from stages.store.node import Node
from stages.store.store import Store

Check = Callable[[Node, Store], None]
CHECKS: dict[type, tuple[Check, ...]] = {
    Data: (user_files.require_data_part,),
    Model: (model_files.require_model,),
    OneSource: (user_files.require_data_part, row_files.require_source),
    Sample: (user_files.require_sampler, user_files.require_vllm, servers.require_sampled),
    Answer: (user_files.require_vllm,),
    Benchmark: (user_files.require_engine,),
    CandidateFile: (row_files.require_candidates,),
    Label: (
        *(user_files.require_labeler, row_files.require_preferences, model_files.require_reward_model),
        *(row_files.require_known, row_files.require_answered, servers.require_judges, servers.require_page),
    ),
}


def require_buildable(cfg: Config, nodes: dict[str, Node], store: Store) -> None:
    """Raise one UserError for everything that nodes lack which are not in the store. Only the first machine checks."""
    errors = Errors()
    missing = store.missing(command_nodes(cfg, nodes)) if cfg.launch.node_rank == 0 else set[Node]()
    for node in sorted(missing, key=str):
        for check in (*CHECKS.get(type(node.config), ()), require_device):
            with errors, name_block(node.config.name if isinstance(node.config, Label) else "label"):
                check(node, store)
    if missing and cfg.tracker.name == "trackio" and find_spec("trackio") is None:
        errors.add(f"tracker=trackio needs its package: {install_command('trackio')}, or set tracker=none.")
    trainings = [node for node in missing if isinstance(node.config, Training)]
    # The rendezvous must be free, except if other commands train already.
    if cfg.launch.nodes > 1 and not all(store.is_locked(node.stage, node.fingerprint) for node in trainings):
        with errors:
            listen_at(str(cfg.launch.rendezvous)).close()
    errors.raise_all()


def command_nodes(cfg: Config, nodes: dict[str, Node]) -> list[Node]:
    """Return the nodes that the command builds or plans."""
    if cfg.stage == Command.plan:
        return [*nodes.values()]
    return requested_nodes(cfg, nodes) if cfg.stage in [*Target] else []


def require_device(node: Node, store: Store) -> None:
    """Raise UserError if a block asks for a GPU and this machine shows none."""
    block, key = node.config, node.stage
    if isinstance(block, Sample) and block.sampler == "openai":
        return  # the server computes, not this machine
    if isinstance(block, Label):
        block, key = block.reward_model if block.labeler == "reward_model" else None, "label.reward_model"
    runtime = getattr(block, "runtime", None)
    if getattr(runtime, "device", None) == "cuda" and not machine.may_have_gpu():
        raise UserError(f"{key}.runtime.device=cuda: this machine shows no GPU. Use auto or cpu.")
    if isinstance(block, Training) and block.runtime.device != "cpu" and not machine.planned_gpu.get():
        gpu_count = len(machine.visible_gpus())
        if 0 < gpu_count < block.runtime.processes:
            raise UserError(f"launch.processes={block.runtime.processes} needs as many GPUs; CUDA shows {gpu_count}.")
