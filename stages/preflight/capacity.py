"""Checks of amounts, as far as data and model are known before anything is built: batches larger than the data,
answers longer than the context, adapters wider than the model."""

from typing import Any

from stages.config.blocks.data import SPLIT_OF_GROUP
from stages.config.blocks.labels import Ensemble, OwnLabeler
from stages.config.blocks.sampling import Drawn
from stages.config.blocks.training import OBJECTIVES, SFT, LoRA
from stages.config.choices import Adapter, Align, Command, ControlPairs, Reads, Sharding, Strategy
from stages.config.errors import UserError, suggest
from stages.config.installation import read_beside
from stages.config.schema import Config, Target
from stages.hardware.model_shape import LINEAR
from stages.preflight.model_files import model_config
from stages.store.sealed_json import Damaged
from stages.store.source_files import locate

TEXTS = read_beside(__file__)
# Models whose linear layers have the names of Llama's. For other models only peft knows the names.
AS_LLAMA = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "olmo",
    "olmo2",
    "olmo3",
)
ALL_LINEAR = "all-linear"
ATTENTION = LINEAR[:4]
CONTEXT = ("max_position_embeddings", "n_positions")


def validate_capacity(cfg: Config) -> None:
    """Raise UserError for the first amount that the data or the model cannot provide."""
    validate_rows(cfg)
    if cfg.objectives and not cfg.by_pairs and (cfg.rounds > 1 or cfg.control or cfg.control_pairs):
        raise UserError(TEXTS["controls"].format(cfg=cfg))
    if cfg.control_pairs is ControlPairs.random and cfg.pairs.strategy is Strategy.random:
        raise UserError(
            "control_pairs=random: pairs=random are such pairs already. Set control_pairs=coin."
        )
    if Align.grpo in cfg.objectives:
        validate_rollouts(cfg)
    if cfg.by_pairs:
        validate_pairs(cfg)
    config = base_config(cfg)
    if context := next((config[name] for name in CONTEXT if config.get(name)), None):
        answering = ["answer"]
        if isinstance(cfg.sample, Drawn):
            answering.append("sample")
        if cfg.selects:
            answering.append("select")
        if Target.grpo in cfg.trained:
            answering.append("grpo")
        for name in answering:
            longest = vars(cfg)[name].max_new_tokens
            if longest >= context:
                words = {"name": name, "max_new_tokens": longest, "context": context}
                raise UserError(TEXTS["context"].format(**words))
    for name, block in cfg.trained.items():
        if (
            config
            and block.trainer.given.get("router_aux_loss_coef")
            and not any("expert" in key for key in config)
        ):
            raise UserError(
                f"{name}.trainer.router_aux_loss_coef: the model has no experts. Leave it out."
            )
        if block.adapter in (Adapter.lora, Adapter.qlora):
            validate_adapter(f"{name}.lora", block.lora, config)


def validate_rows(cfg: Config) -> None:
    """Raise UserError if SFT has no rows, or fewer than one batch. The rows of a file are not counted yet."""
    row_limit = split_rows(cfg, "sft")
    before_sft = cfg.stage in (Target.base, Target.source, Target.data)
    if not isinstance(cfg.sft, SFT) or cfg.without_model or before_sft or row_limit is None:
        return
    if row_limit == 0:
        raise UserError("sft has no rows. Raise data.tasks.sft, or splits.sft of a source.")
    if cfg.sft.batch_size > row_limit:
        raise UserError(
            f"sft.batch_size={cfg.sft.batch_size}: sft has at most {row_limit} rows. Lower it."
        )


def validate_pairs(cfg: Config) -> None:
    """Raise UserError if the candidates of a prompt cannot differ, or make fewer pairs than one batch."""
    if cfg.label.brings_pool or cfg.stage in (
        Command.audit,
        Target.base,
        Target.source,
        Target.data,
        Target.sft,
    ):
        return
    if cfg.sample.brings_prompts or (cfg.stage == Target.reward and cfg.reward.source.path):
        return
    prompts, candidates = split_rows(cfg, "preference"), cfg.sample.most
    if prompts == 0:
        raise UserError(
            "sample has no prompts. Raise data.tasks.preference, or splits.preference of a source."
        )
    own = cfg.sample.prompts_per_round
    if own and prompts is not None and prompts < cfg.rounds * own:
        raise UserError(TEXTS["rounds"].format(cfg=cfg, needed=cfg.rounds * own, prompts=prompts))
    if cfg.stage in (Target.sample, Target.pool, Target.label) or candidates is None:
        return
    assert isinstance(cfg.sample, Drawn)  # a file has any number of candidates
    if candidates < 2:
        setting = "sample.pool draws " if cfg.sample.pool else "sample.candidates_per_prompt="
        raise UserError(
            f"{setting}{candidates}: a pair needs two candidates. Use 2 or more, or stop at stage=label."
        )
    if not cfg.sample.pool and not any(cfg.sample.temperatures[:candidates]):
        raise UserError(TEXTS["greedy"].format(cfg=cfg))
    if prompts is None:
        return
    prompts = min(prompts, cfg.sample.prompts or prompts, own or prompts)
    pairs_per_prompt = 1 if cfg.pairs.strategy is Strategy.best_worst else cfg.pairs.max_per_prompt
    pair_limit = prompts * min(
        pairs_per_prompt,
        candidates * (candidates - 1) // (1 if isinstance(cfg.label, OwnLabeler) else 2),
    )
    target = OBJECTIVES.get(cfg.stage)
    name = target.name if target and target.reads is Reads.pairs else "dpo"
    if (size := vars(cfg)[name].batch_size) > pair_limit:
        numbers = {
            "pairs": pair_limit,
            "prompts": prompts,
            "candidates": candidates,
            "per_prompt": pairs_per_prompt,
        }
        raise UserError(TEXTS["pairs"].format(name=name, size=size, **numbers))


