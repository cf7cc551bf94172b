"""Keys that are typed and that nothing reads under the other settings: `label.path` without `label=dataset`.

What nobody typed, the value of a group or a recipe, may wait unread for another choice. In a sweep over that choice
some jobs read the key, so the others take it, too.
"""

from collections.abc import Iterator
from typing import NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser

from stages.cli.recipes import overrides
from stages.config.blocks.data import OPEN_GROUPS, SPLIT_OF_GROUP
from stages.config.blocks.runtimes import SampledRuntime
from stages.config.blocks.training import OBJECTIVES
from stages.config.choices import Adapter, Align, Command, ExportFormat, Rubrics, Strategy
from stages.config.errors import Errors
from stages.config.schema import Config
from stages.preflight.data_sources import is_local

OF_FILES = ("path", "revision", "subset", "hub_split", "format", "columns", "labels", "reasoning", "licence")
OF_THE_HUB = ("revision", "subset", "hub_split")
OF_SAMPLERS = ("sampler", "own", "top_p", "precision", "seed", "endpoint", "runtime")
OF_DRAWING = ("candidates_per_prompt", "temperatures", "max_new_tokens")  # which `select` has of its own
OF_TRAINING = (
    *("adapter", "lora", "learning_rate", "epochs", "batch_size", "max_length", "evaluations", "max_dropped"),
    *("precision", "trainer", "runtime", "demonstrations", "trained_turns", "packing"),
)
CHOOSES = {"sample": "sample.sampler"}  # a group, and the key that tells its options apart
LABEL = ("label", "label.labeler")  # keys that decide who labels,
DRAWN = (*LABEL, "sample", "sample.sampler", "sample.file", "sample.pool")  # and whether candidates are drawn


class Unread(NamedTuple):
    """Keys, each with all below it, that nothing reads, and the reason. `by`: the keys that decide it; `add`: what to
    type to have them read."""

    keys: tuple[str, ...]
    by: tuple[str, ...]
    reason: str
    add: str = ""


def refuse(cfg: Config, typed: list[str]) -> None:
    """Raise UserError for the keys of a command line that nothing reads."""
    values, errors = {key: value for key, value in overrides(typed).items() if value != "null"}, Errors()
    for keys, by, reason, add in (
        *labelling(cfg),
        *judging(cfg),
        *sampling(cfg),
        *training(cfg),
        *reading(cfg),
        *using(cfg),
    ):
        unread = [key for key in values if any(f"{CHOOSES.get(key, key)}.".startswith(f"{name}.") for name in keys)]
        if unread and not swept(by, typed):
            way = f"Add {add}, or leave" if add else "Leave"
            errors.add(f"{unread[0]}={values[unread[0]]}: {reason}. {way} the key out.")
    errors.refuse()


def swept(keys: tuple[str, ...], typed: list[str]) -> bool:
    """Return whether a sweep tries several values of one of these keys."""
    if not {"-m", "--multirun"} & {*typed}:
        return False
    lines = [f"{key}={value}" for key, value in overrides(typed).items() if key in keys]
    return any(override.is_sweep_override() for override in OverridesParser.create().parse_overrides(lines))


def labelling(cfg: Config) -> Iterator[Unread]:
    """Yield the unread keys of `label`."""
    label, members = cfg.label, (*LABEL, "label.ensemble.members")
    way = "{{labeler: {}}} to label.ensemble.members" if label.voters else "label={}"
    if not label.brings_pool:
        yield Unread(of("label", *OF_FILES), LABEL, "only label=dataset reads a preference file", "label=dataset")
    elif is_local(label.path, "label.path"):
        yield Unread(of("label", *OF_THE_HUB), ("label.path",), "label.path is no dataset of the hub")
    if "judge" not in label.labelers:
        yield Unread(("label.judge",), members, "no judge labels", way.format("judge"))
    elif label.judge.kind is Rubrics.pointwise:
        keys, reason = ("label.judge.comparisons",), "a judge that scores compares nothing"
        yield Unread(keys, ("label.judge.kind",), reason, "label.judge.kind=pairwise")
    if "human" not in label.labelers and label.labeler != "ensemble":
        yield Unread(("label.human",), LABEL, "no people are asked", "label=human")
    elif not label.human.overlap:
        reason = "label.human.overlap=0 puts no question to several people"
        yield Unread(("label.human.annotators",), ("label.human.overlap",), reason, "label.human.overlap=0.2")
    if "reward_model" not in label.labelers:
        yield Unread(("label.reward_model",), members, "no reward model labels", way.format("reward_model"))
    elif label.reward_model.path is None or is_local(label.reward_model.path, "label.reward_model.path"):
        keys, reason = ("label.reward_model.revision",), "label.reward_model.path is no model of the hub"
        yield Unread(keys, ("label.reward_model.path",), reason)
    if label.labeler != "ensemble":
        yield Unread(("label.ensemble",), LABEL, "one labeler labels alone", "label=ensemble")
    if label.prefers:
        reason = "the labels are preferences, and a threshold is for scores"
        yield Unread(("unpaired.threshold",), (*LABEL, "label.judge.kind"), reason)


