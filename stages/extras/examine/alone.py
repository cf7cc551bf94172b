"""The nodes of an examination that runs no model: the comparison of the folders, and its page."""

from dataclasses import replace

from stages.extras.examine.trained_models import compared_folders, settings_of
from stages.pipeline.subgraphs import Wiring
from stages.store.node import Graph


def wire(wiring: Wiring) -> Graph:
    """Return the nodes by name."""
    cfg = wiring.cfg
    diff = wiring.add("diff", "diff", compared_folders(cfg))
    block = replace(cfg.report, left_out=settings_of(cfg).left_out or "")
    return wiring.nodes | {"report": wiring.make_unnamed("report", block, diff=diff)}
