"""Checks of amounts, as far as data and model are known before anything is built: batches larger than the data,
answers longer than the context, adapters of layers that the model lacks."""

from typing import Any

from stages.config.blocks.data import SPLIT_OF_GROUP
from stages.config.blocks.labels import Ensemble, RewardModel
from stages.config.blocks.objective import LoRA
from stages.config.blocks.sampling import DrawnCandidates
from stages.config.choices import Adapter, Split, Strategy
from stages.config.command_record import Object
from stages.config.commands import commands_in, commands_on
from stages.config.errors import UserError
from stages.config.schema import Config
from stages.config.stage_record import Phase
from stages.config.stage_table import DRAWING, Target, stages_of
from stages.preflight.model_files import model_config
from stages.store.sealed_json import Damaged
from stages.store.source_files import locate

ALL_LINEAR = "all-linear"
CONTEXT_KEYS = ("max_position_embeddings", "n_positions")
BEFORE_CANDIDATES = (*stages_of(Phase.start), *commands_in(Phase.start))
# commands that use what a run has built, maybe by SFT alone
ON_FINISHED_MODELS = commands_on(Object.model)
BEFORE_PAIRS = stages_of(Phase.candidates)


def validate_pairs(cfg: Config) -> None:
    """Raise UserError if there are too few prompts, or their candidates make no pairs or fewer than one batch."""
    has_own_pairs = cfg.label.brings_pool or cfg.sample.brings_prompts
    trains_on_file = cfg.stage == Target.reward and cfg.reward.source.path
    if (
        not cfg.learns_from_pairs
        or has_own_pairs
        or trains_on_file
        or cfg.stage in (*BEFORE_CANDIDATES, *ON_FINISHED_MODELS)
    ):
        return
    most_prompts = most_rows_of_split(cfg, Split.preference)
    needed_prompts = cfg.rounds * (cfg.sample.prompts_per_round or 1)
    if most_prompts is not None and most_prompts < needed_prompts:
        raise UserError(
            f"data.tasks.preference: sample needs {needed_prompts} prompts, and there are at most {most_prompts}. Raise it, or "
            "splits.preference of a source."
        )
    most_candidates = cfg.sample.most_candidates
    if most_candidates is None or cfg.stage in BEFORE_PAIRS:
        return
    assert isinstance(cfg.sample, DrawnCandidates)  # a file has any number of candidates
    if isinstance(cfg.label, RewardModel) and cfg.pairs.min_score >= 1:
        raise UserError(
            f"pairs.min_score={cfg.pairs.min_score:g}: scores of a reward model are below 1. Set pairs.min_score=0."
        )
    if most_candidates < 2:
        setting = "sample.pool draws " if cfg.sample.pool else "sample.candidates_per_prompt="
        raise UserError(
            f"{setting}{most_candidates}: a pair needs two candidates. Use more, or stop at stage=label."
        )
    if not cfg.sample.pool and not any(cfg.sample.temperatures[:most_candidates]):
        raise UserError(
            f"sample.temperatures={cfg.sample.temperatures}: all candidates of a prompt would be equal. Use [0.9]."
        )
    if most_prompts is not None:
        validate_pairs_fill_batch(cfg, most_prompts, most_candidates)


def validate_pairs_fill_batch(cfg: Config, most_prompts: int, most_candidates: int) -> None:
    """Raise UserError if the most pairs that the prompts can make are fewer than one batch."""
    limits = (most_prompts, cfg.sample.prompts, cfg.sample.prompts_per_round)
    sampled_prompts = min(limit for limit in limits if limit)
    # a labeler of the user's may prefer each of two in turn
    pairs_per_prompt = most_candidates * (most_candidates - 1)
    if cfg.pairs.strategy is Strategy.best_worst:
        pairs_per_prompt = 1
    most_pairs = sampled_prompts * min(pairs_per_prompt, cfg.pairs.max_per_prompt)
    training = "reward" if cfg.stage == Target.reward else "dpo"
    batch_size = vars(cfg)[training].batch_size
    if batch_size > most_pairs:
        raise UserError(
            f"{training}.batch_size={batch_size}: {sampled_prompts} prompts make at most {most_pairs} pairs. Lower it, or add prompts."
        )


