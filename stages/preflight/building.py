"""What the nodes that a command would build need of this machine: each is looked at by the kind of its block."""

from collections.abc import Callable

from stages.config.blocks.data import Data, OneSource
from stages.config.blocks.labels import Label
from stages.config.blocks.models import Model
from stages.config.blocks.sampling import CandidateFile, Sample
from stages.config.choices import Command, Target
from stages.config.errors import Errors
from stages.config.schema import Config
from stages.pipeline.graph import targets
from stages.preflight import answer_files, model_files, own_code, row_files, servers
from stages.store.node import Node
from stages.store.store import Store

Look = Callable[[Node, Store], None]
LOOKS: dict[type, tuple[Look, ...]] = {
    Data: (own_code.require_data_part,),
    Model: (model_files.require_model,),
    OneSource: (own_code.require_data_part, row_files.require_source),
    Sample: (own_code.require_sampler, servers.require_sampled),
    CandidateFile: (row_files.require_candidates,),
    Label: (
        own_code.require_labeler,
        row_files.require_preferences,
        model_files.require_reward_model,
        answer_files.require_known,
        answer_files.require_answered,
        servers.require_judges,
        servers.require_page,
    ),
}


def refuse(cfg: Config, nodes: dict[str, Node], store: Store) -> None:
    """Raise UserError for all that nodes lack which are to be built, in one message. A node that the store holds needs
    nothing any more; of several machines the first one looks."""
    errors = Errors()
    for node in store.missing(wanted(cfg, nodes)) if cfg.launch.node_rank == 0 else ():
        for look in LOOKS.get(type(node.config), ()):
            with errors:
                look(node, store)
    errors.refuse()


def wanted(cfg: Config, nodes: dict[str, Node]) -> list[Node]:
    """Return the nodes that a command builds, or plans to."""
    if cfg.stage == Command.plan:
        return [*nodes.values()]
    return targets(cfg, nodes) if cfg.stage in [*Target] else []
