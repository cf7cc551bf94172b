"""The command that comes next: the first stage after this one that the same settings have and nothing refuses."""

from dataclasses import replace

from stages.cli import unread
from stages.config.choices import Command, Target
from stages.config.errors import UserError
from stages.config.schema import Config
from stages.pipeline import provenance
from stages.pipeline.graph import NEXT, targets
from stages.preflight import constraints
from stages.store.node import Node


def next_command(cfg: Config, nodes: dict[str, Node], overrides: list[str]) -> str | None:
    """Return the command line; None where nothing that these settings allow comes after `cfg.stage`."""
    stage = NEXT.get(cfg.stage)
    while stage and not allowed(replace(cfg, stage=stage), nodes, overrides):
        stage = NEXT.get(stage)
    if stage is None and cfg.stage == Target.dpo:  # of a policy that no prompt evaluates
        stage = Command.chat
    return provenance.command(stage, overrides) if stage else None


def allowed(cfg: Config, nodes: dict[str, Node], overrides: list[str]) -> bool:
    try:
        constraints.refuse(cfg)
        unread.refuse(cfg, overrides)
        return bool(targets(cfg, nodes))
    except UserError:
        return False