def validate_rollouts(cfg: Config) -> None:
    """Raise UserError for labels that give no scores for draws, or fewer prompts than one step."""
    if not cfg.drawing:
        return
    title = next(iter(cfg.drawing.values())).objective.title
    if cfg.label.asked_people or not all(part.scores_alone for part in cfg.label.parts):
        raise UserError(
            f"{title} needs a score of every completion, which label={cfg.label.labeler} does not give. Use label=verifier, "
            "label=reward_model or label=judge with label.kind=pointwise."
        )
    for voter in cfg.label.members if isinstance(cfg.label, Ensemble) else []:
        if voter.labeler == "reward_model" and voter.veto is not None:
            raise UserError(
                f"label.members: rewards of {title} have no fixed scale for a veto. Take its veto away."
            )
    most_prompts = most_rows_of_split(cfg, Split.preference)
    for name, block in cfg.drawing.items():
        if most_prompts is not None and most_prompts < block.batch_size:
            raise UserError(
                f"{name}.batch_size={block.batch_size}: there are at most {most_prompts} prompts. Lower it, or raise "
                "data.tasks.preference."
            )


def most_rows_of_split(cfg: Config, split: Split) -> int | None:
    """Return the most rows that a split can have, or None if a source may hold any number."""
    rows = 0
    for group, count in cfg.data.generated.items():
        if SPLIT_OF_GROUP[group] == split:
            rows += count
    for source in cfg.data.sources:
        if source.shares.get(split):
            if source.rows is None or source.epochs or source.weight:
                return None  # it may hold any number
            rows += source.rows
    return rows


def validate_context_and_layers(cfg: Config) -> None:
    """Raise UserError for completions that leave no room for a prompt in the base model's context, or for adapters of
    layers that it does not have."""
    base_config = local_base_config(cfg)
    context_lengths = [base_config[key] for key in CONTEXT_KEYS if base_config.get(key)]
    generating_blocks = ["answer"]
    if isinstance(cfg.sample, DrawnCandidates):
        generating_blocks.append("sample")
    if cfg.selects_demonstrations:
        generating_blocks.append("select")
    generating_blocks += [name for name in cfg.trained if name in DRAWING]
    for block_name in generating_blocks:
        max_new_tokens = vars(cfg)[block_name].max_new_tokens
        if context_lengths and max_new_tokens >= context_lengths[0]:
            raise UserError(
                f"{block_name}.max_new_tokens={max_new_tokens}: the model's context has {context_lengths[0]} tokens. Lower it."
            )
    for block_name, block in cfg.trained.items():
        has_new_adapter = block.adapter in (Adapter.lora, Adapter.qlora)
        if base_config and has_new_adapter and block.lora.target_modules != [ALL_LINEAR]:
            require_layers(block_name, block.lora, base_config)


def local_base_config(cfg: Config) -> dict[str, Any]:
    """Return the base model's config.json, or {} if it is on the hub or cannot be read. Raise Damaged for values that no
    model can have."""
    if cfg.needs_no_model:
        return {}
    try:
        is_on_hub = cfg.model.path and locate(cfg.model.path, "model.path") is None
        if is_on_hub:
            return {}
        config = model_config(cfg.model) or {}
    except Damaged:  # its values are those of no model
        raise
    except (OSError, ValueError, UserError):
        return {}
    return config.get("text_config") or config


def require_layers(block_name: str, lora: LoRA, shape: dict[str, Any]) -> None:
    """Raise UserError if peft does not find the layers in a model of this shape without weights."""
    # imported here, as they take seconds
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from stages.training.adapters import attach_new_adapter

    with torch.device("meta"):
        try:
            weightless_model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape))
        except (KeyError, TypeError, ValueError):
            return  # the stage `base` says why the model cannot be loaded
        try:
            attach_new_adapter(weightless_model, lora, seed=0)
        except UserError as error:
            raise UserError(f"{block_name}.{error}") from error
