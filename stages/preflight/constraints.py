"""Checks of a configuration that types cannot express, before anything is built."""

import os
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from stages.config import choices, limits, trl_arguments
from stages.config.blocks.data import SPLIT_OF_GROUP
from stages.config.blocks.labels import Human
from stages.config.blocks.training import Training
from stages.config.choices import Adapter, Align, Command, Sharding, Strategy
from stages.config.errors import Errors, UserError, name_block, require_known
from stages.config.installation import install_command
from stages.config.schema import Config, Target, group_defaults
from stages.preflight import capacity, servers, sources, user_files, who_judges
from stages.store import plugins

# Keys of a source of prompts, which a source of preferences does not have.
OF_PROMPTS = ("task", "documents", "rows", "check", "splits", "weight", "epochs")

EVALUATING = (Target.answer, Target.versus, Target.eval, Target.report)


def validate_config(cfg: Config) -> None:
    """Raise one UserError for all values outside their limits, else for all settings that do not fit together."""
    require_known("stage", [cfg.stage], [*Target, *Command])
    errors = Errors()
    with errors:
        limits.validate_block(cfg.launch, "launch.")  # other blocks take their number of processes from it
    with errors:
        limits.validate_block(cfg)
    errors.raise_all()
    if cfg.data.tasks is None:
        raise UserError("data.tasks=null is not allowed. For sources without generated tasks, use data=file.")
    checks: list[Callable[[Config], None]] = [
        *(validate_combinations, validate_words, sources.validate_sample),
        *(who_judges.validate_ensembles, servers.validate_endpoints, validate_inputs, validate_reward),
        *(validate_own_parts, sources.validate_data, user_files.validate_user_files, validate_people),
        *(validate_outside, validate_launch, validate_adapters, validate_trainers, who_judges.validate_judged),
        *(capacity.validate_capacity, validate_push),
    ]
    for check in checks:
        with errors:
            check(cfg)
    errors.raise_all()


def validate_words(cfg: Config) -> None:
    """Raise UserError for unknown words that name files: labelers, trackers, templates and task families."""
    errors = Errors()
    for key, word, words in (
        ("label.labeler", cfg.label.labeler, plugins.plugin_words("labelers", "Labeler")),
        ("tracker.name", cfg.tracker.name, [*plugins.plugin_words("tracking", "Run"), "none"]),
        ("sft.template.kind", cfg.sft.template.kind, [*plugins.template_names(), "auto", "own", "file"]),
    ):
        with errors:
            require_known(key, [word], words)
    if not cfg.data.own and cfg.data.tasks:  # with data.own the names of user-defined families are not read yet
        with errors:
            require_known("data.tasks.families", cfg.data.tasks.families, plugins.family_names())
    errors.raise_all()


def validate_own_parts(cfg: Config) -> None:
    """Raise UserError for a user-defined part without a file, or one that another setting excludes."""
    for name, own in cfg.own_parts.items():
        if not own and (own.name or own.options):
            raise UserError(f"{name}.own has no file. Set {name}.own={{file: FILE, name: NAME}}.")
    if cfg.label.own and cfg.label.labeler == "dataset":
        raise UserError("label=dataset reads labels and label.own makes them. Choose one of the two.")


def validate_trainers(cfg: Config) -> None:
    """Raise UserError for arguments that TRL's trainers do not take."""
    errors = Errors()
    for name, block in cfg.trained.items():
        with errors:
            trl_arguments.validate_trainer(name, block, group_defaults(name).trainer)
    errors.raise_all()


