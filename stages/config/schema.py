"""The keys of the configuration with their types and limits. Their values are in `conf/`. This file imports no torch.

`stage` names the target. Each stage has a block, and sees nothing else of the configuration. All blocks are always
composed, so `dpo.beta=0.05` means the same for every target. Inside a block, `runtime` holds settings that cannot
change the result, so the fingerprint leaves them out. `trainer` goes to TRL under TRL's names."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, make_dataclass, replace
from typing import Any

from omegaconf import MISSING

from stages.config import choices
from stages.config.blocks.data import DATA, SPLIT_OF_GROUP, Data, Source
from stages.config.blocks.draws import Drawing
from stages.config.blocks.endpoints import Endpoint, Price
from stages.config.blocks.evaluation import (
    Answer,
    Compared,
    Eval,
    JudgedByLabel,
    judged_classes,
)
from stages.config.blocks.grpo import GRPO, control_of
from stages.config.blocks.labels import Judge, Label, PreferenceDataset, label_classes
from stages.config.blocks.models import TEMPLATES, Model, Own
from stages.config.blocks.objective import Training
from stages.config.blocks.pairs import Pairs, Select, Unpaired
from stages.config.blocks.processes import Launch, Tracker
from stages.config.blocks.sampling import SAMPLES, OpenAI, Sample
from stages.config.blocks.training import (
    BLOCKS,
    DPO,
    KTO,
    OBJECTIVES,
    SFT,
    SFTS,
    FirstModel,
    Reference,
    Reward,
)
from stages.config.command_record import Standalone
from stages.config.commands import COMMANDS
from stages.config.extras import join_entries, recorded, require_different_names
from stages.config.installation import PACKAGE, ROOT
from stages.config.limits import (
    Limit,
    between,
    computed,
    limited,
    positive,
    random_seed,
    share,
)
from stages.config.stage_table import DRAWING, Target

# A wheel holds these folders inside the package, a checkout next to it.
CONF, RECIPES, DOCS = (
    (PACKAGE if (PACKAGE / name).is_dir() else ROOT) / name for name in ("conf", "recipes", "docs")
)

# The groups whose option picks a class, each with its keys: the classes by the option's name
OPTIONS: dict[str, Mapping[str, type]] = {
    "data": DATA,
    "sample": SAMPLES,
    "sft": SFTS,
    "label": label_classes(),
    "eval/judged": judged_classes(),
    "template": TEMPLATES,
}
GROUPS = {"sft.template": "template"}  # of a block that is not called like its group


@dataclass
class Report:
    """`margin`, `confidence`: those of the gate, whose answer for the model before the policy is on the first screen."""

    side_by_side: int = MISSING
    margin: float = share()
    confidence: float = limited(Limit(0.5, 1, below=True))
    # why an extra's nodes are the whole run; '' if nothing failed
    left_out: str | None = computed(None)


@dataclass
class RunLimits:
    """The minutes and the money that one command may use. Past either it stops, and the same command resumes."""

    minutes: float | None = positive()
    money: float | None = positive()


@dataclass
class Gate:
    """The earlier evaluation, and the most that a measure may lose against it."""

    against: str | None = MISSING
    margin: float = share()
    confidence: float = limited(Limit(0.5, 1, below=True))


@dataclass
class Config:
    """All settings of a run: keys of every stage first, then a block per stage."""

    stage: str = MISSING
    outputs: str = MISSING
    seed: int = random_seed()
    precision: choices.Precision = MISSING
    align: choices.Align = MISSING
    arms: list[choices.Align] = field(default_factory=list)
    rounds: int = between(1, 100)
    sweep_metric: choices.SweepMetric = MISSING
    upstream: choices.Upstream = MISSING
    rebuild: Target | None = MISSING
    model: Model = field(default_factory=Model)
    data: Data = MISSING
    outside: list[Source] = field(default_factory=list)
    seeds: list[int] = random_seed()
    sft: FirstModel = MISSING
    sample: Sample = MISSING
    label: Label = MISSING
    select: Select = field(default_factory=Select)
    pairs: Pairs = field(default_factory=Pairs)
    unpaired: Unpaired = field(default_factory=Unpaired)
    control: bool = MISSING
    control_learning_rate: float = positive()
    control_pairs: choices.ControlPairs | None = MISSING
    reference: Reference = field(default_factory=Reference)
    dpo: DPO = field(default_factory=DPO)
    kto: KTO = field(default_factory=KTO)
    grpo: GRPO = field(default_factory=GRPO)
    reward: Reward = field(default_factory=Reward)
    answer: Answer = field(default_factory=Answer)
    eval: Eval = field(default_factory=Eval)
    report: Report = field(default_factory=Report)
    tracker: Tracker = field(default_factory=Tracker)
    launch: Launch = field(default_factory=Launch)
    limits: RunLimits = field(default_factory=RunLimits)
    gate: Gate = field(default_factory=Gate)
    maxima: dict[str, Any] = field(default_factory=dict)
    prices: dict[str, Price] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make the file of `data.path` the first source, unless it holds preferences. For `eval/judged=label`, let the
        labeler of candidates compare the answers. Write align=raft out."""
        data, label, judged = self.data, self.label, self.eval.judged
        holds_preferences = isinstance(label, PreferenceDataset) and label.path == data.path
        is_first_source = [source.path for source in data.sources[:1]] == [data.file.path]
        if holds_preferences:
            self.data = replace(data, path=None)
        elif data.path and not is_first_source:
            self.data = replace(data, sources=[Source(**vars(data.file)), *data.sources])
        if self.align is choices.Align.raft:
            self.align = choices.Align.grpo
            self.grpo = replace(self.grpo, baseline="best")
        if isinstance(judged, JudgedByLabel):
            self.eval = replace(self.eval, judged=judged.with_labeler(label))

    @property
    def planned_gpu(self) -> str | None:
        """The GPU that `stage=plan` is told to plan for; None for all other stages, or without an extra that forecasts."""
        plan = vars(self).get("plan")
        return plan.gpu if plan and self.stage == "plan" else None

    @property
    def trained(self) -> dict[str, Training]:
        """The training blocks of this run by name: SFT, `objectives`, the target, a reward model with a source."""
        names = {"sft", *self.objectives, self.stage}
        if self.reward.source.path:
            names.add("reward")
        blocks = {name: vars(self)[name] for name in OBJECTIVES if name in names}
        return {name: block for name, block in blocks.items() if isinstance(block, Training)}

    @property
    def objectives(self) -> list[choices.Align]:
        """The objectives of the policy, if it has one, and of the arms."""
        return [each for each in (self.align, *self.arms) if each is not choices.Align.none]

    @property
    def standalone(self) -> Standalone | None:
        """The settings of the extra whose nodes are the whole run; None for a run with models."""
        for block in vars(self).values():
            if isinstance(block, Standalone) and block.is_alone(self):
                return block
        return None

    @property
    def left_out(self) -> str | None:
        """The error for which this run has no models; None if it has some, or never needed any."""
        return self.standalone.left_out if self.standalone else None

    def alone_after(self, error: Exception) -> "Config | None":
        """Return the configuration with an extra's nodes alone, in place of this one, which fails with an error. None if
        no extra has nodes for it."""
        reason = " ".join(str(error).split())
        for block in vars(self).values():
            alone = block.alone(self, reason) if isinstance(block, Standalone) else None
            if alone:
                configuration: Config = alone
                return configuration
        return None

    @property
    def drawing(self) -> dict[str, Drawing]:
        """The blocks of this run's objectives that learn from draws, by name."""
        return {name: vars(self)[name] for name in self.objectives if name in DRAWING}

    @property
    def controllable(self) -> list[choices.Align]:
        """The objectives that can have a control. KTO cannot: DPO's learns from the chosen answers of pairs, for as many
        steps as DPO."""
        return [each for each in self.objectives if each is not choices.Align.kto]

    @property
    def controls(self) -> dict[str, choices.Align]:
        """The objectives with a control, by the control's role."""
        controls = dict[str, choices.Align]()
        if not self.control:
            return controls
        for objective in self.controllable:
            is_policy = objective is self.align
            controls["control" if is_policy else f"control_{objective}"] = objective
        return controls

    def control_of_draws(self, objective: str) -> GRPO:
        """Return the block of the control of an objective that draws."""
        block: Drawing = vars(self)[objective]
        return control_of(block, self.grpo, self.control_learning_rate)

    @property
    def learns_from_pairs(self) -> bool:
        """True if the policy or an arm learns from pairs: by DPO, or perhaps elsewhere."""
        trained_elsewhere = self.align is choices.Align.given
        return choices.Align.dpo in self.objectives or trained_elsewhere

    @property
    def learns_from_labels(self) -> bool:
        """True if the policy or an arm learns from labelled candidates: from pairs, or by KTO."""
        return self.learns_from_pairs or choices.Align.kto in self.objectives

    @property
    def label_block(self) -> str:
        """The block for labelled candidates: `pairs` if the policy or an arm learns from pairs, else `unpaired`."""
        return "pairs" if self.learns_from_pairs else "unpaired"

    @property
    def holds_out_labels(self) -> bool:
        """True if a share of the labelled candidates is held out of training for validation."""
        return self.learns_from_labels and vars(self)[self.label_block].validation_fraction > 0

    @property
    def selects_demonstrations(self) -> bool:
        """True if SFT learns from selected answers: by `label`, or by default if there are open prompts."""
        if isinstance(self.sft, SFT) and self.sft.demonstrations is None:
            return "open_sft" in self.data.generated
        return self.selects_by_label

    @property
    def selects_by_label(self) -> bool:
        """True if SFT is set to learn from selected demonstrations."""
        selected = choices.Demonstrations.selected
        return isinstance(self.sft, SFT) and self.sft.demonstrations is selected

    @property
    def needs_no_model(self) -> bool:
        """True if a file of candidates is enough for the target: it has labels, or no trained model gives them."""
        file_is_enough = self.label.brings_pool or (
            self.sample.brings_prompts and not self.label.has_trained_reward_model
        )
        before_training = (Target.sample, Target.label, Target.pairs, Target.unpaired)
        return file_is_enough and self.stage in before_training and self.rounds == 1

    @property
    def labels(self) -> list[Label]:
        """The blocks of labelers: for candidates, and for the answers that the evaluation compares."""
        labels = list[Label]()
        if self.standalone:
            return labels
        if self.align is not choices.Align.none:
            labels.append(self.label)  # of candidates
        elif self.selects_by_label:
            labels.append(self.label.of_demonstrations)
        if isinstance(self.eval.judged, Compared):
            labels.append(self.eval.judged.label)
        return labels

    @property
    def own_parts(self) -> dict[str, Own]:
        """The user's own code by the block that names it; empty in blocks that name none."""
        blocks = {
            "data": self.data,
            "sample": self.sample,
            "label": self.label,
            "eval.judged": self.eval.judged,
            "dpo": self.dpo,
            "grpo": self.grpo,
        }
        parts = {name: getattr(block, "own", Own()) for name, block in blocks.items()}
        if parts["eval.judged"] == parts["label"]:  # eval/judged=label: named once
            del parts["eval.judged"]
        return parts

    @property
    def candidates_bring_prompts(self) -> bool:
        """True if the run learns from a file of labels or candidates that brings the prompts."""
        return self.learns_from_labels and (self.label.brings_pool or self.sample.brings_prompts)

    @property
    def has_prompts_to_answer(self) -> bool:
        """True if the data has prompts in the split of `answer`: generated ones, or a source's share."""
        split = self.answer.split
        return self.generates_prompts(split) or any(
            source.shares.get(split) for source in self.data.sources
        )

    def generates_prompts(self, split: str) -> bool:
        """Return True if the data has generated prompts in a split."""
        return any(SPLIT_OF_GROUP[group] == split for group in self.data.generated)

    @property
    def endpoints(self) -> dict[str, Endpoint]:
        """The endpoints of the judges and samplers of this run, by the settings that hold them."""
        judges = [part for label in self.labels for part in label.parts if isinstance(part, Judge)]
        endpoints = {
            f"{judge.block}.endpoints[{i}]": endpoint
            for judge in judges
            for i, endpoint in enumerate(judge.endpoints)
        }
        samplers = [block for block in self.sample.members if isinstance(block, OpenAI)]
        return endpoints | {f"{block.key}.endpoint": block.endpoint for block in samplers}


