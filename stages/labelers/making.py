"""The choice of the labeler that a block `label` names."""

from inspect import signature
from typing import Any

from stages.config.blocks.labels import Label, OwnLabeler
from stages.labelers.labeler import Labeler
from stages.labelers.own import make_own_labeler
from stages.store import plugins
from stages.store.workspace import StageDir


def make_labeler(cfg: Label, out: StageDir) -> Labeler:
    """Return the labeler that `label` names: one of this folder, or a user-defined one.
    Raise UserError if the user-defined one cannot be loaded."""
    if isinstance(cfg, OwnLabeler):
        return make_own_labeler(cfg, out)
    kind: Any = plugins.load_class("labelers", cfg.labeler, Labeler)  # type: ignore[type-abstract]
    return kind(cfg, out) if "cfg" in signature(kind).parameters else kind()  # type: ignore[no-any-return]
