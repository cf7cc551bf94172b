"""What a type cannot say of a configuration, refused before anything is built."""

import os
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from stages.config import limits, trl_arguments
from stages.config.blocks.data import SPLIT_OF_GROUP
from stages.config.blocks.labels import Human
from stages.config.blocks.training import Training
from stages.config.choices import (
    SOURCE_CHECKS,
    Adapter,
    Align,
    Command,
    Demonstrations,
    ExportFormat,
    Role,
    Sharding,
    Strategy,
)
from stages.config.errors import Errors, UserError, in_the_name_of, one_of
from stages.config.installation import install_command
from stages.config.schema import Config, Target, group_defaults
from stages.preflight import (
    candidate_sources,
    capacity,
    comparisons,
    data_sources,
    ensemble_members,
    servers,
    user_files,
)
from stages.store import plugins

# Keys of a source that preferences do not have.
OF_PROMPTS = ("task", "documents", "rows", "check", "splits", "weight", "epochs")

EVALUATING = (Target.answer, Target.versus, Target.eval, Target.report)


def refuse(cfg: Config) -> None:
    """Raise UserError for the settings that cannot work: first for values outside their limits, else for those that do
    not go together, all of them in one message."""
    one_of("stage", [cfg.stage], [*Target, *Command])
    errors = Errors()
    with errors:
        limits.refuse(cfg.launch, "launch.")  # from which blocks take their processes
    with errors:
        limits.refuse(cfg)
    errors.refuse()
    if cfg.data.tasks is None:
        raise UserError("data.tasks=null: data=file has none of them, and sources alone.")
    checks: list[Callable[[Config], None]] = [
        *(together, words, candidate_sources.refuse, ensemble_members.refuse, servers.refuse, given, rewarded),
        *(own_parts, data_sources.refuse, user_files.refuse, by_people, labelled, launched, adapters, trainers),
        comparisons.refuse,
        *(capacity.refuse, pushed),
    ]
    for check in checks:
        with errors:
            check(cfg)
    errors.refuse()


def words(cfg: Config) -> None:
    """Words that are the names of files in the project's packages."""
    errors = Errors()
    for key, word, known in (
        ("label.labeler", cfg.label.labeler, plugins.words("labelers", "Labeler")),
        ("tracker.name", cfg.tracker.name, [*plugins.words("tracking", "Run"), "none"]),
        ("sft.template.kind", cfg.sft.template.kind, [*plugins.templates(), "auto", "own", "file"]),
    ):
        with errors:
            one_of(key, [word], known)
    if not cfg.data.own and cfg.data.tasks:  # the user's own families: nobody has read their names yet
        with errors:
            one_of("data.tasks.families", cfg.data.tasks.families, plugins.families())
    errors.refuse()


def own_parts(cfg: Config) -> None:
    """Parts of the user's own: their files, and what they exclude."""
    for name, own in cfg.own_parts.items():
        if not own and (own.name or own.options):
            raise UserError(f"{name}.own names no file: {name}.own={{file: FILE, name: NAME}}.")
    if cfg.label.own and cfg.label.labeler == "dataset":
        raise UserError("label=dataset brings labels, and label.own makes some: choose one of them.")


def trainers(cfg: Config) -> None:
    """Arguments of TRL's trainers."""
    errors = Errors()
    for name, block in cfg.trained.items():
        with errors:
            trl_arguments.refuse(name, block, group_defaults(name).trainer)
    errors.refuse()