def raft_message(typed: Mapping[str, str]) -> str | None:
    """Return the error for typed arguments with which align=raft cannot be; None if there is none."""
    baseline = typed.get("grpo.baseline", "best")
    if typed.get("align") != choices.Align.raft or baseline == "best":
        return None
    problem = "align=raft is grpo with grpo.baseline=best"
    return f"grpo.baseline={baseline}: {problem}. Leave it out, or type align=grpo."


def with_keys_of_extras(name: str, core: type) -> type:
    """Return the class of a block of the core with the keys that extras add to it."""
    by_extra = {extra: each[name] for extra, each in recorded("BLOCKS").items() if name in each}
    keys_by_extra = {extra: block.__annotations__ for extra, block in by_extra.items()}
    require_different_names(keys_by_extra, f"key of {name}")
    namespace = {"__module__": __name__, "__doc__": core.__doc__}
    return make_dataclass(
        f"Run{core.__name__}", [], bases=(*by_extra.values(), core), namespace=namespace
    )


RunTracker = with_keys_of_extras("tracker", Tracker)
RunLaunch = with_keys_of_extras("launch", Launch)
RunEval = with_keys_of_extras("eval", Eval)


def with_further_blocks(core: type[Config]) -> type[Config]:
    """Return the configuration with the blocks that no code reads as attributes: those of commands, of extras, and of
    objectives that `core` does not name; and with the keys that extras add to blocks."""
    names = {key.name for key in fields(core)}
    kinds: dict[str, type] = {name: kind for name, kind in BLOCKS.items() if name not in names}
    of_extras = {
        extra: {name: kind for name, kind in blocks.items() if name not in names}
        for extra, blocks in recorded("BLOCKS").items()
    }
    kinds |= join_entries(of_extras, "block")
    kinds |= {"tracker": RunTracker, "launch": RunLaunch, "eval": RunEval}
    for name, command in COMMANDS.items():
        if command.block and name not in names:
            kinds[name] = command.block
    further = [(name, kind, field(default_factory=kind)) for name, kind in kinds.items()]
    namespace = {"__module__": __name__, "__doc__": core.__doc__}
    return make_dataclass("RunConfig", further, bases=(core,), namespace=namespace)


RunConfig = with_further_blocks(Config)
