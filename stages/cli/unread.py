"""Refuse typed keys that nothing reads under the other settings, such as `label.path` without `label=dataset`.

Keys of a group or a recipe are not refused, as another choice may read them. In a sweep over the deciding key, some
jobs read the typed key, so the other jobs accept it."""

from collections.abc import Iterator
from typing import NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser

from stages.cli.recipes import typed_values
from stages.config.blocks.data import OPEN_GROUPS, SPLIT_OF_GROUP
from stages.config.blocks.runtimes import SampledRuntime
from stages.config.blocks.training import OBJECTIVES
from stages.config.choices import Adapter, Align, Command, ExportFormat, Rubrics, Strategy
from stages.config.errors import Errors
from stages.config.schema import Config
from stages.preflight.sources import is_local

FILE_KEYS = ("path", "revision", "subset", "hub_split", "format", "columns", "labels", "reasoning", "licence")
HUB_KEYS = ("revision", "subset", "hub_split")
SAMPLER_KEYS = ("sampler", "own", "top_p", "precision", "seed", "endpoint", "runtime")
DRAW_KEYS = ("candidates_per_prompt", "temperatures", "max_new_tokens")  # `select` has the same keys
TRAINING_KEYS = (
    *("adapter", "lora", "learning_rate", "epochs", "batch_size", "max_length", "evaluations", "max_dropped"),
    *("precision", "trainer", "runtime", "demonstrations", "trained_turns", "packing"),
)
CHOOSES = {"sample": "sample.sampler"}  # a group, and the key in which its options differ
LABEL = ("label", "label.labeler")  # keys that decide who labels
DRAWN = (*LABEL, "sample", "sample.sampler", "sample.file", "sample.pool")  # keys that decide who samples


class Unread(NamedTuple):
    """Unread keys, each with all keys below it, and the reason. `deciding`: the keys on which this depends;
    `remedy`: the arguments with which they are read."""

    keys: tuple[str, ...]
    deciding: tuple[str, ...]
    reason: str
    remedy: str = ""


def refuse_unread(cfg: Config, typed: list[str]) -> None:
    """Raise one UserError for all typed keys that nothing reads."""
    values, errors = {key: value for key, value in typed_values(typed).items() if value != "null"}, Errors()
    for keys, deciding, reason, remedy in (
        *label_keys(cfg),
        *judged_keys(cfg),
        *sample_keys(cfg),
        *training_keys(cfg),
        *data_keys(cfg),
        *command_keys(cfg),
    ):
        unread = [key for key in values if any(f"{CHOOSES.get(key, key)}.".startswith(f"{name}.") for name in keys)]
        if unread and not is_swept(deciding, typed):
            way_out = f"Add {remedy}, or leave" if remedy else "Leave"
            errors.add(f"{unread[0]}={values[unread[0]]}: {reason}. {way_out} the key out.")
    errors.raise_all()


def is_swept(keys: tuple[str, ...], typed: list[str]) -> bool:
    """Return whether a sweep tries several values of one of these keys."""
    if not {"-m", "--multirun"} & {*typed}:
        return False
    lines = [f"{key}={value}" for key, value in typed_values(typed).items() if key in keys]
    return any(override.is_sweep_override() for override in OverridesParser.create().parse_overrides(lines))


def label_keys(cfg: Config) -> Iterator[Unread]:
    """Yield the unread keys of `label`."""
    label, members = cfg.label, (*LABEL, "label.ensemble.members")
    way = "{{labeler: {}}} to label.ensemble.members" if label.voters else "label={}"
    if not label.brings_pool:
        yield Unread(in_block("label", *FILE_KEYS), LABEL, "only label=dataset reads files", "label=dataset")
    elif is_local(label.path, "label.path"):
        yield Unread(in_block("label", *HUB_KEYS), ("label.path",), "label.path is not a hub dataset")
    if "judge" not in label.labelers:
        yield Unread(("label.judge",), members, "no judge is used", way.format("judge"))
    elif label.judge.kind is Rubrics.pointwise:
        keys, reason = ("label.judge.comparisons",), "a pointwise judge does not compare"
        yield Unread(keys, ("label.judge.kind",), reason, "label.judge.kind=pairwise")
    if "human" not in label.labelers and label.labeler != "ensemble":
        yield Unread(("label.human",), LABEL, "people are not asked", "label=human")
    elif not label.human.overlap:
        reason = "label.human.overlap=0 asks each question once"
        yield Unread(("label.human.annotators",), ("label.human.overlap",), reason, "label.human.overlap=0.2")
    if "reward_model" not in label.labelers:
        yield Unread(("label.reward_model",), members, "no reward model is used", way.format("reward_model"))
    elif label.reward_model.path is None or is_local(label.reward_model.path, "label.reward_model.path"):
        keys, reason = ("label.reward_model.revision",), "label.reward_model.path is not a hub model"
        yield Unread(keys, ("label.reward_model.path",), reason)
    if label.labeler != "ensemble":
        yield Unread(("label.ensemble",), LABEL, "there is only one labeler", "label=ensemble")
    if label.prefers:
        reason = "a threshold needs scores, and the labels are preferences"
        yield Unread(("unpaired.threshold",), (*LABEL, "label.judge.kind"), reason)


