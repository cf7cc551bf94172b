"""Refuse typed keys that nothing reads under the other settings, such as `label.path` without `label=dataset`.

Keys of a group or a recipe are not refused, as another choice may read them. In a sweep over the deciding key, some
jobs read the typed key, so the other jobs accept it."""

from hydra.core.override_parser.overrides_parser import OverridesParser

from stages.cli.spelling import MULTIRUN, typed_values
from stages.config.blocks.evaluation import NOBODY
from stages.config.blocks.runtimes import SampledRuntime
from stages.config.blocks.training import OBJECTIVES
from stages.config.choices import (
    Adapter,
    Align,
    Command,
    Demonstrations,
    ExportFormat,
    Strategy,
)
from stages.config.errors import Errors
from stages.config.installation import read_beside
from stages.config.schema import Config
from stages.preflight.sources import is_local

TEXTS: dict[str, dict[str, str]] = read_beside(__file__)
CHOOSES = {"sample": "sample.sampler"}  # a group, and the key in which its options differ
# ways out of other messages, or implied
OFF = {("rounds", "1"), ("control", "false"), ("pairs", "all")}
# Whether keys are unread, by the name of their texts in the YAML file, or by that name and the `word` in the texts
Conditions = dict[tuple[str, str] | str, object]


def refuse_unread(cfg: Config, typed: list[str]) -> None:
    """Raise one UserError for all typed keys that nothing reads."""
    values = {
        key: value
        for key, value in typed_values(typed).items()
        if value != "null" and (key, value) not in OFF
    }
    errors = Errors()
    for find_conditions in (of_label, of_judged, of_sample, of_training, of_data, of_command):
        for rule in (rule for rule, is_unread in find_conditions(cfg).items() if is_unread):
            name, word = (rule, "") if isinstance(rule, str) else rule
            block = vars(cfg).get(word)
            texts = {
                part: text.format(cfg=cfg, word=word, block=block)
                for part, text in TEXTS[name].items()
            }
            names = [
                ".".join(filter(None, (texts.get("in"), key))) for key in texts["keys"].split()
            ]
            unread = [
                key
                for key in values
                if any(f"{CHOOSES.get(key, key)}.".startswith(f"{n}.") for n in names)
            ]
            if unread and not is_swept(texts["deciding"].split(), typed):
                way_out = f"Add {texts['remedy']}, or leave" if "remedy" in texts else "Leave"
                errors.add(
                    f"{unread[0]}={values[unread[0]]}: {texts['reason']}. {way_out} the key out."
                )
    errors.raise_all()


def is_swept(keys: list[str], typed: list[str]) -> bool:
    """Return whether a sweep tries several values of one of these keys."""
    if MULTIRUN.isdisjoint(typed):
        return False
    lines = [
        f"{key}={value}" for key, value in typed_values(typed).items() if key in (*keys, "recipe")
    ]
    return any(
        override.is_sweep_override() for override in OverridesParser.create().parse_overrides(lines)
    )


def of_label(cfg: Config) -> Conditions:
    """Return the conditions for a revision of a labeler's file or model, and for thresholds of scores."""
    path = vars(cfg.label).get("path")
    return {
        "local labels": not path or is_local(path, "label.path"),
        "threshold": cfg.label.prefers,
    }


def of_judged(cfg: Config) -> Conditions:
    """Return the conditions for labels and pairs under another objective than DPO, and for parts of the evaluation."""
    scores = cfg.sft.demonstrations is Demonstrations.selected or Align.grpo in cfg.objectives
    labels = ("label.audit label.known" if scores else "label") + ("" if cfg.selects else " sample")
    return {
        "pairs": not cfg.by_pairs and cfg.by_labels,
        ("labels and pairs", labels): not cfg.by_pairs and not cfg.by_labels,
        "unpaired": Align.kto not in cfg.objectives and not cfg.unpaired_wanted,
        "kto": Align.kto not in cfg.objectives,
        "grpo": Align.grpo not in cfg.objectives,
        # with align=none, it names the other model
        "judged": cfg.eval.judged.labeler == NOBODY and cfg.align is not Align.none,
        "examine": cfg.align is not Align.given,
        "suites": not cfg.eval.suites.names,
        "benchmark": not cfg.benchmark.tasks,
    }


def of_sample(cfg: Config) -> Conditions:
    """Return the conditions for keys of `sample`, if candidates are in a file or come from other sources."""
    label, sample = cfg.label, cfg.sample
    from_file = label.brings_pool or all(block.file for block in sample.members)
    sampler = "" if sample.brings_prompts and not label.brings_pool else "sampler"
    drawn = [vars(member) for member in sample.pool or () if not member.file]
    drawn_values = {
        name: [member[name] for member in drawn] for name in ("n", "temperature", "top_p")
    }
    may_fail = any(block.sampler == "openai" or block.own or block.file for block in sample.members)
    return {
        "draws": from_file,
        ("sampler", sampler): from_file and not cfg.selects,
        "prompts": label.brings_pool,
        "endpoint": sample.sampler != "openai" or sample.pool,
        "file's columns": not sample.file,
        "failures": not may_fail,
        **{f"pool's {name}": drawn and None not in values for name, values in drawn_values.items()},
    }


def of_training(cfg: Config) -> Conditions:
    """Return the conditions for keys of the models that are trained, and of their pairs and demonstrations."""
    of_blocks: Conditions = {}
    for name in OBJECTIVES:
        block = vars(cfg)[name]
        of_blocks["adapter", name] = block.adapter not in (Adapter.lora, Adapter.qlora)
        samples = isinstance(block.runtime, SampledRuntime) and not (
            block.runtime.samples and block.evaluations
        )
        of_blocks["samples", name] = samples
    without_reference, path = cfg.by_pairs and cfg.dpo.reference_free, cfg.reward.source.path
    return {
        "sft": not cfg.sft.train,
        "select": not cfg.selects,
        **of_blocks,
        "best_worst": cfg.pairs.strategy is Strategy.best_worst,
        ("reference", "" if Align.kto in cfg.objectives else "reference"): without_reference,
        "simpo": not without_reference,
        "control": not cfg.control,
        "reward's pairs": not path,
        "reward's filters": not path,
        "reward's file": path and is_local(path, "reward.source.path"),
    }


def of_data(cfg: Config) -> Conditions:
    """Return the conditions for keys of the base model and the data."""
    audit = cfg.data.audit
    builds = cfg.stage != Command.audit
    return {
        "local model": cfg.model.path is None or is_local(cfg.model.path, "model.path"),
        "data's file": not cfg.data.path,
        "form": not (cfg.data.sources or cfg.outside or cfg.eval.judged.source),
        "audit": builds and not cfg.data.sources,
        "thresholds": builds and {*audit.thresholds} - {*audit.actions},
    }


def of_command(cfg: Config) -> Conditions:
    """Return the conditions for keys of trackers, plan, chat and export."""
    exports, form, syncs = cfg.stage == Command.export, cfg.export.format, cfg.stage == Command.sync
    return {
        "tracker": not cfg.tracker.names and not syncs,
        "wandb": not cfg.tracker.wandb and not syncs,
        "plan": cfg.stage == Command.plan and not cfg.plan.gpu,
        "chat": cfg.stage == Command.chat and cfg.chat.side_by_side,
        "gguf": exports and form is ExportFormat.gguf,
        "pushed": exports and form is not ExportFormat.gguf,
        "dataset": exports and form is ExportFormat.dataset,
        "private": exports and not cfg.export.repo,
    }
