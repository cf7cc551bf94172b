"""Checks of `data` and `sample`: how rows are formed, audited, read and mixed, and sources of candidates."""

import math
from functools import partial
from typing import Any

from stages.config.blocks.data import Audit, Form, Source
from stages.config.blocks.labels import PreferenceFile, SourceOrder
from stages.config.blocks.sampling import Drawn
from stages.config.choices import (
    AUDIT_ACTIONS,
    AUDIT_CODES,
    AUDIT_FIXES,
    AUDIT_THRESHOLDS,
    Align,
    Command,
    Split,
)
from stages.config.errors import UserError, check_all, require_known
from stages.config.installation import read_beside
from stages.config.schema import POLICY_STAGES, Config, Target
from stages.store import plugins
from stages.store.source_files import locate

TEXTS = read_beside(__file__)
# Targets that are made of labelled candidates or rollouts
LABELLED = [
    Command.plan,
    *POLICY_STAGES,
    *map(Target, ["label", "pairs", "unpaired", "reference", "eval", "report"]),
]


def validate_data(cfg: Config) -> None:
    """Raise one UserError for all settings of data that cannot work."""
    form = [partial(validate_form, cfg.data.form), partial(validate_audit, cfg)]
    shares = [
        partial(validate_shares, f"{cfg.data.block(i)}.splits", s.splits)
        for i, s in enumerate(cfg.data.sources)
    ]
    preferences = [("label", cfg.label)] if isinstance(cfg.label, PreferenceFile) else []
    readings = [partial(validate_reading, *each) for each in [*run_sources(cfg), *preferences]]
    check_all([*form, *shares, partial(validate_mixture, cfg), *readings])


def run_sources(cfg: Config) -> list[tuple[str, Source | PreferenceFile]]:
    """Return every file source of the configuration with its key, such as `data.sources[0]`."""
    of_data = [(cfg.data.block(i), source) for i, source in enumerate(cfg.data.sources)]
    lists = {
        "outside": cfg.outside,
        "eval.retention": cfg.eval.retention,
    }
    reward = {"reward.source": cfg.reward.source} if cfg.reward.source.path else {}
    listed = [
        (f"{key}[{i}]", source)
        for key, sources in lists.items()
        for i, source in enumerate(sources)
    ]
    return [*reward.items(), *of_data, *listed]


def validate_form(form: Form) -> None:
    """Raise UserError if the number of system prompts does not fit `data.form.system`."""
    count, policy = len(form.system_prompts or []), form.system or "keep"
    amounts = {"insert": (count == 1, "one"), "vary": (count > 1, "two or more")}
    is_right, amount = amounts.get(policy, (count == 0, "none"))
    if not is_right:
        raise UserError(
            f"data.form.system={policy} needs {amount} in data.form.system_prompts, which has {count}."
        )


def validate_audit(cfg: Config) -> None:
    """Raise UserError for audit settings that cannot work or have no effect."""
    validate_codes(cfg.data.audit)
    audit, contaminated = cfg.data.audit, cfg.data.audit.actions.get("contaminated", "keep")
    idle = [code for code in audit.thresholds if code not in audit.actions]
    if idle and cfg.stage != Command.audit:
        raise UserError(
            f"data.audit.thresholds.{idle[0]} has no effect alone. Add data.audit.actions={{{idle[0]}: drop}}."
        )
    if audit.against and "contaminated" not in audit.actions and cfg.stage != Command.audit:
        raise UserError(
            "data.audit.against has no effect alone. Add data.audit.actions={contaminated: drop}."
        )
    if contaminated != "keep" and not audit.against:
        raise UserError(
            "data.audit.actions.contaminated needs test sets. Add data.audit.against=[{path: FILE}]."
        )


def validate_codes(audit: Audit) -> None:
    """Raise UserError for an unknown audit code or action, or a threshold outside its range."""
    require_known("data.audit.actions", audit.actions, AUDIT_CODES)
    require_known("data.audit.actions", audit.actions.values(), AUDIT_ACTIONS)
    require_known("data.audit.thresholds", audit.thresholds, AUDIT_THRESHOLDS)
    for code, action in audit.actions.items():
        if action == "fix" and code not in AUDIT_FIXES:
            raise UserError(
                f"data.audit.actions.{code}=fix: fix is only for {', '.join(AUDIT_FIXES)}. Use drop."
            )
    for code, threshold in audit.thresholds.items():
        low, high = AUDIT_THRESHOLDS[code]
        if not low <= threshold <= high:
            raise UserError(
                f"data.audit.thresholds.{code}={threshold:g} must be from {low:g} to {high:g}."
            )


