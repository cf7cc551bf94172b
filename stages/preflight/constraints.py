"""The list of checks of a configuration that types cannot express, before anything is built; and checks of choices."""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

from stages.config import limits, trainers
from stages.config.blocks.labels import RewardModel
from stages.config.blocks.training import DPO, KTO, SFT, Training
from stages.config.choices import Adapter, Command, Precision, Sharding
from stages.config.errors import Errors, UserError, check_all, name_block, require_known
from stages.config.installation import install_command
from stages.config.schema import Config, Target
from stages.preflight import (
    capacity,
    evaluation_settings,
    machine_needs,
    run_inputs,
    servers,
    sources,
    user_files,
)


def validate_config(cfg: Config) -> None:
    """Raise one UserError for all values outside their limits, else for all settings that do not fit together."""
    require_known("stage", [cfg.stage], [*Target, *Command])
    # Other blocks take their number of processes from `launch`, so it comes first.
    check_all(
        [partial(limits.validate_block, cfg.launch, "launch."), partial(limits.validate_block, cfg)]
    )
    checks: list[Callable[[Config], None]] = [
        validate_combinations,
        sources.validate_sample,
        validate_labels,
        servers.validate_endpoints,
        run_inputs.validate_base,
        run_inputs.validate_examined,
        run_inputs.validate_demonstrations,
        run_inputs.validate_objectives,
        run_inputs.validate_reward,
        validate_own_parts,
        sources.validate_data,
        user_files.validate_user_files,
        evaluation_settings.validate_outside,
        evaluation_settings.validate_judged,
        evaluation_settings.validate_measured,
        machine_needs.validate_checks,
        machine_needs.validate_nodes,
        machine_needs.validate_sharding,
        machine_needs.validate_ray,
        machine_needs.validate_trackers,
        machine_needs.validate_push,
        validate_adapters,
        validate_trainers,
        capacity.validate_rows,
        capacity.validate_pairs,
        capacity.validate_rollouts,
        capacity.validate_model,
    ]
    check_all(partial(check, cfg) for check in checks)


def validate_own_parts(cfg: Config) -> None:
    """Raise UserError for a user-defined part without a file."""
    for name, own in cfg.own_parts.items():
        if not own and (own.name or own.options):
            raise UserError(f"{name}.own has no file. Set {name}.own={{file: FILE, name: NAME}}.")


def validate_trainers(cfg: Config) -> None:
    """Raise UserError for keys of objectives that do not fit together, or arguments that TRL does not take."""
    checks: list[Callable[[], object]] = [block.check for block in cfg.trained.values()]
    for name, block in cfg.trained.items():
        checks.append(partial(trainers.validate_trainer, name, block))
        checks.append(partial(validate_reference, name, block, cfg.reference.precision))
    check_all(checks)


def validate_reference(name: str, block: Training, precision: Precision) -> None:
    """Raise UserError if the reference's stored log-probs would be too coarse for the first-step check."""
    compared = isinstance(block, KTO) or (isinstance(block, DPO) and not block.reference_free)
    if compared and (block.precision, precision) == (Precision.fp32, Precision.bf16):
        problem = "log-probs of the reference in bf16 are too coarse for a training in fp32"
        raise UserError(f"{name}.precision=fp32: {problem}. Set reference.precision=fp32.")


def validate_combinations(cfg: Config) -> None:
    """Raise UserError for seeds, temperatures, lists, quantiles or widths that do not fit together."""
    if cfg.seed in cfg.seeds or len(set(cfg.seeds)) < len(cfg.seeds):
        raise UserError(
            f"seeds={cfg.seeds} and seed={cfg.seed} must all differ. Name each seed once."
        )
    lists = {
        f"{name}.lora.target_modules": block.lora.target_modules
        for name, block in cfg.trained.items()
    }
    for key, items in {"dpo.loss_type": cfg.dpo.loss_type, **lists}.items():
        if repeated := [item for i, item in enumerate(items) if item in items[:i]]:
            raise UserError(f"{key}={items}: {repeated[0]} is named twice. Name each once.")
    if cfg.by_pairs and isinstance(cfg.label, RewardModel) and cfg.pairs.min_score >= 1:
        problem = "scores of a reward model are below 1, so no pair would be made"
        raise UserError(
            f"pairs.min_score={cfg.pairs.min_score:g}: {problem}. Set pairs.min_score=0."
        )
    for key, band in (
        ("pairs", cfg.pairs.margin_quantiles),
        ("reward.pairs", cfg.reward.pairs.margin_quantiles),
    ):
        if band is not None and not (len(band) == 2 and band[0] < band[1]):
            raise UserError(
                f"{key}.margin_quantiles={band}: give two quantiles in order, such as [0.25, 0.75]."
            )
    if init := cfg.model.random_init:
        # Rotary embeddings need an even width of heads. Half as many key-value heads must divide them.
        head_counts = [
            h for h in range(1, 1025) if init.hidden_size % (2 * h) == 0 and h % max(h // 2, 1) == 0
        ]
        if init.heads not in head_counts:
            way_out = (
                f"Use {', '.join(map(str, head_counts))}."
                if head_counts
                else "Make hidden_size even."
            )
            raise UserError(
                f"model.random_init.heads={init.heads} does not divide model.random_init.hidden_size={init.hidden_size} "
                f"into heads of an even width. {way_out}"
            )


def validate_labels(cfg: Config) -> None:
    """Raise one UserError for all labelers whose settings do not fit together."""
    errors = Errors()
    for label in cfg.labels:
        with errors, name_block(label.block):
            label.check()
    errors.raise_all()


def validate_adapters(cfg: Config) -> None:
    """Raise UserError for adapters that cannot be trained, or have no adapter to continue."""
    has_adapter = isinstance(cfg.sft, SFT) and cfg.sft.adapter is Adapter.lora
    if cfg.dpo.adapter is Adapter.continued and not has_adapter:
        raise UserError("dpo.adapter=continued continues the adapter of SFT. Set sft.adapter=lora.")
    if cfg.dpo.adapter is Adapter.continued and cfg.rounds > 1:
        raise UserError(
            "dpo.adapter=continued needs rounds=1, as a round merges its adapter. Use dpo.adapter=lora."
        )
    if cfg.dpo.adapter is Adapter.continued and cfg.model.dtype:
        problem = (
            "the adapter continues from exact weights, and the reference is the rounded SFT model"
        )
        raise UserError(
            f"model.dtype={cfg.model.dtype}: {problem}. Use dpo.adapter=lora, or model.dtype=null."
        )
    for name, block in cfg.trained.items():
        quantized = block.adapter is Adapter.qlora
        if block.adapter not in block.objective.adapters:
            raise UserError(
                f"{name}.adapter={block.adapter}: {block.objective.title} can only use "
                f"{', '.join(block.objective.adapters)}."
            )
        if not quantized:
            continue
        # The libraries of another machine that is planned for are not known here.
        if cfg.planned_gpu is None and find_spec("bitsandbytes") is None:
            raise UserError(
                f"{name}.adapter=qlora needs bitsandbytes for 4-bit weights: {install_command('qlora')}."
            )
        if block.runtime.sharding is not Sharding.none:
            raise UserError(
                f"{name}.adapter=qlora cannot be sharded. Use launch=ddp, or {name}.adapter=lora."
            )
