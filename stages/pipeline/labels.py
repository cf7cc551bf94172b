"""Who labels a pool: one labeler, or the members of `label.ensemble` and what joins them."""

from collections.abc import Callable

from stages.config.blocks.labels import Label
from stages.store.node import Node


def labels(cfg: Label, node: Callable[..., Node], pool: Node, **reward: Node) -> tuple[Node, dict[str, Node]]:
    """The node of a pool's labels, and all that label it, by name. A member's is that of a run in which it labels
    alone: what was asked and paid for once is not again. `reward`: the run's own reward model, where it labels."""
    if not cfg.voters:
        judged = node("label", cfg, pool=pool, **reward)
        return judged, {"label": judged}
    given = {"reward_model": reward}
    members = {
        name: node("label", cfg.member(name), pool=pool, **given.get(name, {}))
        for name in (voter.labeler for voter in cfg.voters)
    }
    judged = node("label", cfg.joined, pool=pool, **members)
    return judged, {f"label_{name}": member for name, member in members.items()} | {"label": judged}
