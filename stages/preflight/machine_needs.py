"""Checks of packages, processes and trackers, which only this machine has or lacks; and of extras' settings."""

import re
from importlib.util import find_spec

from stages.config.choices import Sharding
from stages.config.command_record import Block
from stages.config.errors import UserError
from stages.config.installation import install_command, version
from stages.config.schema import Config

NOT_A_WORD = re.compile(r"[/\\#?%:]|^\.")  # trackers make a folder of it


def validate_nodes(cfg: Config) -> None:
    """Raise UserError for processes on several machines that cannot find each other."""
    launch = cfg.launch
    if launch.nodes > 1 and not launch.rendezvous:
        raise UserError(f"launch.nodes={launch.nodes} needs launch.rendezvous=HOST:PORT of node 0.")
    if launch.rendezvous and not is_host_and_port(launch.rendezvous):
        raise UserError(f"launch.rendezvous={launch.rendezvous} is not HOST:PORT of node 0.")
    if launch.node_rank >= launch.nodes:
        raise UserError(
            f"launch.node_rank={launch.node_rank} must be below launch.nodes={launch.nodes}."
        )


def is_host_and_port(text: str) -> bool:
    """Return whether a text is HOST:PORT."""
    match = re.fullmatch(r"[^\s/]+:(\d{1,5})", text)
    return match is not None and 0 < int(match[1]) < 2**16


def validate_sharding(cfg: Config) -> None:
    """Raise UserError if processes cannot share the model."""
    launch = cfg.launch
    if launch.sharding is Sharding.none:
        return
    if launch.processes * launch.nodes == 1:
        raise UserError(f"launch.sharding={launch.sharding} needs launch.processes=2 or more.")
    if launch.sharding is Sharding.zero3 and find_spec("deepspeed") is None:
        raise UserError("launch=zero3 needs DeepSpeed: pip install deepspeed. Or use launch=fsdp.")
    torch_version = [int(number) for number in str(version("torch")).split(".")[:2]]
    is_planned = cfg.planned_gpu is not None  # the libraries of another machine are not known here
    if launch.sharding is Sharding.fsdp and torch_version < [2, 13] and not is_planned:
        # after an evaluation, an earlier one leaves weights divided that the next step needs whole
        raise UserError("launch=fsdp needs PyTorch 2.13. Install it, or use launch=zero3.")


def validate_trackers(cfg: Config) -> None:
    """Raise UserError for a tracker that is not installed, or a project or group that is not one word."""
    project, group = cfg.tracker.project, cfg.tracker.group
    for name in cfg.tracker.names:
        if find_spec(name) is None and cfg.planned_gpu is None:
            raise UserError(f"tracker={name} needs a package: {install_command(name)}.")
    has_path = any(NOT_A_WORD.search(name) for name in (project, group or "_"))
    if cfg.tracker.names and has_path:
        raise UserError(
            f"tracker.project={project}, tracker.group={group}: each must be one word. wandb has tracker.entity."
        )


def validate_check_packages(cfg: Config) -> None:
    """Raise UserError if a source's check needs a package that is missing."""
    for source in (*cfg.data.sources, *cfg.outside):
        if source.check == "math" and find_spec("math_verify") is None:
            raise UserError(f"check: math needs math-verify: {install_command('math')}.")


def validate_extras(cfg: Config) -> None:
    """Raise UserError for settings of extras that cannot work."""
    for name, block in vars(cfg).items():
        if isinstance(block, Block):
            block.validate(is_target=cfg.stage == name)
