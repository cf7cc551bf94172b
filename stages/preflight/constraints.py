"""Checks of a configuration that types cannot express, before anything is built."""

import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from stages.config import choices, limits, trainers
from stages.config.blocks.data import SPLIT_OF_GROUP
from stages.config.blocks.evaluation import Compared
from stages.config.blocks.labels import People, RewardModel
from stages.config.blocks.training import DPO, KTO, SFT, Training
from stages.config.choices import Adapter, Align, Command, Precision, Sharding, Strategy
from stages.config.errors import UserError, check_all, name_block, require_known
from stages.config.installation import install_command, read_beside, version
from stages.config.schema import Config, Target
from stages.hardware import machine
from stages.preflight import capacity, judged, servers, sources, user_files
from stages.store import plugins

# Keys of a source of prompts, which a source of preferences does not have.
OF_PROMPTS = ("task", "documents", "rows", "check", "splits", "weight", "epochs")

TEXTS = read_beside(__file__)
EVALUATING = (Target.answer, Target.versus, Target.eval, Target.report)


def validate_config(cfg: Config) -> None:
    """Raise one UserError for all values outside their limits, else for all settings that do not fit together."""
    require_known("stage", [cfg.stage], [*Target, *Command])
    # Other blocks take their number of processes from `launch`, so it comes first.
    check_all(
        [partial(limits.validate_block, cfg.launch, "launch."), partial(limits.validate_block, cfg)]
    )
    checks: list[Callable[[Config], None]] = [
        *(validate_combinations, validate_words, sources.validate_sample),
        *(
            validate_labels,
            servers.validate_endpoints,
            validate_inputs,
            validate_reward,
        ),
        *(
            validate_own_parts,
            sources.validate_data,
            user_files.validate_user_files,
        ),
        *(
            validate_outside,
            validate_checks,
            validate_launch,
            validate_trackers,
            validate_adapters,
            validate_trainers,
            judged.validate_judged,
        ),
        *(capacity.validate_capacity, validate_push),
    ]
    check_all(partial(check, cfg) for check in checks)


def validate_words(cfg: Config) -> None:
    """Raise UserError for unknown words that name files: task families and stages."""
    # With data.own the names of user-defined families are not read yet.
    families = cfg.data.tasks.families if cfg.data.tasks and not cfg.data.own else []
    chosen_words = (
        ("data.tasks.families", families, plugins.family_names()),
        ("plan.tokens", [*cfg.plan.tokens], [*Target]),
    )
    check_all(partial(require_known, *each) for each in chosen_words)


def validate_own_parts(cfg: Config) -> None:
    """Raise UserError for a user-defined part without a file."""
    for name, own in cfg.own_parts.items():
        if not own and (own.name or own.options):
            raise UserError(f"{name}.own has no file. Set {name}.own={{file: FILE, name: NAME}}.")


def validate_trainers(cfg: Config) -> None:
    """Raise UserError for keys of objectives that do not fit together, or arguments that TRL does not take."""
    checks: list[Callable[[], object]] = [block.check for block in cfg.trained.values()]
    checks += [partial(trainers.validate_trainer, *each) for each in cfg.trained.items()]
    for name, block in cfg.trained.items():
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
            raise UserError(TEXTS["heads"].format(init=init, way_out=way_out))


