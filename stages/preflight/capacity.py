"""Checks of amounts, as far as data and model are known before anything is built: batches larger than the data,
answers longer than the context, adapters wider than the model."""

from functools import partial
from typing import Any

from stages.config.blocks.data import SPLIT_OF_GROUP
from stages.config.blocks.labels import Ensemble, OwnLabeler
from stages.config.blocks.sampling import Drawn
from stages.config.blocks.training import SFT, LoRA, Training
from stages.config.choices import Adapter, Align, Command, Sharding, Split, Strategy
from stages.config.errors import UserError, check_all
from stages.config.schema import Config, Target
from stages.preflight.model_files import model_config
from stages.store.sealed_json import Damaged
from stages.store.source_files import locate

ALL_LINEAR = "all-linear"
CONTEXT = ("max_position_embeddings", "n_positions")
BEFORE_SFT = (Target.base, Target.source, Target.data)
BEFORE_CANDIDATES = (Command.audit, *BEFORE_SFT, Target.sft)
BEFORE_PAIRS = (Target.sample, Target.pool, Target.label)


def validate_rows(cfg: Config) -> None:
    """Raise UserError if SFT has no rows, or fewer than one batch. The rows of a file are not counted yet."""
    if not isinstance(cfg.sft, SFT) or cfg.without_model or cfg.stage in BEFORE_SFT:
        return
    row_limit = split_rows(cfg, Split.sft)
    if row_limit == 0:
        raise UserError("sft has no rows. Raise data.tasks.sft, or splits.sft of a source.")
    if row_limit is not None and cfg.sft.batch_size > row_limit:
        raise UserError(
            f"sft.batch_size={cfg.sft.batch_size}: sft has at most {row_limit} rows. Lower it."
        )


def validate_pairs(cfg: Config) -> None:
    """Raise UserError if there are too few prompts, or their candidates make no pairs or fewer than one batch."""
    has_own_pairs = cfg.label.brings_pool or cfg.sample.brings_prompts
    trains_on_file = cfg.stage == Target.reward and cfg.reward.source.path
    if not cfg.by_pairs or has_own_pairs or trains_on_file or cfg.stage in BEFORE_CANDIDATES:
        return
    prompts = split_rows(cfg, Split.preference)
    if prompts == 0:
        raise UserError(
            "sample has no prompts. Raise data.tasks.preference, or splits.preference of a source."
        )
    needed = cfg.rounds * (cfg.sample.prompts_per_round or 0)
    if prompts is not None and prompts < needed:
        raise UserError(
            f"sample.prompts_per_round={cfg.sample.prompts_per_round}: rounds={cfg.rounds} needs {needed} prompts, and "
            f"there are at most {prompts}. Lower one of the two, or raise data.tasks.preference."
        )
    candidates = cfg.sample.most
    if candidates is None or cfg.stage in BEFORE_PAIRS:
        return
    assert isinstance(cfg.sample, Drawn)  # a file has any number of candidates
    validate_candidates(cfg.sample, candidates)
    if prompts is not None:
        validate_batch(cfg, prompts, candidates)


def validate_candidates(sample: Drawn, candidates: int) -> None:
    """Raise UserError if the candidates of a prompt cannot differ."""
    if candidates < 2:
        setting = "sample.pool draws " if sample.pool else "sample.candidates_per_prompt="
        raise UserError(
            f"{setting}{candidates}: a pair needs two candidates. Use 2 or more, or stop at stage=label."
        )
    if not sample.pool and not any(sample.temperatures[:candidates]):
        raise UserError(
            f"sample.temperatures={sample.temperatures} is greedy, so all candidates of a prompt would be equal. "
            "Use a temperature above 0, such as [0.9]."
        )


def validate_batch(cfg: Config, prompts: int, candidates: int) -> None:
    """Raise UserError if the pairs of all prompts are fewer than one batch."""
    limits = (prompts, cfg.sample.prompts, cfg.sample.prompts_per_round)
    sampled = min(limit for limit in limits if limit)
    contrasts = candidates * (candidates - 1)
    if not isinstance(cfg.label, OwnLabeler):  # which may prefer each of two in turn
        contrasts //= 2
    best_worst = cfg.pairs.strategy is Strategy.best_worst
    per_prompt = 1 if best_worst else cfg.pairs.max_per_prompt
    pairs = sampled * min(per_prompt, contrasts)
    name = "reward" if cfg.stage == Target.reward else "dpo"
    batch_size = vars(cfg)[name].batch_size
    if batch_size > pairs:
        raise UserError(
            f"{name}.batch_size={batch_size}: there are at most {pairs} pairs, from {sampled} prompts with {candidates} "
            f"candidates and {per_prompt} pairs each. Lower it, or add prompts."
        )


