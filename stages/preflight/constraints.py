"""The list of checks of a configuration that types cannot express, before anything is built; and checks of choices."""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

from stages.config import limits, trainers
from stages.config.blocks.objective import Training
from stages.config.blocks.training import SFT
from stages.config.choices import Adapter, Precision, Sharding
from stages.config.commands import COMMANDS
from stages.config.errors import Errors, UserError, check_all
from stages.config.extras import modules_of_extras
from stages.config.installation import install_command
from stages.config.schema import Config
from stages.config.stage_table import Target
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
    limits.require_word("stage", cfg.stage, [*Target, *COMMANDS])
    # Other blocks take their number of processes from `launch`, so it comes first.
    check_all(
        [partial(limits.validate_block, cfg.launch, "launch."), partial(limits.validate_block, cfg)]
    )
    checks_of_combinations: list[Callable[[Config], None]] = [
        validate_seeds_pairs_and_base,
        sources.validate_sample,
        validate_labels,
        servers.validate_endpoints,
        run_inputs.validate_single_base,
        *(module.validate for module in modules_of_extras("constraints")),
        run_inputs.validate_rows_and_demonstrations,
        run_inputs.validate_objectives,
        run_inputs.validate_reward,
        sources.validate_data,
        user_files.validate_user_files,
        evaluation_settings.validate_outside_test_sets,
        evaluation_settings.validate_judged,
        evaluation_settings.validate_measured,
        machine_needs.validate_check_packages,
        machine_needs.validate_nodes,
        machine_needs.validate_sharding,
        machine_needs.validate_trackers,
        machine_needs.validate_extras,
        validate_adapters,
        validate_trainings,
        capacity.validate_pairs,
        capacity.validate_rollouts,
        capacity.validate_context_and_layers,
    ]
    check_all(partial(check, cfg) for check in checks_of_combinations)


def validate_trainings(cfg: Config) -> None:
    """Raise one UserError for all trainings with settings that their trainer or their reference cannot use."""
    checks = list[Callable[[], object]]()
    for name, block in cfg.trained.items():
        checks.append(partial(trainers.validate_trainer, name, block))
        checks.append(partial(validate_reference, name, block, cfg.reference.precision))
    check_all(checks)


def validate_reference(training_name: str, block: Training, reference_precision: Precision) -> None:
    """Raise UserError if the reference's stored log-probs would be too coarse for the first-step check."""
    if block.checks_reference and (block.precision, reference_precision) == (
        Precision.fp32,
        Precision.bf16,
    ):
        raise UserError(
            f"{training_name}.precision=fp32: a reference in bf16 is too coarse. Set reference.precision=fp32."
        )


def validate_seeds_pairs_and_base(cfg: Config) -> None:
    """Raise UserError for seeds, pairs or a base model whose settings do not fit together."""
    if cfg.seed in cfg.seeds:
        raise UserError(f"seeds={cfg.seeds} and seed={cfg.seed} must all differ. Leave it out.")
    checks: list[Callable[[], None]] = [
        partial(cfg.pairs.check, "pairs"),
        partial(cfg.reward.pairs.check, "reward.pairs"),
    ]
    if cfg.model.random_init:
        checks.append(cfg.model.random_init.check)
    check_all(checks)


def validate_labels(cfg: Config) -> None:
    """Raise one UserError for all labelers whose settings do not fit together."""
    errors = Errors()
    for label in cfg.labels:
        with errors:
            label.check()
    errors.raise_all()


def validate_adapters(cfg: Config) -> None:
    """Raise UserError for adapters that cannot be trained, or have no adapter to continue."""
    if cfg.dpo.adapter is Adapter.continued:
        if not isinstance(cfg.sft, SFT) or cfg.sft.adapter is not Adapter.lora:
            raise UserError("dpo.adapter=continued continues SFT's adapter. Set sft.adapter=lora.")
        if cfg.rounds > 1:
            raise UserError("dpo.adapter=continued needs rounds=1. Or use dpo.adapter=lora.")
        if cfg.control:
            raise UserError("control=true needs another dpo.adapter than continued. Set it false.")
        if cfg.model.dtype:
            raise UserError(
                f"model.dtype={cfg.model.dtype}: dpo.adapter=continued needs exact weights. Use dpo.adapter=lora."
            )
    for training_name, block in cfg.trained.items():
        if block.adapter not in block.objective.adapters:
            raise UserError(
                f"{training_name}.adapter={block.adapter}: {block.objective.title} can only use {', '.join(block.objective.adapters)}."
            )
        if block.adapter is not Adapter.qlora:
            continue
        # The libraries of another machine that is planned for are not known here.
        if cfg.planned_gpu is None and find_spec("bitsandbytes") is None:
            raise UserError(
                f"{training_name}.adapter=qlora needs bitsandbytes for 4-bit weights: {install_command('qlora')}."
            )
        if block.runtime.sharding is not Sharding.none:
            raise UserError(f"{training_name}.adapter=qlora cannot be sharded. Use launch=ddp.")