def validate_inputs(cfg: Config) -> None:
    """Raise UserError for a model, data or labels that a run cannot start from."""
    reads_data = cfg.sft.train or not cfg.own_prompts  # otherwise no stage reads data
    has_data = cfg.data.sources or cfg.data.generated
    from_file = cfg.label.brings_pool
    only_given = isinstance(cfg.sft, SFT) and cfg.sft.demonstrations is choices.Demonstrations.given
    given, examine = cfg.align is Align.given, cfg.examine
    conditions: dict[str, object] = {
        "not examined": cfg.stage == Target.examine and not given,
        "nothing given": given and not (examine.model and examine.before),
        "given and trained": given
        and (cfg.sft.train or not from_file or cfg.model.path != examine.before),
        "no rows": reads_data and not has_data,
        "open requests": "open_sft" in cfg.data.generated and only_given,
        "no single scores": cfg.selects_by_label and not cfg.label.scores_alone,
    }
    refuse(conditions, cfg=cfg)
    for i, arm in enumerate(cfg.arms):
        if cfg.align is Align.none or arm in (Align.none, cfg.align, *cfg.arms[:i]):
            raise UserError(TEXTS["arm"].format(cfg=cfg, i=i, arm=arm))
    conditions = {
        "continued control": cfg.control and cfg.dpo.adapter is Adapter.continued,
        "same pairs": from_file and cfg.rounds > 1,
        "two models": cfg.model.path and cfg.model.random_init,
    }
    refuse(conditions, cfg=cfg)
    if cfg.stage in EVALUATING and (message := untested_message(cfg)):
        raise UserError(message)


def validate_reward(cfg: Config) -> None:
    """Raise UserError for a reward model without training data, or a labeler without a reward model."""
    source = cfg.reward.source
    for part in (part for label in cfg.labels for part in label.parts):
        with name_block(part.block):
            if part.by_reward and not source.path:
                raise UserError(TEXTS["no reward model"])
    if cfg.label.by_reward and cfg.selects_by_label:
        raise UserError(TEXTS["late reward model"])
    # strategies that estimate score differences
    ranked = cfg.pairs.strategy in (Strategy.ranked, Strategy.margin)
    if (
        cfg.stage == Target.reward
        and cfg.reward.margin
        and not source.path
        and cfg.label.prefers
        and not ranked
    ):
        raise UserError(TEXTS["no margin"].format(cfg=cfg))
    for name in OF_PROMPTS:
        if vars(source)[name]:
            raise UserError(
                f"reward.source.{name} is only for sources of prompts, not of preferences. Leave it out."
            )


def untested_message(cfg: Config) -> str:
    """Return why nothing can be evaluated: no prompt with checks, no held-out pair and no judge; else ''. Rephrased
    and plain prompts and requested lengths do not count, as they measure consistency and retention."""
    split = cfg.answer.split
    groups = {name for name, group_split in SPLIT_OF_GROUP.items() if group_split == split}
    groups -= {"rephrased", "open_plain", "open_lengths"}
    checked = [s for s in cfg.data.sources if s.check and s.shares.get(split)]
    generated = groups & cfg.data.generated.keys()
    if checked or generated or cfg.holds_out or isinstance(cfg.eval.judged, Compared):
        return ""
    stage = cfg.stage if cfg.stage in EVALUATING else Target.report
    held_out = f", held-out labels ({cfg.label_block}.validation_fraction)" if cfg.by_labels else ""
    return str(TEXTS["untested"].format(stage=stage, split=split, held_out=held_out))


def validate_checks(cfg: Config) -> None:
    """Raise UserError if a source's check needs a package that is missing."""
    for source in (*cfg.data.sources, *cfg.outside):
        if source.check == "math" and find_spec("math_verify") is None:
            raise UserError(
                f"check: math needs the package math-verify. Install it: {install_command('math')}."
            )


def validate_outside(cfg: Config) -> None:
    """Raise UserError for outside test sets with the same name, an unknown check, or splits."""
    names = [Path(s.path).name for s in cfg.outside]
    if len(set(names)) < len(names):
        raise UserError(
            f"outside names {', '.join(names)}: file names must differ in the results. Rename one."
        )
    for i, source in enumerate(cfg.outside):
        require_known(f"outside[{i}].check", [str(source.check)], choices.SOURCE_CHECKS)
        if source.splits:
            raise UserError(
                f"outside[{i}].splits={source.splits}: every outside row is a test. Leave splits out."
            )


def validate_labels(cfg: Config) -> None:
    """Raise UserError for labelers whose settings do not fit together, or that cannot work on this machine."""
    for label in cfg.labels:
        with name_block(label.block):
            label.check()
        if label.asks:
            validate_people(label.asks)


