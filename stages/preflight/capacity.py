"""What is more than there can be: rows of a step, tokens of an answer, widths of an adapter. Told before anything is
built, as far as data and model are known by then."""

import struct
from typing import Any

from stages.config.blocks.data import SPLIT_OF_GROUP
from stages.config.blocks.training import OBJECTIVES, LoRA
from stages.config.choices import Adapter, Command, Reads, Strategy
from stages.config.errors import UserError, nearest
from stages.config.schema import Config, Target
from stages.hardware.model_shape import LINEAR
from stages.preflight.model_files import config_of
from stages.store.sealed_json import Damaged
from stages.store.source_files import locate

# Models whose linear layers are called as Llama's are; of others, peft alone knows.
AS_LLAMA = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "gemma3_text", "olmo", "olmo2", "olmo3")
ALL_LINEAR = "all-linear"
ATTENTION = LINEAR[:4]
ENDS = ("embed_tokens", "lm_head")  # which peft adapts, too
CONTEXT = ("max_position_embeddings", "n_positions")


def refuse(cfg: Config) -> None:
    """Raise UserError for the first amount that data or model cannot meet."""
    rows(cfg)
    pairs(cfg)
    config = known(cfg)
    if context := next((config[name] for name in CONTEXT if config.get(name)), None):
        for name in ("sample", "answer", *(["select"] if cfg.selects else [])):
            if (most := vars(cfg)[name].max_new_tokens) >= context:
                raise UserError(
                    f"{name}.max_new_tokens={most} leaves no room for a prompt: the model reads {context} tokens."
                )
    for name, block in cfg.trained.items():
        if config and block.trainer.get("router_aux_loss_coef") and not any("expert" in key for key in config):
            raise UserError(f"{name}.trainer.router_aux_loss_coef is for mixtures of experts, and the model is none.")
        if block.adapter in (Adapter.lora, Adapter.qlora):
            adapter(f"{name}.lora", block.lora, config)


def rows(cfg: Config) -> None:
    """SFT has rows, and no step more than there are. How many a file holds is not known before it is read."""
    most = examples(cfg, "sft")
    if (
        not cfg.sft.train
        or cfg.without_model
        or cfg.stage in (Target.base, Target.source, Target.data)
        or most is None
    ):
        return
    if most == 0:
        raise UserError("sft has no rows: raise data.tasks.sft, or give a source's splits a share for sft.")
    if cfg.sft.batch_size > most:
        raise UserError(f"sft.batch_size={cfg.sft.batch_size} is more than all {most} rows that sft can have.")


def pairs(cfg: Config) -> None:
    """Candidates of which one can be better than another, and no step with more pairs than they can make."""
    if cfg.label.brings_pool or cfg.stage in (Command.audit, Target.base, Target.source, Target.data, Target.sft):
        return
    if cfg.stage == Target.reward and cfg.reward.source.path:
        return
    if cfg.sample.brings_prompts:
        return
    prompts, candidates = examples(cfg, "preference"), cfg.sample.most
    if prompts == 0:
        raise UserError("there are no prompts to sample: raise data.tasks.preference, or give a source's splits some.")
    if cfg.stage in (Target.sample, Target.pool, Target.label) or candidates is None:
        return
    if candidates < 2:
        told = "sample.pool draws " if cfg.sample.pool else "sample.candidates_per_prompt="
        raise UserError(
            f"{told}{candidates}: a pair is made of two candidates of a prompt. Use 2 or more, or stop at stage=label."
        )
    if not cfg.sample.pool and not any(cfg.sample.temperatures[:candidates]):
        raise UserError(
            f"sample.temperatures={cfg.sample.temperatures} is greedy: the candidates of a prompt would all be the "
            "same, and none could be preferred. [0.9] is usual."
        )
    if prompts is None:
        return
    prompts = min(prompts, cfg.sample.prompts or prompts)
    of_each = 1 if cfg.pairs.strategy is Strategy.best_worst else cfg.pairs.max_per_prompt
    most = prompts * min(of_each, candidates * (candidates - 1) // (1 if cfg.label.own else 2))
    target = OBJECTIVES.get(cfg.stage)
    name = target.name if target and target.reads is Reads.pairs else "dpo"
    if (size := cfg.trained[name].batch_size) > most:
        raise UserError(
            f"{name}.batch_size={size} is more than all {most} pairs that there can be: {prompts} prompts, "
            f"each with {candidates} candidates and {of_each} pairs at most."
        )


def examples(cfg: Config, split: str) -> int | None:
    """The most rows that a split can have; None where a source may hold any number."""
    rows = sum(vars(cfg.data.tasks)[group] for group, its in SPLIT_OF_GROUP.items() if its == split)
    for source in cfg.data.sources:
        if source.shares.get(split):
            if source.rows is None or source.epochs or source.weight:
                return None
            rows += source.rows
    return rows


def known(cfg: Config) -> dict[str, Any]:
    """Return the base model's config.json, where it is on this machine; else nothing.

    Raises:
        Damaged: for a config.json with values that no model has.
    """
    if cfg.without_model:
        return {}
    try:
        if cfg.model.path and locate(cfg.model.path, "model.path") is None:
            return {}
        config = config_of(cfg.model)
    except Damaged:
        raise
    except (OSError, ValueError, LookupError, ArithmeticError, struct.error, UserError):
        return {}
    return (config or {}).get("text_config") or config or {}


def adapter(key: str, lora: LoRA, config: dict[str, Any]) -> None:
    """An adapter's targets, and its rank, which no matrix of the model's width can exceed."""
    if not lora.target_modules:
        raise UserError(f"{key}.target_modules names none: [{ALL_LINEAR}] is all of them.")
    if ALL_LINEAR in lora.target_modules and len(lora.target_modules) > 1:
        raise UserError(f"{key}.target_modules={lora.target_modules}: {ALL_LINEAR} stands alone.")
    if (width := config.get("hidden_size")) and lora.rank > width:
        raise UserError(f"{key}.rank={lora.rank} is more than the model's width of {width}: no adapter can use it.")
    if config.get("model_type") in AS_LLAMA:
        for target in lora.target_modules:
            *within, name = target.split(".")
            inside = "self_attn" if name in ATTENTION else "mlp"
            astray = name in LINEAR and within and within[-1] != inside
            if astray or name not in (*LINEAR, *ENDS, ALL_LINEAR):
                raise UserError(
                    f"{key}.target_modules={target} is no linear layer of the model."
                    f"{nearest(target, [*LINEAR, ALL_LINEAR])}"
                )