def together(cfg: Config) -> None:
    """What limits of single keys do not say of seeds, temperatures, quantiles and the widths of a random model."""
    if cfg.seed in cfg.seeds or len(set(cfg.seeds)) < len(cfg.seeds):
        raise UserError(f"seeds={cfg.seeds} come beside seed={cfg.seed}: each once.")
    if cfg.sample.rounds != cfg.rounds:
        raise UserError(f"sample.rounds={cfg.sample.rounds}: set rounds={cfg.sample.rounds} instead.")
    if not cfg.sample.temperatures:
        raise UserError("sample.temperatures names none: [0.9] samples every candidate at 0.9.")
    lists = {f"{name}.lora.target_modules": block.lora.target_modules for name, block in cfg.trained.items()}
    for key, items in {"dpo.loss_type": cfg.dpo.loss_type, **lists}.items():
        if twice := [item for i, item in enumerate(items) if item in items[:i]]:
            raise UserError(f"{key}={items}: {twice[0]} stands there twice. Name each once.")
    for key, band in (("pairs", cfg.pairs.margin_quantiles), ("reward.pairs", cfg.reward.pairs.margin_quantiles)):
        if band is not None and not (len(band) == 2 and band[0] < band[1]):
            raise UserError(f"{key}.margin_quantiles={band}: the lower and the higher of two: [0.25, 0.75].")
    if init := cfg.model.random_init:
        # An even width, for rotary embeddings turn pairs; half as many heads for keys and values divide the heads.
        fit = [h for h in range(1, 1025) if init.hidden_size % (2 * h) == 0 and h % max(h // 2, 1) == 0]
        if init.heads not in fit:
            raise UserError(
                f"model.random_init.heads={init.heads} does not divide model.random_init.hidden_size="
                f"{init.hidden_size} into heads of an even width. "
                + (f"These do: {', '.join(map(str, fit))}." if fit else "Nothing does: make hidden_size even.")
            )


def given(cfg: Config) -> None:
    """What a run starts from: model, data, labels."""
    assert cfg.data.tasks is not None  # `refuse` told it before
    read = cfg.sft.train or not cfg.own_prompts  # else nothing asks for data
    if read and not cfg.data.sources and not any(vars(cfg.data.tasks)[group] for group in SPLIT_OF_GROUP):
        raise UserError("data has neither tasks nor sources. Name a file: 'data.sources=[{path: FILE}]'.")
    if cfg.data.tasks.open_sft and cfg.sft.demonstrations is Demonstrations.given:
        raise UserError(
            f"data.tasks.open_sft={cfg.data.tasks.open_sft}: open requests have no reference answers to learn from. "
            "sft.demonstrations=null has the base answer them, and keeps what passes."
        )
    if cfg.sft.demonstrations is Demonstrations.selected and (cfg.label.brings_pool or not cfg.sft.train):
        reason = "label=dataset judges no answers" if cfg.label.brings_pool else "sft=none trains nothing"
        raise UserError(f"sft.demonstrations=selected: {reason}. Set it to given.")
    if cfg.control and (cfg.rounds > 1 or cfg.dpo.adapter is Adapter.continued):
        raise UserError("control=true compares one round of DPO, with an adapter of its own or none, to SFT alone.")
    if cfg.label.brings_pool and not cfg.label.path:
        raise UserError("label=dataset needs label.path: a preference file, folder or hub dataset.")
    if cfg.label.brings_pool and cfg.rounds > 1:
        raise UserError(
            f"label=dataset labels nothing new, so rounds={cfg.rounds} would train on the same pairs again."
        )
    if cfg.model.path and cfg.model.random_init:
        raise UserError(
            f"model.path={cfg.model.path} and model.random_init exclude each other: set one of them to null."
        )
    if cfg.stage in EVALUATING and (message := untested_message(cfg)):
        raise UserError(message)


def rewarded(cfg: Config) -> None:
    """What a reward model learns from, and who labels by one."""
    source = cfg.reward.source
    for label in cfg.labels:
        with in_the_name_of(label.name):
            if label.by_reward and not source.path:
                raise UserError(
                    "label=reward_model needs a model: label.reward_model.path=FOLDER, or what this run is to train "
                    "one on, reward.source.path=FILE."
                )
    if cfg.label.by_reward and cfg.sft.demonstrations is Demonstrations.selected:
        raise UserError(
            "sft.demonstrations=selected is labelled before there is an SFT model, from which the run's own reward "
            "model is trained: name another, label.reward_model.path=FOLDER."
        )
    ranked = cfg.pairs.strategy in (Strategy.ranked, Strategy.margin)  # which estimate by how much
    if cfg.stage == Target.reward and cfg.reward.margin and not source.path and cfg.label.prefers and not ranked:
        raise UserError(
            f"reward.margin=true: label={cfg.label.labeler} says which answer is better and not by how much. Set it "
            "to false, or use pairs=ranked."
        )
    for name in OF_PROMPTS:
        if vars(source)[name]:
            raise UserError(f"reward.source.{name} is for prompts, and a reward model learns from preferences.")


def untested_message(cfg: Config) -> str:
    """Return why no model can be evaluated: no prompt of the answers' split has checks, no pair is held out, and
    nobody judges. Return '' where something tells whether it helped. Rephrased prompts say how consistent a model is,
    plain ones what it retains."""
    split = cfg.answer.split
    groups = [g for g, its in SPLIT_OF_GROUP.items() if its == split and g not in ("rephrased", "open_plain")]
    sources = [s for s in cfg.data.sources if s.check and s.shares.get(split)]
    paired = cfg.align is not Align.none and cfg.pairs.validation_fraction > 0
    if sources or any(vars(cfg.data.tasks)[group] for group in groups) or paired or cfg.eval.judged.wanted:
        return ""
    stage = cfg.stage if cfg.stage in EVALUATING else Target.report
    return (
        f"stage={stage}: nothing tells whether it helped: no {split} prompt has checks (data.tasks.{split}), no pair "
        "is held out (pairs.validation_fraction), and nobody judges (eval/judged=judge)."
    )


def labelled(cfg: Config) -> None:
    """What results of `outside` are called, and how its answers are compared."""
    names = [Path(s.path).name for s in cfg.outside]
    if len(set(names)) < len(names):
        raise UserError(f"outside names {', '.join(names)}: results are told apart by the file's name. Rename one.")
    for i, source in enumerate(cfg.outside):
        one_of(f"outside[{i}].check", [str(source.check)], SOURCE_CHECKS)
        if source.splits:
            raise UserError(
                f"outside[{i}].splits={source.splits}: all rows of an outside set are tests. Leave it out."
            )


def by_people(cfg: Config) -> None:
    """Whom people judge for, and by which files."""
    for label in cfg.labels:
        with in_the_name_of(label.name):
            if label.known and not label.audit:
                raise UserError(
                    "label.known is what audited judgements are held against: label.audit=200 sets some aside."
                )
            if "human" in label.labelers:
                people(label.human)
    if "human" in cfg.label.labelers and cfg.sft.demonstrations is Demonstrations.selected:
        raise UserError("sft.demonstrations=selected takes answers by their scores, and people give preferences.")


def people(human: Human) -> None:
    """What `label=human` needs, and that a file of answers is there before anything is sampled for them."""
    if any(find_spec(package) is None for package in ("starlette", "uvicorn")):
        raise UserError(f"label.human: its page needs starlette and uvicorn: {install_command('people')}.")
    if len({*(human.reasons or [])}) < len(human.reasons or []) or len(human.reasons or []) > 9:
        raise UserError("label.human.reasons has the keys 1 to 9: up to nine of them, each once.")
    if human.answered and not plugins.user_path(human.answered).is_file():
        raise UserError(f"label.human.answered={human.answered}: no such file.")


def launched(whole: Config) -> None:
    """How several processes find each other, and what divides a model among them."""
    cfg = whole.launch
    if cfg.nodes > 1 and not cfg.rendezvous:
        raise UserError(f"launch.nodes={cfg.nodes} needs launch.rendezvous=HOST:PORT: a free port of node 0.")
    named = re.fullmatch(r"\S+:(\d{1,5})", cfg.rendezvous or "")
    if cfg.rendezvous and not (named and 0 < int(named[1]) < 1 << 16):
        raise UserError(f"launch.rendezvous={cfg.rendezvous} is no HOST:PORT: the address and a free port of node 0.")
    if not 0 <= cfg.node_rank < cfg.nodes:
        raise UserError(f"launch.node_rank={cfg.node_rank} is none of {cfg.nodes} nodes, counted from 0.")
    if cfg.sharding is not Sharding.none and cfg.processes * cfg.nodes == 1:
        raise UserError(
            f"launch.sharding={cfg.sharding} divides a model among processes, and launch.processes=1 starts one: "
            "launch.processes=2 or more, or launch=local."
        )
    if cfg.sharding is Sharding.zero3 and find_spec("deepspeed") is None:
        raise UserError("launch=zero3 needs DeepSpeed: pip install deepspeed. launch=fsdp needs nothing.")


def adapters(cfg: Config) -> None:
    """What low-rank adapters go on from, and what they need."""
    if cfg.dpo.adapter is Adapter.continued and (cfg.sft.adapter is not Adapter.lora or not cfg.sft.train):
        raise UserError("dpo.adapter=continued goes on with the SFT's adapter, which sft.adapter=lora makes.")
    if cfg.dpo.adapter is Adapter.continued and cfg.rounds > 1:
        raise UserError(
            f"dpo.adapter=continued with rounds={cfg.rounds}: a round starts from merged weights. Use lora."
        )
    for name, block in cfg.trained.items():
        adapter(name, block)


def adapter(name: str, block: Training) -> None:
    """What low-rank adapters need."""
    if block.adapter not in block.objective.adapters:
        raise UserError(
            f"{name}.adapter={block.adapter}: {block.objective.title} is trained with one of "
            f"{', '.join(block.objective.adapters)}."
        )
    if block.adapter is not Adapter.qlora:
        return
    if find_spec("bitsandbytes") is None:
        raise UserError(f"{name}.adapter=qlora needs bitsandbytes for 4-bit weights: {install_command('qlora')}.")
    if block.runtime.sharding is not Sharding.none:
        raise UserError(f"{name}.adapter=qlora cannot be divided among processes: use launch=ddp, or adapter=lora.")


def pushed(whole: Config) -> None:
    """What a push needs to be told, before anything is built for it."""
    cfg = whole.export
    pushes = cfg.format is ExportFormat.hub or (cfg.format is ExportFormat.dataset and cfg.repo)
    if whole.stage != Command.export or not pushes:
        return
    if not cfg.repo:
        raise UserError("export.format=hub needs export.repo=user/name.")
    if cfg.format is ExportFormat.hub and cfg.model is Role.base:
        raise UserError("export.model=base was not made here, so it is not pushed: the others are.")
    if not os.environ.get("HF_TOKEN"):
        raise UserError(
            f"export.format={cfg.format} pushes with a token that may write: set HF_TOKEN in the environment."
        )
