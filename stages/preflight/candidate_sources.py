"""Checks of `sample`: sources of a pool that cannot work, and candidate files combined with keys about sampling."""

from importlib.util import find_spec

from stages.config.blocks.endpoints import Endpoint
from stages.config.blocks.labels import SOURCE_ORDER
from stages.config.blocks.sampling import MIXED, OWN_PROMPTS, Member, Sample
from stages.config.errors import UserError, require_known
from stages.config.installation import install_command
from stages.config.schema import Config
from stages.store import plugins

DRAWN = ("sampler", "temperature", "top_p", "n")  # keys of a source whose candidates a model samples


def validate_sample(cfg: Config) -> None:
    """Raise UserError for the first setting of `sample` that cannot work."""
    sample, samplers = cfg.sample, plugins.plugin_words("samplers", "Sampler")
    require_known("sample.sampler", [sample.sampler], [*samplers, OWN_PROMPTS])
    if sample.brings_prompts:
        require_own_prompts(cfg)
    if sample.file and (sample.pool or sample.own):
        other = "sample.pool" if sample.pool else "sample.own"
        raise UserError(f"sample.file and {other} exclude each other. Use sample.pool for several sources.")
    if (sample.file or sample.pool) and cfg.label.brings_pool:
        raise UserError("label=dataset: its file has the candidates. Leave out sample.file and sample.pool.")
    if (sample.until_pair or sample.draw == MIXED) and cfg.by_labels and not cfg.label.brings_pool:
        validate_draws(cfg)
    if cfg.label.labelers == [SOURCE_ORDER] and len(sample.pool or ()) < 2:
        raise UserError(
            "label=source_order needs two sources, the better one first: 'sample.pool=[{model: sft}, {model: base}]'."
        )
    for block in sample.members:
        require_openvino(block)
    for i, member in enumerate(sample.pool or ()):
        key = f"sample.pool[{i}]"
        if member in (sample.pool or [])[:i]:
            raise UserError(f"{key} repeats an earlier source, so its candidates would be copies. Leave it out.")
        if member.sampler:
            require_known(f"{key}.sampler", [member.sampler], samplers)
        validate_source(key, member)


def validate_draws(cfg: Config) -> None:
    """Raise UserError if no score says which candidates are right, or if no model draws those that depend on it."""
    sample, label = cfg.sample, cfg.label
    key = f"sample.until_pair={sample.until_pair}" if sample.until_pair else f"sample.draw={sample.draw}"
    if any(block.file for block in sample.members) or (sample.until_pair and sample.pool):
        raise UserError(f"{key}: only the policy draws so. Leave out sample.file and sample.pool.")
    # A reward model's quantiles of one draw cannot be compared with another's.
    if label.prefers or not {"reward_model", SOURCE_ORDER}.isdisjoint(label.labelers):
        raise UserError(
            f"{key} needs a score that says if a candidate is right, which label={label.labeler} does not give. Use "
            "label=verifier, or label=judge with label.judge.kind=pointwise."
        )
    if not cfg.pairs.min_score:
        raise UserError(f"{key}: pairs.min_score=0 accepts every candidate. Set pairs.min_score=1 or another score.")
    if sample.draw == MIXED and not sample.prompts_per_round:
        raise UserError("sample.draw=mixed: rounds divide all prompts. Set sample.prompts_per_round=N to choose some.")


def require_own_prompts(cfg: Config) -> None:
    """Raise UserError if `sample=file` has no file, or a labeler that needs prompts with checks."""
    if not cfg.sample.file:
        raise UserError("sample=file needs a file of prompts and completions. Add sample.file=FILE.")
    if "verifier" in cfg.label.labelers:
        raise UserError(
            "label=verifier needs prompts with checks, and the prompts of sample=file have none. Use label=judge, "
            "label=human or label=reward_model. Or leave sample=file out, if sample.file answers prompts of data."
        )


def require_openvino(block: Sample) -> None:
    """Raise UserError if OpenVINO is not installed, or if its runtime asks for a GPU."""
    if block.sampler != "openvino" or block.file or block.own:
        return
    if find_spec("openvino_genai") is None:
        raise UserError(f"{block.key}.sampler=openvino needs its package: {install_command('openvino')}.")
    if block.runtime.device == "cuda":
        raise UserError(f"{block.key}.sampler=openvino needs the CPU. Use sample.runtime.device=cpu, or sample=hf.")


def validate_source(key: str, member: Member) -> None:
    """Raise UserError unless a source is one of model, endpoint and file, without keys that only another one reads."""
    has_endpoint = member.endpoint != Endpoint()
    kinds = {"model": member.model, "endpoint": has_endpoint, "file": member.file}
    origins = [name for name, is_set in kinds.items() if is_set]
    if len(origins) > 1:
        raise UserError(f"{key} names {' and '.join(origins)}. Make each of them a separate source.")
    if member.file and (drawn := [name for name in DRAWN if getattr(member, name) is not None]):
        raise UserError(f"{key}.{drawn[0]} is about sampling, and {key}.file is already sampled. Leave it out.")
    if member.columns and not member.file:
        raise UserError(f"{key}.columns describes {key}.file, which is not set. Add the file, or leave columns out.")
    if has_endpoint and member.sampler not in (None, "openai"):
        raise UserError(f"{key}.endpoint needs sampler=openai, not {member.sampler}. Leave {key}.sampler out.")