def validate_people(people: People) -> None:
    """Raise UserError if a page that asks people lacks a package, or their answers are no file."""
    lacks_page = any(find_spec(package) is None for package in ("starlette", "uvicorn"))
    no_answers = people.answered and not plugins.user_path(people.answered).is_file()
    conditions = {"no page": lacks_page, "no answers": no_answers}
    refuse(conditions, people=people, command=install_command("people"))


def validate_launch(cfg: Config) -> None:
    """Raise UserError for a launch whose processes cannot find each other or cannot shard the model."""
    launch = cfg.launch
    named = re.fullmatch(r"\S+:(\d{1,5})", launch.rendezvous or "")
    sharded = launch.sharding is not Sharding.none
    torch_version = [int(number) for number in str(version("torch")).split(".")[:2]]
    conditions = {
        "no rendezvous": launch.nodes > 1 and not launch.rendezvous,
        "rendezvous": launch.rendezvous and not (named and 0 < int(named[1]) < 1 << 16),
        "node rank": not 0 <= launch.node_rank < launch.nodes,
        "one process": sharded and launch.processes * launch.nodes == 1,
        "old PyTorch": launch.sharding is Sharding.fsdp
        and cfg.planned_gpu is None
        and torch_version < [2, 13],
        "no DeepSpeed": launch.sharding is Sharding.zero3 and find_spec("deepspeed") is None,
        "no Ray": launch.address and find_spec("ray") is None,
        "address": launch.address and not re.fullmatch(r"auto|[^\s/]+:\d{1,5}", launch.address),
        "Ray and nodes": launch.address and launch.nodes > 1,
        "no GPU for tasks": launch.address and launch.num_gpus and not machine.may_have_gpu(),
    }
    refuse(conditions, launch=launch, command=install_command("ray"))


def validate_trackers(cfg: Config) -> None:
    """Raise UserError for a tracker whose package is missing, or that cannot take the names of this project or group."""
    tracker = cfg.tracker
    for name in tracker.names:
        packages = ("mlflow", "sqlalchemy", "alembic") if name == "mlflow" else (name,)
        is_missing = any(find_spec(package) is None for package in packages)
        folders = [tracker.project, tracker.group or "the node"]
        conditions = {
            "team in project": name == "wandb" and re.search(r"[/\\#?%:]", tracker.project),
            "no folder": name == "tensorboard"
            and any(re.search(r"[/\\]|^\.", folder) for folder in folders),
            # The libraries of another machine that is planned for are not known here.
            "no tracker": cfg.planned_gpu is None and is_missing,
        }
        refuse(conditions, name=name, tracker=tracker, command=install_command(name))


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
        conditions = {
            "adapter": block.adapter not in block.objective.adapters,
            # The libraries of another machine that is planned for are not known here.
            "no bitsandbytes": quantized
            and cfg.planned_gpu is None
            and find_spec("bitsandbytes") is None,
            "sharded qlora": quantized and block.runtime.sharding is not Sharding.none,
        }
        words = {"name": name, "block": block, "adapters": ", ".join(block.objective.adapters)}
        refuse(conditions, **words, command=install_command("qlora"))


def validate_push(cfg: Config) -> None:
    """Raise UserError for an export to the hub without a repository, a token, or a model trained here."""
    if cfg.stage == Command.export:
        cfg.export.check()
    export, to_hub = cfg.export, cfg.export.format is choices.ExportFormat.hub
    pushes = to_hub or (export.format is choices.ExportFormat.dataset and export.repo)
    if cfg.stage == Command.export and pushes:
        conditions = {
            "no repository": not export.repo,
            "base pushed": to_hub and export.model is choices.Role.base,
            "no token": not os.environ.get("HF_TOKEN"),
        }
        refuse(conditions, export=export)


def refuse(conditions: Mapping[str, object], **words: object) -> None:
    """Raise UserError with the message of the first condition that holds. `words` fill the braces of its YAML text."""
    for name, holds in conditions.items():
        message = TEXTS[name]
        if holds:
            raise UserError(message.format(**words))