def validate_combinations(cfg: Config) -> None:
    """Raise UserError for seeds, temperatures, lists, quantiles or widths that do not fit together."""
    if cfg.seed in cfg.seeds or len(set(cfg.seeds)) < len(cfg.seeds):
        raise UserError(f"seeds={cfg.seeds} and seed={cfg.seed} must all differ. Name each seed once.")
    if cfg.sample.rounds != cfg.rounds:
        raise UserError(f"sample.rounds={cfg.sample.rounds}: rounds sets it. Type rounds={cfg.sample.rounds} instead.")
    if not cfg.sample.temperatures:
        raise UserError("sample.temperatures is empty. [0.9] samples every candidate at temperature 0.9.")
    lists = {f"{name}.lora.target_modules": block.lora.target_modules for name, block in cfg.trained.items()}
    for key, items in {"dpo.loss_type": cfg.dpo.loss_type, **lists}.items():
        if repeated := [item for i, item in enumerate(items) if item in items[:i]]:
            raise UserError(f"{key}={items}: {repeated[0]} is named twice. Name each once.")
    for key, band in (("pairs", cfg.pairs.margin_quantiles), ("reward.pairs", cfg.reward.pairs.margin_quantiles)):
        if band is not None and not (len(band) == 2 and band[0] < band[1]):
            raise UserError(f"{key}.margin_quantiles={band}: give two quantiles in order, such as [0.25, 0.75].")
    if init := cfg.model.random_init:
        # Rotary embeddings need an even width of heads. Half as many key-value heads must divide them.
        head_counts = [h for h in range(1, 1025) if init.hidden_size % (2 * h) == 0 and h % max(h // 2, 1) == 0]
        if init.heads not in head_counts:
            raise UserError(
                f"model.random_init.heads={init.heads} does not divide model.random_init.hidden_size="
                f"{init.hidden_size} into heads of an even width. "
                + (f"Use {', '.join(map(str, head_counts))}." if head_counts else "Make hidden_size even.")
            )


def validate_inputs(cfg: Config) -> None:
    """Raise UserError for a model, data or labels that a run cannot start from."""
    assert cfg.data.tasks is not None  # `validate_config` refuses None first
    reads_data = cfg.sft.train or not cfg.own_prompts  # otherwise no stage reads data
    if reads_data and not cfg.data.sources and not any(vars(cfg.data.tasks)[group] for group in SPLIT_OF_GROUP):
        raise UserError("data.sources is empty, so there are no rows. Name a file: 'data.sources=[{path: FILE}]'.")
    if cfg.data.tasks.open_sft and cfg.sft.demonstrations is choices.Demonstrations.given:
        raise UserError(
            f"data.tasks.open_sft={cfg.data.tasks.open_sft}: open requests have no reference answers to learn from. "
            "Set sft.demonstrations=null: the base model answers them, and the best answers are kept."
        )
    if cfg.sft.demonstrations is choices.Demonstrations.selected and (cfg.label.brings_pool or not cfg.sft.train):
        reason = "label=dataset does not judge new answers" if cfg.label.brings_pool else "sft=none trains nothing"
        raise UserError(f"sft.demonstrations=selected: {reason}. Use sft.demonstrations=given.")
    for i, arm in enumerate(cfg.arms):
        if cfg.align is Align.none or arm in (Align.none, cfg.align, *cfg.arms[:i]):
            raise UserError(
                f"arms[{i}]={arm}: an arm is another objective than align={cfg.align}, beside it, and named once. "
                "Leave it out, or set align to an objective."
            )
    if cfg.control and cfg.dpo.adapter is Adapter.continued:
        raise UserError("control=true needs a dpo.adapter other than continued. Or set control=false.")
    if cfg.label.brings_pool and not cfg.label.path:
        raise UserError("label=dataset needs preferences. Set label.path to a file, a folder or a hub dataset.")
    if cfg.label.brings_pool and cfg.rounds > 1:
        raise UserError(f"rounds={cfg.rounds}: label=dataset has the same pairs in every round. Use rounds=1.")
    if cfg.model.path and cfg.model.random_init:
        raise UserError(f"model.path={cfg.model.path} and model.random_init exclude each other. Set one to null.")
    if cfg.stage in EVALUATING and (message := untested_message(cfg)):
        raise UserError(message)


def validate_reward(cfg: Config) -> None:
    """Raise UserError for a reward model without training data, or a labeler without a reward model."""
    source = cfg.reward.source
    for label in cfg.labels:
        with name_block(label.name):
            if label.by_reward and not source.path:
                raise UserError(
                    "label=reward_model needs a reward model. Set label.reward_model.path=FOLDER, or train one on "
                    "preferences with reward.source.path=FILE."
                )
    if cfg.label.by_reward and cfg.sft.demonstrations is choices.Demonstrations.selected:
        raise UserError(
            "sft.demonstrations=selected needs a labeler before SFT, but this run trains its reward model after SFT. "
            "Name a trained reward model: label.reward_model.path=FOLDER."
        )
    ranked = cfg.pairs.strategy in (Strategy.ranked, Strategy.margin)  # strategies that estimate score differences
    if cfg.stage == Target.reward and cfg.reward.margin and not source.path and cfg.label.prefers and not ranked:
        raise UserError(
            f"reward.margin=true: label={cfg.label.labeler} gives no score differences. Set reward.margin=false, "
            "or use pairs=ranked."
        )
    for name in OF_PROMPTS:
        if vars(source)[name]:
            raise UserError(f"reward.source.{name} is only for sources of prompts, not of preferences. Leave it out.")


def untested_message(cfg: Config) -> str:
    """Return why nothing can be evaluated: no prompt with checks, no held-out pair and no judge; else ''. Rephrased
    and plain prompts do not count, as they measure consistency and retention."""
    split = cfg.answer.split
    groups = {name for name, group_split in SPLIT_OF_GROUP.items() if group_split == split}
    groups -= {"rephrased", "open_plain"}
    checked = [s for s in cfg.data.sources if s.check and s.shares.get(split)]
    held_out = cfg.pairs if cfg.by_pairs else cfg.unpaired
    paired = cfg.by_labels and held_out.validation_fraction > 0
    if checked or any(vars(cfg.data.tasks)[group] for group in groups) or paired or cfg.eval.judged.is_requested:
        return ""
    stage = cfg.stage if cfg.stage in EVALUATING else Target.report
    return (
        f"stage={stage}: nothing measures whether training helped. Add {split} prompts with checks "
        f"(data.tasks.{split}), held-out pairs (pairs.validation_fraction) or a judge (eval/judged=judge)."
    )


def validate_outside(cfg: Config) -> None:
    """Raise UserError for outside test sets with the same name, an unknown check, or splits."""
    names = [Path(s.path).name for s in cfg.outside]
    if len(set(names)) < len(names):
        raise UserError(f"outside names {', '.join(names)}: file names must differ in the results. Rename one.")
    for i, source in enumerate(cfg.outside):
        require_known(f"outside[{i}].check", [str(source.check)], choices.SOURCE_CHECKS)
        if source.splits:
            raise UserError(f"outside[{i}].splits={source.splits}: every outside row is a test. Leave splits out.")


def validate_people(cfg: Config) -> None:
    """Raise UserError for settings of people's labels, or of known labels, that cannot work."""
    for label in cfg.labels:
        with name_block(label.name):
            if label.known and not label.audit:
                raise UserError("label.known needs judgements to compare with. Add label.audit=200, which draws them.")
            if "human" in label.labelers:
                validate_human(label.human)
    if "human" in cfg.label.labelers and cfg.sft.demonstrations is choices.Demonstrations.selected:
        raise UserError("sft.demonstrations=selected needs scores, and people give preferences. Use label=verifier.")


def validate_human(human: Human) -> None:
    """Raise UserError if `label=human` lacks a package or its file of answers, or has too many reasons."""
    if any(find_spec(package) is None for package in ("starlette", "uvicorn")):
        raise UserError(f"label.human needs starlette and uvicorn for its page: {install_command('people')}.")
    if len({*(human.reasons or [])}) < len(human.reasons or []) or len(human.reasons or []) > 9:
        raise UserError("label.human.reasons: people press 1 to 9 for a reason. Name at most nine, each once.")
    if human.answered and not plugins.user_path(human.answered).is_file():
        raise UserError(f"label.human.answered={human.answered}: the file does not exist. Correct the path.")


def validate_launch(config: Config) -> None:
    """Raise UserError for a launch whose processes cannot find each other or cannot shard the model."""
    cfg = config.launch
    if cfg.nodes > 1 and not cfg.rendezvous:
        raise UserError(f"launch.nodes={cfg.nodes} needs launch.rendezvous=HOST:PORT, with a free port of node 0.")
    named = re.fullmatch(r"\S+:(\d{1,5})", cfg.rendezvous or "")
    if cfg.rendezvous and not (named and 0 < int(named[1]) < 1 << 16):
        raise UserError(f"launch.rendezvous={cfg.rendezvous} is not HOST:PORT, the address and a free port of node 0.")
    if not 0 <= cfg.node_rank < cfg.nodes:
        raise UserError(f"launch.node_rank={cfg.node_rank} must be below launch.nodes={cfg.nodes}, and at least 0.")
    if cfg.sharding is not Sharding.none and cfg.processes * cfg.nodes == 1:
        raise UserError(
            f"launch.sharding={cfg.sharding} divides a model among processes, and launch.processes=1 starts one. "
            "Use launch.processes=2 or more, or launch=local."
        )
    if cfg.sharding is Sharding.zero3 and find_spec("deepspeed") is None:
        raise UserError("launch=zero3 needs DeepSpeed: pip install deepspeed. launch=fsdp needs nothing.")


def validate_adapters(cfg: Config) -> None:
    """Raise UserError for adapters that cannot be trained, or have no adapter to continue."""
    if cfg.dpo.adapter is Adapter.continued and (cfg.sft.adapter is not Adapter.lora or not cfg.sft.train):
        raise UserError("dpo.adapter=continued continues the adapter of SFT. Set sft.adapter=lora.")
    if cfg.dpo.adapter is Adapter.continued and cfg.rounds > 1:
        raise UserError("dpo.adapter=continued needs rounds=1, as a round merges its adapter. Use dpo.adapter=lora.")
    for name, block in cfg.trained.items():
        validate_adapter(name, block, elsewhere=cfg.planned_gpu is not None)


def validate_adapter(name: str, block: Training, elsewhere: bool) -> None:
    """Raise UserError for an adapter that the objective, this machine or the launch does not support. `elsewhere`:
    another machine is planned for, whose libraries are not known here."""
    if block.adapter not in block.objective.adapters:
        raise UserError(
            f"{name}.adapter={block.adapter}: {block.objective.title} can only use "
            f"{', '.join(block.objective.adapters)}."
        )
    if block.adapter is not Adapter.qlora:
        return
    if not elsewhere and find_spec("bitsandbytes") is None:
        raise UserError(f"{name}.adapter=qlora needs bitsandbytes for 4-bit weights: {install_command('qlora')}.")
    if block.runtime.sharding is not Sharding.none:
        raise UserError(f"{name}.adapter=qlora cannot be sharded. Use launch=ddp, or {name}.adapter=lora.")


def validate_push(config: Config) -> None:
    """Raise UserError for an export to the hub without a repository, a token, or a model trained here."""
    cfg = config.export
    pushes = cfg.format is choices.ExportFormat.hub or (cfg.format is choices.ExportFormat.dataset and cfg.repo)
    if config.stage != Command.export or not pushes:
        return
    if not cfg.repo:
        raise UserError("export.format=hub needs export.repo=user/name.")
    if cfg.format is choices.ExportFormat.hub and cfg.model is choices.Role.base:
        raise UserError("export.model=base was not trained here, so it is not pushed. Use another model.")
    if not os.environ.get("HF_TOKEN"):
        raise UserError(f"export.format={cfg.format} needs a token that can write. Set HF_TOKEN in the environment.")