def validate_reading(key: str, block: Source | PreferenceFile) -> None:
    """Raise UserError for an unknown format, column, task or hub key of one source."""
    require_known(
        f"{key}.format",
        [block.format] if block.format else [],
        plugins.plugin_words("formats", "Format"),
    )
    for role, column in block.columns.items():
        if not (
            column is None
            or is_name(column)
            or (isinstance(column, list) and all(map(is_name, column)))
        ):
            raise UserError(
                f"{key}.columns={{{role}: {column}}}: a column must be a name, a list of names, or null."
            )
    if not isinstance(block, Source):
        return
    if block.format == "phrased" and not block.task:
        raise UserError(
            TEXTS["no task"].format(key=key, tasks=", ".join(plugins.label_task_names()))
        )
    if block.task and not plugins.user_path(block.task).is_file():
        require_known(f"{key}.task", [block.task], plugins.label_task_names())
    of_hub = block.revision or block.subset or block.hub_split != Source.hub_split
    if of_hub and is_local(block.path, f"{key}.path"):
        raise UserError(TEXTS["local path"].format(key=key, path=block.path))


def is_local(path: str | None, key: str) -> bool:
    """Return whether a path exists on this machine. If it exists nowhere, the stage that reads it reports that."""
    try:
        return path is not None and locate(path, key) is not None
    except UserError:
        return False


def is_name(column: Any) -> bool:
    return isinstance(column, str) and bool(column.strip())


def validate_shares(key: str, splits: dict[str, float]) -> None:
    """Raise UserError for unknown splits, or shares outside 0 to 1, summing above 1, or all zero."""
    require_known(key, splits, list(Split))
    shares = splits.values()
    if (
        not all(math.isfinite(share) and 0 <= share <= 1 for share in shares)
        or sum(shares) > 1 + 1e-9
    ):
        raise UserError(f"{key}={splits}: each share must be from 0 to 1, and their sum at most 1.")
    if splits and not any(shares):
        raise UserError(f"{key}={splits}: every share is 0. Raise one, or leave the source out.")


def validate_mixture(cfg: Config) -> None:
    """Raise UserError for weights, caps or quotas without rows for SFT, or a weight that only some sources have."""
    by_key = {cfg.data.block(i): source for i, source in enumerate(cfg.data.sources)}
    to_learn = {key: source for key, source in by_key.items() if source.shares.get(Split.sft)}
    weighed = [key for key, source in to_learn.items() if source.weight]
    for key, source in run_sources(cfg):
        for name in ("weight", "epochs"):
            if (
                isinstance(source, Source)
                and vars(source)[name]
                and key not in to_learn
                and key != "reward.source"
            ):
                raise UserError(
                    f"{key}.{name} is only for sources with rows for sft. Leave it out."
                )
    if weighed and len(weighed) < len(to_learn):
        missing_key = next(key for key in to_learn if key not in weighed)
        raise UserError(
            f"{missing_key}.weight is missing. Every source for sft needs one if {weighed[0]} has one."
        )
    mixture = cfg.data.mixture
    if (mixture.cap or mixture.quotas) and not to_learn:
        raise UserError(
            "data.mixture mixes the data.sources with rows for sft, and there are none. Leave it out."
        )
    require_known(
        "data.mixture.quotas",
        mixture.quotas,
        sorted({source.task_name for source in to_learn.values()}),
    )
    if empty_tasks := [task for task, quota in mixture.quotas.items() if quota < 1]:
        raise UserError(
            f"data.mixture.quotas.{empty_tasks[0]} must be at least 1. For no row, leave the source out."
        )


def lacks_checks(cfg: Config) -> bool:
    """Return True if label=verifier would score only prompts without checks, after hours of training perhaps."""
    if (
        cfg.label.names != ["verifier"]
        or cfg.stage not in LABELLED
        or cfg.sample.brings_prompts
        or cfg.data.own
    ):
        return False
    checked = any(source.check and source.shares.get("preference") for source in cfg.data.sources)
    return (
        (cfg.by_labels or Align.grpo in cfg.objectives)
        and not checked
        and not cfg.generates("preference")
    )


def validate_sample(cfg: Config) -> None:
    """Raise UserError for the first setting of `sample` that cannot work."""
    sample = cfg.sample
    sample.check()
    if sample.brings_prompts and "verifier" in cfg.label.names:
        raise UserError(
            "label=verifier needs prompts with checks, and the prompts of sample=file have none. Use label=judge, "
            "label=human or label=reward_model. Or set sample.own_prompts=false, if sample.file answers prompts of data."
        )
    if lacks_checks(cfg):
        raise UserError(TEXTS["no check"])
    if cfg.label.brings_pool and not (isinstance(sample, Drawn) and not sample.pool):
        raise UserError(
            "label=dataset: its file has the candidates. Leave out sample.file and sample.pool."
        )
    if isinstance(cfg.label, SourceOrder) and len(sample.members) < 2:
        raise UserError(TEXTS["one source"])
    samplers = [name for name in plugins.plugin_words("samplers", "Sampler") if name != "openai"]
    require_known("answer.sampler", [cfg.answer.sampler or "hf"], samplers)