def judged_keys(cfg: Config) -> Iterator[Unread]:
    """Yield the unread keys of `eval.judged`, and of labels and pairs under `align=none`."""
    judged, deciding = cfg.eval.judged, ("eval/judged", "eval.judged.labeler")
    if not cfg.by_pairs:
        labels = in_block("label", "audit", "known") if Align.grpo in cfg.objectives else ("label",)
        of_labels = () if cfg.by_labels else (*labels, "sample", "reference")
        reason = f"align={cfg.align} {'labels no candidates and ' if of_labels else ''}trains on no pairs"
        of_dpo = ("pairs", "dpo", "rounds", "control", "control_pairs")
        yield Unread((*of_labels, *of_dpo), ("align",), reason, "align=dpo")
    for other in (Align.kto, Align.grpo):
        if other not in cfg.objectives:
            reason = f"align={cfg.align} does not train by {other.upper()}"
            yield Unread((other,), ("align",), reason, f"align={other}")
    if not judged.is_requested:
        keys = ["source", "prompts", "max_longer", "max_failed", "audit", "known"]
        keys += ["against"] if cfg.align is not Align.none else []  # with align=none, `against` names the other model
        yield Unread(in_block("eval.judged", *keys), deciding, "answers are not judged", "eval/judged=judge")
    for name in ("judge", "human", "reward_model", "ensemble"):
        if name not in judged.label.labelers and judged.labeler != "ensemble":
            reason = f"eval/judged={judged.labeler} does not read it"
            yield Unread((f"eval.judged.{name}",), deciding, reason, f"eval/judged={name}")


def sample_keys(cfg: Config) -> Iterator[Unread]:
    """Yield the unread keys of `sample` if candidates are in a file or come from other sources."""
    label, sample = cfg.label, cfg.sample
    if label.brings_pool or all(block.file for block in sample.members):
        reason = "the candidates are in a file, so none are sampled"
        yield Unread(in_block("sample", *DRAW_KEYS), DRAWN, reason)
        if not cfg.selects:
            chosen = SAMPLER_KEYS[1:] if sample.brings_prompts and not label.brings_pool else SAMPLER_KEYS
            yield Unread(in_block("sample", *chosen), DRAWN, reason)
    if label.brings_pool:
        keys = in_block("sample", "prompts", "prompts_per_round", "draw", "until_pair")
        yield Unread(keys, LABEL, "label=dataset has its own prompts")
    if sample.sampler != "openai" or sample.pool:
        reason = "only sample=openai uses this endpoint, and sources of sample.pool have their own"
        yield Unread(("sample.endpoint",), DRAWN, reason, "sample=openai")
    if not sample.file:
        yield Unread(("sample.columns",), ("sample.file",), "it describes sample.file, which is not set")
    if not any(block.sampler == "openai" or block.own or block.file for block in sample.members):
        reason = "only an endpoint, a file or sample.own can fail"
        yield Unread(("sample.max_failed",), DRAWN, reason)
    drawn = [member for member in sample.pool or () if not member.file]
    for key, name in (("candidates_per_prompt", "n"), ("temperatures", "temperature"), ("top_p", "top_p")):
        if drawn and all(getattr(member, name) is not None for member in drawn):
            yield Unread((f"sample.{key}",), ("sample.pool",), f"every source of sample.pool sets {name}")


