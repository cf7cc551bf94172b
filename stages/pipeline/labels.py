"""Who labels a pool: one labeler, or the members of `label.ensemble` and what joins them."""

from collections.abc import Callable

from stages.config.blocks.labels import Label
from stages.store.node import Node


def labels(cfg: Label, node: Callable[..., Node], pool: Node, **reward: Node) -> dict[str, Node]:
    """The nodes that label a pool, the one that pairs are made of last. A member's is that of a run in which it labels
    alone: what was asked and paid for once is not again. `reward`: the run's own reward model, where it labels."""
    if not cfg.voters:
        return {"label": node("label", cfg, pool=pool, **reward)}
    given = {"reward_model": reward}
    members = {
        name: node("label", cfg.member(name), pool=pool, **given.get(name, {}))
        for name in (voter.labeler for voter in cfg.voters)
    }
    joined = node("label", cfg.joined, pool=pool, **members)
    return {f"label_{name}": member for name, member in members.items()} | {"label": joined}
