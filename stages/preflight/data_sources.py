"""What a type cannot say of how files are read: formats, tasks, and shares of the splits."""

import math
from typing import Any

from stages.config.blocks.data import Source
from stages.config.blocks.labels import Label
from stages.config.choices import Split
from stages.config.errors import Errors, UserError, one_of
from stages.config.schema import Config
from stages.preflight import mixture
from stages.store import plugins
from stages.store.source_files import locate


def refuse(cfg: Config) -> None:
    """Raise UserError for the sources that cannot be read or mixed as they are to be."""
    errors = Errors()
    for i, source in enumerate(cfg.data.sources):
        with errors:
            shared_out(f"data.sources[{i}].splits", source.splits)
    with errors:
        mixture.refuse(cfg, dict(of_run(cfg)))
    for key, read in [*of_run(cfg), ("label", cfg.label)]:
        with errors:
            read_as(key, read)
    errors.refuse()


def of_run(cfg: Config) -> list[tuple[str, Source | Label]]:
    """Return every source of files, with its key."""
    given = {"data.sources": cfg.data.sources, "outside": cfg.outside, "eval.retention": cfg.eval.retention}
    found: list[tuple[str, Source | Label]] = [("reward.source", cfg.reward.source)] if cfg.reward.source.path else []
    return found + [(f"{key}[{i}]", source) for key, those in given.items() for i, source in enumerate(those)]


def read_as(key: str, read: Source | Label) -> None:
    """The format, the task and the hub's keys of one source."""
    one_of(f"{key}.format", [read.format] if read.format else [], plugins.words("formats", "Format"))
    for role, column in read.columns.items():
        if not (column is None or named(column) or (isinstance(column, list) and all(map(named, column)))):
            raise UserError(f"{key}.columns={{{role}: {column}}}: a column is its name, a list of names, or null.")
    if not isinstance(read, Source):
        return
    if read.format == "phrased" and not read.task:
        raise UserError(
            f"{key}.format=phrased: by which task? {key}.task=TASK says it, and is enough alone: "
            f"{', '.join(plugins.labelled())}, or a YAML file."
        )
    if read.task and not plugins.user_path(read.task).is_file():
        one_of(f"{key}.task", [read.task], plugins.labelled())
    of_hub = read.revision or read.subset or read.hub_split != Source.hub_split
    if of_hub and is_local(read.path, f"{key}.path"):
        raise UserError(
            f"{key}.path={read.path} is no dataset of the hub, which alone has a revision, a subset and a hub_split. "
            "Leave these out."
        )


def is_local(path: str | None, key: str) -> bool:
    """Return whether a path lies on this machine. If it exists nowhere, the stage that reads it reports that."""
    try:
        return path is not None and locate(path, key) is not None
    except UserError:
        return False


def named(column: Any) -> bool:
    return isinstance(column, str) and bool(column.strip())


def shared_out(key: str, splits: dict[str, float]) -> None:
    """A source's shares of the splits."""
    one_of(key, splits, list(Split))
    shares = splits.values()
    if not all(math.isfinite(share) and 0 <= share <= 1 for share in shares) or sum(shares) > 1 + 1e-9:
        raise UserError(f"{key}={splits}: each is a share from 0 to 1, and all together no more than 1.")
    if splits and not any(shares):
        raise UserError(f"{key}={splits}: no row of the source would be used. Leave the source out, or raise a share.")