def training_keys(cfg: Config) -> Iterator[Unread]:
    """Yield the unread keys of the models that are trained, and of their pairs and demonstrations."""
    if not cfg.sft.train:
        yield Unread(in_block("sft", *TRAINING_KEYS), ("sft", "sft.train"), "sft=none trains nothing", "sft=default")
    if cfg.sft.template.kind != "file":
        deciding: tuple[str, ...] = ("template", "sft.template.kind")
        yield Unread(("sft.template.path",), deciding, "the chat template is not read from a file", "template=file")
    if not cfg.selects:
        deciding = ("sft", "sft.train", "sft.demonstrations", "data", "data.tasks.open_sft")
        yield Unread(("select",), deciding, "SFT learns from no generated answers", "sft.demonstrations=selected")
    for name in OBJECTIVES:
        block = vars(cfg)[name]
        if block.adapter not in (Adapter.lora, Adapter.qlora):
            reason = f"{name}.adapter={block.adapter} trains no adapter"
            yield Unread((f"{name}.lora",), (name, f"{name}.adapter"), reason, f"{name}.adapter=lora")
        if isinstance(block.runtime, SampledRuntime) and not (block.runtime.samples and block.evaluations):
            deciding = in_block(name, "runtime.samples", "evaluations")
            yield Unread((f"{name}.runtime.sample_tokens",), deciding, f"{name} samples no answers during training")
    if cfg.pairs.strategy is Strategy.best_worst:
        deciding = ("pairs", "pairs.strategy")
        yield Unread(("pairs.max_per_prompt",), deciding, "pairs=best_worst makes one pair per prompt", "pairs=all")
    if cfg.by_pairs and cfg.dpo.reference_free:
        reason, keys = "dpo.loss_type=[simpo] needs no reference", ["reference"] * (Align.kto not in cfg.objectives)
        yield Unread((*keys, "dpo.reference"), ("dpo.loss_type",), reason, "dpo.loss_type=[sigmoid]")
    else:
        reason = "no loss is simpo"
        yield Unread(("dpo.simpo_gamma",), ("dpo.loss_type",), reason, "dpo.loss_type=[simpo]")
    if not cfg.control:
        yield Unread(("control_learning_rate",), ("control",), "control=false trains no control", "control=true")
    source, deciding = cfg.reward.source, ("reward.source.path",)
    if not source.path:
        reason = "the reward model learns from this run's pairs"
        yield Unread(in_block("reward.source", *FILE_KEYS[1:]), deciding, reason, "reward.source.path=FILE")
    elif is_local(source.path, "reward.source.path"):
        yield Unread(in_block("reward.source", *HUB_KEYS), deciding, "reward.source.path is not a hub dataset")


def data_keys(cfg: Config) -> Iterator[Unread]:
    """Yield the unread keys of the base model and the data."""
    if cfg.model.path is None or is_local(cfg.model.path, "model.path"):
        yield Unread(("model.revision",), ("model", "model.path"), "the model is not from the hub")
    if not (cfg.data.sources or cfg.outside):
        yield Unread(("data.form",), ("data.sources",), "it only applies to rows of data.sources", "data.sources")
    audit, tasks = cfg.data.audit, cfg.data.tasks
    if cfg.stage != Command.audit:
        if not cfg.data.sources:
            yield Unread(("data.audit",), ("data.sources",), "it only applies to rows of data.sources", "data.sources")
        if {*audit.thresholds} - {*audit.actions}:
            reason = "a threshold needs an action for its code"
            keys, by = ("data.audit.thresholds",), ("data.audit.actions",)
            yield Unread(keys, by, reason, "data.audit.actions={CODE: drop}")
    if not any(vars(tasks)[group] for group in SPLIT_OF_GROUP if group not in OPEN_GROUPS):
        yield Unread(("data.tasks.families",), ("data",), "no tasks are generated", "data=verifiable")


def command_keys(cfg: Config) -> Iterator[Unread]:
    """Yield the unread keys of trackers, plan, chat and export. Other commands ignore the keys of these three."""
    deciding: tuple[str, ...] = ("tracker", "tracker.name")
    if cfg.tracker.name == "none" and cfg.stage != Command.sync:
        keys = in_block("tracker", "project", "entity", "group", "upload")
        yield Unread(keys, deciding, "tracker=none tracks nothing", "tracker=wandb")
    if cfg.tracker.name == "trackio":
        yield Unread(("tracker.entity",), deciding, "tracker=trackio has no teams", "tracker=wandb")
    if cfg.stage == Command.plan and not cfg.plan.gpu:
        yield Unread(("plan.tokens",), ("plan.gpu",), "this machine's times are measured", "plan.gpu=NAME")
    if cfg.stage == Command.chat and cfg.chat.side_by_side:
        yield Unread(("chat.model",), ("chat.side_by_side",), "with chat.side_by_side all models answer")
    if cfg.stage != Command.export:
        return
    export, deciding = cfg.export, ("export.format",)
    if export.format is ExportFormat.gguf:
        keys = in_block("export", "repo", "private")
        yield Unread(keys, deciding, "export.format=gguf pushes nothing", "export.format=hub or export.format=dataset")
    else:
        reason = f"export.format={export.format} writes no GGUF file"
        yield Unread(("export.dtype",), deciding, reason, "export.format=gguf")
    if export.format is ExportFormat.dataset:
        yield Unread(("export.model",), deciding, "a dataset is made of the whole run")
    if not export.repo:
        yield Unread(("export.private",), ("export.repo",), "nothing is pushed", "export.repo=user/name")


def in_block(block: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{block}.{name}" for name in names)