def judging(cfg: Config) -> Iterator[Unread]:
    """Yield the unread keys of `eval.judged`, and of labels that `align=none` has none of."""
    judged, by = cfg.eval.judged, ("eval/judged", "eval.judged.labeler")
    if cfg.align is Align.none:
        reason = "align=none labels no candidates and trains on no pairs"
        for name in ("label", "sample", "pairs", "reference", "dpo", "rounds", "control"):
            yield Unread((name,), ("align",), reason, "align=dpo")
    if not judged.wanted:
        keys = ["source", "prompts", "max_longer", "max_failed", "audit", "known"]
        keys += ["against"] if cfg.align is not Align.none else []  # which names the other model there
        yield Unread(of("eval.judged", *keys), by, "nobody judges the answers", "eval/judged=judge")
    for name in ("judge", "human", "reward_model", "ensemble"):
        if name not in judged.label.labelers and judged.labeler != "ensemble":
            yield Unread(
                (f"eval.judged.{name}",), by, f"eval/judged={judged.labeler} reads none of it", f"eval/judged={name}"
            )


def sampling(cfg: Config) -> Iterator[Unread]:
    """Yield the unread keys of `sample`: candidates are in a file, or come from other sources."""
    label, sample = cfg.label, cfg.sample
    if label.brings_pool or all(block.file for block in sample.members):
        reason = "the candidates are in a file, and none is drawn"
        yield Unread(of("sample", *OF_DRAWING), DRAWN, reason)
        if not cfg.selects:
            chosen = OF_SAMPLERS[1:] if sample.brings_prompts and not label.brings_pool else OF_SAMPLERS
            yield Unread(of("sample", *chosen), DRAWN, reason)
    if label.brings_pool:
        yield Unread(("sample.prompts",), LABEL, "label=dataset brings its prompts")
    if sample.sampler != "openai" or sample.pool:
        reason = "sample=openai alone asks this endpoint; a source of sample.pool has its own"
        yield Unread(("sample.endpoint",), DRAWN, reason, "sample=openai")
    if not sample.file:
        yield Unread(("sample.columns",), ("sample.file",), "the columns are sample.file's, and there is none")
    if not any(block.sampler == "openai" or block.own or block.file for block in sample.members):
        reason = "only an endpoint, a file or a sampler of your own leaves candidates out"
        yield Unread(("sample.max_failed",), DRAWN, reason)
    drawn = [member for member in sample.pool or () if not member.file]
    for key, name in (("candidates_per_prompt", "n"), ("temperatures", "temperature"), ("top_p", "top_p")):
        if drawn and all(getattr(member, name) is not None for member in drawn):
            yield Unread((f"sample.{key}",), ("sample.pool",), f"every source of sample.pool has {name} of its own")