def validate_rollouts(cfg: Config) -> None:
    """Raise UserError for settings with which GRPO cannot sample, cannot score, or has fewer prompts than one step."""
    if Align.grpo not in cfg.objectives:
        return
    grpo = cfg.grpo
    if cfg.label.asks or not all(part.scores_alone for part in cfg.label.parts):
        raise UserError(
            f"GRPO needs a score of every completion, which label={cfg.label.labeler} does not give. Use label=verifier, "
            "label=reward_model, label=judge with label.kind=pointwise, or an ensemble of these."
        )
    for voter in cfg.label.members if isinstance(cfg.label, Ensemble) else []:
        if voter.labeler == "reward_model" and voter.veto is not None:
            raise UserError(
                "label.members: GRPO reads the reward model's own rewards, which have no fixed scale for a veto. Take "
                "its veto away."
            )
    if grpo.runtime.sharding is Sharding.zero3:
        raise UserError(
            "GRPO samples from whole weights, which launch=zero3 does not gather. Use launch=fsdp."
        )
    if grpo.sampler == "vllm" and grpo.runtime.world_size > 1:
        raise UserError(
            "grpo.sampler=vllm: the engine gets the weights of one process. Use launch=local, or grpo.sampler=hf."
        )
    if grpo.sampler == "vllm" and grpo.adapter is Adapter.qlora:
        raise UserError(
            "grpo.sampler=vllm: the engine gets the adapter merged, which grpo.adapter=qlora is not. Use "
            "grpo.adapter=lora, or grpo.sampler=hf."
        )
    if grpo.max_new_tokens >= grpo.max_length:
        raise UserError(
            f"grpo.max_length={grpo.max_length} has no room for a prompt before grpo.max_new_tokens."
        )
    prompts = split_rows(cfg, Split.preference)
    if prompts is not None and prompts < grpo.batch_size:
        raise UserError(
            f"grpo.batch_size={grpo.batch_size}: there are at most {prompts} prompts, and a step uses none twice. Lower "
            "it, or raise data.tasks.preference."
        )


def split_rows(cfg: Config, split: Split) -> int | None:
    """Return the most rows that a split can have, or None if a source may hold any number."""
    rows = 0
    for group, count in cfg.data.generated.items():
        if SPLIT_OF_GROUP[group] == split:
            rows += count
    for source in cfg.data.sources:
        if source.shares.get(split):
            if source.rows is None or source.epochs or source.weight:
                return None
            rows += source.rows
    return rows


def validate_model(cfg: Config) -> None:
    """Raise one UserError for all lengths, adapters and losses that the base model cannot have."""
    config = base_config(cfg)
    checks = [partial(validate_context, cfg, config)]
    for name, block in cfg.trained.items():
        checks.append(partial(validate_training, name, block, config))
    check_all(checks)


def base_config(cfg: Config) -> dict[str, Any]:
    """Return the base's config.json, or {} if it is elsewhere. Raise Damaged for values that no model can have."""
    if cfg.without_model:
        return {}
    try:
        if cfg.model.path and locate(cfg.model.path, "model.path") is None:
            return {}
        config = model_config(cfg.model) or {}
    except Damaged:
        raise
    except (OSError, ValueError, UserError):
        return {}
    return config.get("text_config") or config


def validate_context(cfg: Config, config: dict[str, Any]) -> None:
    """Raise UserError if completions leave no room for a prompt in the model's context."""
    contexts = [config[name] for name in CONTEXT if config.get(name)]
    blocks = ["answer"]
    if isinstance(cfg.sample, Drawn):
        blocks.append("sample")
    if cfg.selects:
        blocks.append("select")
    if "grpo" in cfg.trained:
        blocks.append("grpo")
    for name in blocks:
        max_new_tokens = vars(cfg)[name].max_new_tokens
        if contexts and max_new_tokens >= contexts[0]:
            raise UserError(
                f"{name}.max_new_tokens={max_new_tokens} leaves no room for a prompt: the context has {contexts[0]} "
                "tokens. Lower it."
            )


def validate_training(name: str, block: Training, config: dict[str, Any]) -> None:
    """Raise UserError for a loss or an adapter that does not fit the model."""
    has_experts = any("expert" in key for key in config)
    if config and not has_experts and block.trainer.given.get("router_aux_loss_coef"):
        raise UserError(
            f"{name}.trainer.router_aux_loss_coef: the model has no experts. Leave it out."
        )
    if block.adapter not in (Adapter.lora, Adapter.qlora):
        return
    lora, width = block.lora, config.get("hidden_size")
    if width and lora.rank > width:
        raise UserError(
            f"{name}.lora.rank={lora.rank} is more than the model's width of {width}. Lower it."
        )
    if not lora.target_modules:
        raise UserError(
            f"{name}.lora.target_modules is empty. [{ALL_LINEAR}] adapts every linear layer."
        )
    if config and lora.target_modules != [ALL_LINEAR]:
        require_layers(name, lora, config)


def require_layers(name: str, lora: LoRA, config: dict[str, Any]) -> None:
    """Raise UserError if peft does not find the layers in a model of this shape without weights."""
    # here, as they take seconds
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from stages.training.adapters import attach_new_adapter

    with torch.device("meta"):
        try:
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
        except (KeyError, TypeError, ValueError):
            return  # the stage `base` says why the model cannot be loaded
        try:
            attach_new_adapter(model, lora, seed=0)
        except UserError as error:
            raise UserError(f"{name}.{error}") from error