def validate_rollouts(cfg: Config) -> None:
    """Raise UserError for settings with which GRPO cannot sample, cannot score, or has fewer prompts than one step."""
    if cfg.label.asks or not all(part.scores_alone for part in cfg.label.parts):
        raise UserError(TEXTS["no score"].format(cfg=cfg))
    voters = cfg.label.members if isinstance(cfg.label, Ensemble) else []
    if any(voter.labeler == "reward_model" and voter.veto is not None for voter in voters):
        raise UserError(TEXTS["veto"])
    if cfg.grpo.runtime.sharding is Sharding.zero3:
        raise UserError(
            "GRPO samples from whole weights, which launch=zero3 does not gather. Use launch=fsdp."
        )
    if cfg.grpo.sampler == "vllm" and cfg.grpo.runtime.world_size > 1:
        raise UserError(TEXTS["engines"])
    if cfg.grpo.sampler == "vllm" and cfg.grpo.adapter is Adapter.qlora:
        raise UserError(TEXTS["4 bits"])
    if cfg.grpo.max_new_tokens >= cfg.grpo.max_length:
        raise UserError(
            f"grpo.max_length={cfg.grpo.max_length} has no room for a prompt before grpo.max_new_tokens."
        )
    prompts, size = split_rows(cfg, "preference"), cfg.grpo.batch_size
    if prompts is not None and prompts < size:
        raise UserError(TEXTS["prompts"].format(size=size, prompts=prompts))


def split_rows(cfg: Config, split: str) -> int | None:
    """Return the most rows that a split can have, or None if a source may hold any number."""
    generated = cfg.data.generated.items()
    rows = sum(count for group, count in generated if SPLIT_OF_GROUP[group] == split)
    for source in cfg.data.sources:
        if source.shares.get(split):
            if source.rows is None or source.epochs or source.weight:
                return None
            rows += source.rows
    return rows


def base_config(cfg: Config) -> dict[str, Any]:
    """Return the base's config.json, or {} if it is elsewhere. Raise Damaged for values that no model can have."""
    if cfg.without_model:
        return {}
    try:
        if cfg.model.path and locate(cfg.model.path, "model.path") is None:
            return {}
        config = model_config(cfg.model)
    except Damaged:
        raise
    except (OSError, ValueError, UserError):
        return {}
    return (config or {}).get("text_config") or config or {}


def validate_adapter(key: str, lora: LoRA, config: dict[str, Any]) -> None:
    """Raise UserError for target modules that the model does not have, or a rank above its width."""
    if not lora.target_modules:
        raise UserError(f"{key}.target_modules is empty. [{ALL_LINEAR}] adapts every linear layer.")
    if ALL_LINEAR in lora.target_modules and len(lora.target_modules) > 1:
        raise UserError(
            f"{key}.target_modules={lora.target_modules}: {ALL_LINEAR} means all layers. Drop the others."
        )
    if (width := config.get("hidden_size")) and lora.rank > width:
        raise UserError(
            f"{key}.rank={lora.rank} is more than the model's width of {width}. Lower it."
        )
    if config.get("model_type") in AS_LLAMA:
        for target in lora.target_modules:
            *parents, name = target.split(".")
            parent = "self_attn" if name in ATTENTION else "mlp"
            is_misplaced = name in LINEAR and parents and parents[-1] != parent
            if is_misplaced or name not in (*LINEAR, ALL_LINEAR):
                problem = f"{key}.target_modules={target} is not a linear layer of its blocks."
                raise UserError(f"{problem}{suggest(target, [*LINEAR, ALL_LINEAR])}")