def training(cfg: Config) -> Iterator[Unread]:
    """Yield the unread keys of the models that are trained, and of their pairs and demonstrations."""
    if not cfg.sft.train:
        yield Unread(of("sft", *OF_TRAINING), ("sft", "sft.train"), "sft=none trains nothing", "sft=default")
    if cfg.sft.template.kind != "file":
        by: tuple[str, ...] = ("template", "sft.template.kind")
        yield Unread(("sft.template.path",), by, "no template is read from a file", "template=file")
    if not cfg.selects:
        by = ("sft", "sft.train", "sft.demonstrations", "data", "data.tasks.open_sft")
        yield Unread(("select",), by, "SFT learns from no answers of the base", "sft.demonstrations=selected")
    for name in OBJECTIVES:
        block = vars(cfg)[name]
        if block.adapter not in (Adapter.lora, Adapter.qlora):
            reason = f"{name}.adapter={block.adapter} makes no adapter"
            yield Unread((f"{name}.lora",), (name, f"{name}.adapter"), reason, f"{name}.adapter=lora")
        if isinstance(block.runtime, SampledRuntime) and not (block.runtime.samples and block.evaluations):
            by = of(name, "runtime.samples", "evaluations")
            yield Unread((f"{name}.runtime.sample_tokens",), by, f"{name} is not sampled while it trains")
    if cfg.pairs.strategy is Strategy.best_worst:
        by = ("pairs", "pairs.strategy")
        yield Unread(("pairs.max_per_prompt",), by, "pairs=best_worst makes one pair of a prompt", "pairs=all")
    if not cfg.control:
        yield Unread(("control_learning_rate",), ("control",), "there is no control", "control=true")
    source, by = cfg.reward.source, ("reward.source.path",)
    if not source.path:
        reason = "the reward model learns from the chain's pairs"
        yield Unread(of("reward.source", *OF_FILES[1:]), by, reason, "reward.source.path=FILE")
    elif is_local(source.path, "reward.source.path"):
        yield Unread(of("reward.source", *OF_THE_HUB), by, "reward.source.path is no dataset of the hub")


def reading(cfg: Config) -> Iterator[Unread]:
    """Yield the unread keys of the base model and the data."""
    if cfg.model.path is None or is_local(cfg.model.path, "model.path"):
        yield Unread(("model.revision",), ("model", "model.path"), "the model is not from the hub")
    if not (cfg.data.sources or cfg.outside):
        yield Unread(("data.form",), ("data.sources",), "no file is read whose rows it forms", "data.sources")
    audit, tasks = cfg.data.audit, cfg.data.tasks
    if cfg.stage != Command.audit:
        if not cfg.data.sources:
            yield Unread(("data.audit",), ("data.sources",), "no file is read whose rows it is about", "data.sources")
        if {*audit.thresholds} - {*audit.actions}:
            reason = "a threshold counts where its code has an action"
            keys, by = ("data.audit.thresholds",), ("data.audit.actions",)
            yield Unread(keys, by, reason, "data.audit.actions={CODE: drop}")
    if not any(vars(tasks)[group] for group in SPLIT_OF_GROUP if group not in OPEN_GROUPS):
        yield Unread(("data.tasks.families",), ("data",), "no task of a family is generated", "data=verifiable")


def using(cfg: Config) -> Iterator[Unread]:
    """Yield the unread keys of trackers, of chat and of export; other commands carry the keys of these two along."""
    by: tuple[str, ...] = ("tracker", "tracker.name")
    if cfg.tracker.name == "none" and cfg.stage != Command.sync:
        keys = of("tracker", "project", "entity", "group", "upload")
        yield Unread(keys, by, "tracker=none tells nobody", "tracker=wandb")
    if cfg.tracker.name == "trackio":
        yield Unread(("tracker.entity",), by, "trackio knows no teams", "tracker=wandb")
    if cfg.stage == Command.chat and cfg.chat.side_by_side:
        yield Unread(("chat.model",), ("chat.side_by_side",), "side by side all models answer")
    if cfg.stage != Command.export:
        return
    export, by = cfg.export, ("export.format",)
    if export.format is ExportFormat.gguf:
        keys = of("export", "repo", "private")
        yield Unread(keys, by, "export.format=gguf pushes nothing", "export.format=hub or export.format=dataset")
    else:
        yield Unread(("export.dtype",), by, f"export.format={export.format} writes no GGUF file", "export.format=gguf")
    if export.format is ExportFormat.dataset:
        yield Unread(("export.model",), by, "a dataset is of the whole run")
    if not export.repo:
        yield Unread(("export.private",), ("export.repo",), "nothing is pushed", "export.repo=user/name")


def of(block: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{block}.{name}" for name in names)
