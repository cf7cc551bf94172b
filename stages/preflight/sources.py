"""Checks of `data` and `sample` that need files of this machine or several blocks: sources of rows and candidates."""

from collections.abc import Callable
from functools import partial

from stages.config.blocks.data import Source
from stages.config.blocks.labels import PreferenceDataset, SourceOrder
from stages.config.blocks.sampling import DrawnCandidates
from stages.config.choices import Split
from stages.config.errors import UserError, check_all, require_known
from stages.config.schema import Config
from stages.config.stage_record import Phase
from stages.config.stage_table import Target, stages_of
from stages.store import plugins

# Targets that are made of labelled candidates or rollouts
LABELLED = (
    "plan",
    Target.label,
    *stages_of(Phase.preferences, Phase.policy),
    Target.eval,
    Target.report,
)


def validate_data(cfg: Config) -> None:
    """Raise one UserError for all settings of data that cannot work."""
    checks: list[Callable[[], None]] = [cfg.data.check]
    for key, source in keyed_sources(cfg):
        checks.append(partial(source.check_splits_and_columns, key))
    check_all(checks)


def keyed_sources(cfg: Config) -> list[tuple[str, Source]]:
    """Return every file source of the configuration with its key, such as `data.sources[0]`."""
    sources = [(cfg.data.source_setting(i), source) for i, source in enumerate(cfg.data.sources)]
    if cfg.reward.source.path:
        sources.append(("reward.source", cfg.reward.source))
    if isinstance(cfg.label, PreferenceDataset):
        sources.append(("label", cfg.label.source))
    sources += [(f"outside[{i}]", source) for i, source in enumerate(cfg.outside)]
    sources += [(f"eval.retention[{i}]", source) for i, source in enumerate(cfg.eval.retention)]
    return sources


def needs_labels(cfg: Config) -> bool:
    """Return True if the policy or an arm learns from labelled answers, given ones or draws of its own."""
    return cfg.learns_from_labels or bool(cfg.drawing)


def unasked_files_message(cfg: Config) -> str | None:
    """Return the warning that the policy learns from answers to generated prompts alone, although the data has files of
    the user; None if it does not."""
    brings_prompts = cfg.candidates_bring_prompts and not cfg.drawing
    asks_a_file = any(source.shares.get(Split.preference) for source in cfg.data.sources)
    if not needs_labels(cfg) or brings_prompts or asks_a_file or not cfg.data.sources:
        return None
    file = cfg.data.sources[0].path
    splits = (
        f"'{cfg.data.source_setting(0)}.splits={{sft: 0.5, preference: 0.45, validation: 0.05}}'"
    )
    return (
        f"{file}: SFT learns from it, and {cfg.align} from answers to the prompts that data.tasks generates, not to "
        f"those of the file. Type {splits} data.tasks.preference=0 to ask these, with a label that can judge the answers."
    )


def verifier_lacks_checks(cfg: Config) -> bool:
    """Return whether label=verifier would score only prompts without checks."""
    if cfg.label.names != ["verifier"] or cfg.stage not in LABELLED or cfg.data.own:
        return False
    has_checked_source = any(
        source.check and source.shares.get("preference") for source in cfg.data.sources
    )
    is_without_checks = not has_checked_source and not cfg.generates_prompts("preference")
    return needs_labels(cfg) and is_without_checks


def validate_sample(cfg: Config) -> None:
    """Raise UserError for the first setting of `sample` that cannot work, alone or with the labeler, or for an unknown
    sampler of answers."""
    sample = cfg.sample
    sample.check()
    if sample.brings_prompts and "verifier" in cfg.label.names:
        raise UserError(
            "label=verifier needs prompts with checks, and those of sample=file have none. Use another label, or "
            "sample.own_prompts=false."
        )
    if verifier_lacks_checks(cfg):
        raise UserError(
            "label=verifier needs prompts with checks. Set check of a source with prompts for preference (data.sources), "
            "or use label=judge (for draws with label.kind=pointwise) or label=reward_model."
        )
    names_candidates = not isinstance(sample, DrawnCandidates) or sample.pool
    if cfg.label.brings_pool and names_candidates:
        raise UserError("label=dataset has the candidates. Leave out sample.file and sample.pool.")
    if isinstance(cfg.label, SourceOrder) and len(sample.members) < 2:
        raise UserError(
            "label=source_order needs two sources, the better one first: 'sample.pool=[{model: sft}, {model: base}]'."
        )
    local_samplers = [
        name for name in plugins.plugin_words("samplers", "Sampler") if name != "openai"
    ]
    require_known("answer.sampler", [cfg.answer.sampler or "hf"], local_samplers)
