"""Checks of `data` and `sample` that need files of this machine or several blocks: sources of rows and candidates."""

from collections.abc import Callable
from functools import partial

from stages.config.blocks.data import Source
from stages.config.blocks.endpoints import Endpoint
from stages.config.blocks.labels import PreferenceFile, SourceOrder
from stages.config.blocks.sampling import OWN_PROMPTS, Member
from stages.config.choices import Align, Command
from stages.config.errors import UserError, check_all, require_known
from stages.config.schema import POLICY_STAGES, Config, Target
from stages.store import plugins
from stages.store.source_files import locate

# Targets that are made of labelled candidates or rollouts
LABELLED = [
    Command.plan,
    *POLICY_STAGES,
    *map(Target, ["label", "pairs", "unpaired", "reference", "eval", "report"]),
]
# keys of a source whose candidates a model samples
DRAWN = ("sampler", "temperature", "top_p", "n")


def validate_data(cfg: Config) -> None:
    """Raise one UserError for all settings of data that cannot work."""
    checks: list[Callable[[], None]] = [cfg.data.check, partial(validate_audit, cfg)]
    for key, source in run_sources(cfg):
        checks.append(partial(source.check_keys, key))
        checks.append(partial(validate_local, key, source))
    check_all(checks)


def run_sources(cfg: Config) -> list[tuple[str, Source]]:
    """Return every file source of the configuration with its key, such as `data.sources[0]`."""
    sources = [(cfg.data.block(i), source) for i, source in enumerate(cfg.data.sources)]
    if cfg.reward.source.path:
        sources.append(("reward.source", cfg.reward.source))
    if isinstance(cfg.label, PreferenceFile):
        sources.append(("label", cfg.label.source))
    sources += [(f"outside[{i}]", source) for i, source in enumerate(cfg.outside)]
    sources += [(f"eval.retention[{i}]", source) for i, source in enumerate(cfg.eval.retention)]
    return sources


def validate_audit(cfg: Config) -> None:
    """Raise UserError for test sets that an audit is held against, without an action for their prompts."""
    audit = cfg.data.audit
    if audit.against and "contaminated" not in audit.actions and cfg.stage != Command.audit:
        raise UserError(
            "data.audit.against has no effect alone. Add data.audit.actions={contaminated: drop}."
        )


def validate_local(key: str, source: Source) -> None:
    """Raise UserError for a file of this machine with keys of a hub dataset."""
    is_of_hub = source.revision or source.subset or source.hub_split != Source.hub_split
    if is_of_hub and key != "label" and is_local(source.path, f"{key}.path"):
        raise UserError(
            f"{key}.path={source.path} is a local path. Leave revision, subset and hub_split out."
        )


def is_local(path: str | None, key: str) -> bool:
    """Return whether a path exists on this machine. If it exists nowhere, the stage that reads it reports that."""
    try:
        return path is not None and locate(path, key) is not None
    except UserError:
        return False


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
    sample, samplers = cfg.sample, plugins.plugin_words("samplers", "Sampler")
    require_known("sample.sampler", [sample.sampler], [*samplers, OWN_PROMPTS])
    if sample.brings_prompts and not sample.file:
        raise UserError(
            "sample=file needs a file of prompts and completions. Add sample.file=FILE."
        )
    if sample.brings_prompts and "verifier" in cfg.label.names:
        raise UserError(
            "label=verifier needs prompts with checks, and the prompts of sample=file have none. Use another label, or "
            "leave sample=file out, if sample.file answers prompts of data."
        )
    if lacks_checks(cfg):
        raise UserError(
            "label=verifier needs prompts with checks. Set check of a source with prompts for preference (data.sources), "
            "or use label=judge (for GRPO with label.kind=pointwise), label=reward_model or, without GRPO, label=human."
        )
    if sample.file and (sample.pool or sample.own):
        other = "sample.pool" if sample.pool else "sample.own"
        raise UserError(
            f"sample.file and {other} exclude each other. Use sample.pool for several sources."
        )
    if (sample.file or sample.pool) and cfg.label.brings_pool:
        raise UserError(
            "label=dataset: its file has the candidates. Leave out sample.file and sample.pool."
        )
    if isinstance(cfg.label, SourceOrder) and len(sample.pool or ()) < 2:
        raise UserError(
            "label=source_order needs two sources, the better one first: 'sample.pool=[{model: sft}, {model: base}]'."
        )
    require_known(
        "answer.sampler",
        [cfg.answer.sampler or "hf"],
        [word for word in samplers if word != "openai"],
    )
    for i, member in enumerate(sample.pool or ()):
        key = f"sample.pool[{i}]"
        if member in (sample.pool or [])[:i]:
            raise UserError(
                f"{key} repeats an earlier source, so its candidates would be copies. Leave it out."
            )
        if member.sampler:
            require_known(f"{key}.sampler", [member.sampler], samplers)
        validate_source(key, member)


def validate_source(key: str, member: Member) -> None:
    """Raise UserError unless a source is one of model, endpoint and file, without keys that only another one reads."""
    has_endpoint = member.endpoint != Endpoint()
    kinds = {"model": member.model, "endpoint": has_endpoint, "file": member.file}
    origins = [name for name, is_set in kinds.items() if is_set]
    if len(origins) > 1:
        raise UserError(
            f"{key} names {' and '.join(origins)}. Make each of them a separate source."
        )
    if member.file and (drawn := [name for name in DRAWN if getattr(member, name) is not None]):
        raise UserError(
            f"{key}.{drawn[0]} is about sampling, and {key}.file is already sampled. Leave it out."
        )
    if member.columns and not member.file:
        raise UserError(
            f"{key}.columns describes {key}.file, which is not set. Add the file, or leave columns out."
        )
    if has_endpoint and member.sampler not in (None, "openai"):
        raise UserError(
            f"{key}.endpoint needs sampler=openai, not {member.sampler}. Leave {key}.sampler out."
        )
