"""Refuse settings of data that cannot work: how rows are formed and audited, how files are read, how sources mix."""

import math
from typing import Any

from stages.config.blocks.data import Audit, Form, Source
from stages.config.blocks.labels import Label
from stages.config.choices import AUDIT_ACTIONS, AUDIT_CODES, AUDIT_FIXES, AUDIT_THRESHOLDS, Command, Split
from stages.config.errors import Errors, UserError, one_of
from stages.config.schema import Config
from stages.store import plugins
from stages.store.source_files import locate


def refuse(cfg: Config) -> None:
    """Raise UserError for the rows and sources that cannot be formed, audited, read or mixed as they are to be."""
    errors = Errors()
    with errors:
        validate_form(cfg.data.form)
        validate_audit(cfg)
    for i, source in enumerate(cfg.data.sources):
        with errors:
            validate_shares(f"data.sources[{i}].splits", source.splits)
    with errors:
        validate_mixture(cfg)
    for key, read in [*of_run(cfg), ("label", cfg.label)]:
        with errors:
            validate_reading(key, read)
    errors.refuse()


def of_run(cfg: Config) -> list[tuple[str, Source | Label]]:
    """Return every source of files, with its key."""
    given = {"data.sources": cfg.data.sources, "outside": cfg.outside, "eval.retention": cfg.eval.retention}
    found: list[tuple[str, Source | Label]] = [("reward.source", cfg.reward.source)] if cfg.reward.source.path else []
    return found + [(f"{key}[{i}]", source) for key, those in given.items() for i, source in enumerate(those)]


def validate_form(form: Form) -> None:
    """Raise UserError where there are more or fewer system prompts than their policy takes."""
    given, policy = len(form.system_prompts or []), form.system or "keep"
    wanted = {"insert": (given == 1, "one"), "vary": (given > 1, "two or more, to draw from")}
    enough, told = wanted.get(policy, (given == 0, "none"))
    if not enough:
        raise UserError(f"data.form.system={policy} takes {told} of data.form.system_prompts, and there are {given}.")


def validate_audit(cfg: Config) -> None:
    """Raise UserError for an audit that cannot work, or that holds rows against nothing."""
    validate_codes(cfg.data.audit)
    audit, contaminated = cfg.data.audit, cfg.data.audit.actions.get("contaminated", "keep")
    if audit.against and "contaminated" not in audit.actions and cfg.stage != Command.audit:
        raise UserError(
            "data.audit.against does nothing: data.audit.actions={contaminated: drop} takes those rows out."
        )
    if contaminated != "keep" and not audit.against:
        raise UserError("data.audit.actions.contaminated: by what? data.audit.against=[{path: FILE}] says it.")


def validate_codes(audit: Audit) -> None:
    """Raise UserError for the audit's codes, actions and thresholds."""
    one_of("data.audit.actions", audit.actions, AUDIT_CODES)
    one_of("data.audit.actions", audit.actions.values(), AUDIT_ACTIONS)
    one_of("data.audit.thresholds", audit.thresholds, AUDIT_THRESHOLDS)
    for code, action in audit.actions.items():
        if action == "fix" and code not in AUDIT_FIXES:
            raise UserError(
                f"data.audit.actions.{code}=fix: there is no one way to mend that, but for {', '.join(AUDIT_FIXES)}. "
                "Drop or quarantine them."
            )
    for code, threshold in audit.thresholds.items():
        low, high = AUDIT_THRESHOLDS[code]
        if not low <= threshold <= high:
            raise UserError(f"data.audit.thresholds.{code}={threshold:g} must be from {low:g} to {high:g}.")


def validate_reading(key: str, read: Source | Label) -> None:
    """Raise UserError for the format, the columns, the task and the hub's keys of one source."""
    one_of(f"{key}.format", [read.format] if read.format else [], plugins.words("formats", "Format"))
    for role, column in read.columns.items():
        if not (column is None or is_name(column) or (isinstance(column, list) and all(map(is_name, column)))):
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


def is_name(column: Any) -> bool:
    return isinstance(column, str) and bool(column.strip())


def validate_shares(key: str, splits: dict[str, float]) -> None:
    """Raise UserError for a source's shares of the splits."""
    one_of(key, splits, list(Split))
    shares = splits.values()
    if not all(math.isfinite(share) and 0 <= share <= 1 for share in shares) or sum(shares) > 1 + 1e-9:
        raise UserError(f"{key}={splits}: each is a share from 0 to 1, and all together no more than 1.")
    if splits and not any(shares):
        raise UserError(f"{key}={splits}: no row of the source would be used. Leave the source out, or raise a share.")


def validate_mixture(cfg: Config) -> None:
    """Raise UserError for the first setting that cannot work: by weight come all sources or none, and only those mix
    that SFT learns from."""
    by_key = {f"data.sources[{i}]": source for i, source in enumerate(cfg.data.sources)}
    to_learn = {key: source for key, source in by_key.items() if source.shares.get(Split.sft)}
    weighed = [key for key, source in to_learn.items() if source.weight]
    for key, source in of_run(cfg):
        for name in ("weight", "epochs"):
            if isinstance(source, Source) and vars(source)[name] and key not in to_learn and key != "reward.source":
                raise UserError(f"{key}.{name} is for rows that SFT learns from, and this source brings none.")
    if weighed and len(weighed) < len(to_learn):
        lacking = next(key for key in to_learn if key not in weighed)
        raise UserError(f"{lacking}.weight is missing: {weighed[0]} has one, and shares are of all sources for sft.")
    mixture = cfg.data.mixture
    if (mixture.cap or mixture.quotas) and not to_learn:
        raise UserError("data.mixture mixes rows of data.sources for sft, and there are none.")
    one_of("data.mixture.quotas", mixture.quotas, sorted({source.of_task for source in to_learn.values()}))
    if fewest := [task for task, quota in mixture.quotas.items() if quota < 1]:
        raise UserError(f"data.mixture.quotas.{fewest[0]} must be at least 1. To have no row of it, leave it out.")
