"""The table of stages: an entry for each, from which all other lists of stages are made. Its import loads no torch."""

from enum import StrEnum
from typing import Self

from stages.config.extras import stages_of_extras
from stages.config.stage_record import Phase, Stage


class Target(StrEnum):
    """The stages that `stage` can build, each together with its inputs: those of the core, and those of extras."""

    record: Stage

    def __new__(cls, record: Stage) -> Self:
        target = str.__new__(cls, record.name)
        target._value_ = record.name
        target.record = record
        return target

    base = Stage(
        "base",
        8,
        "the pretrained model and its tokenizer",
        Phase.start,
        next="sft",
        section="settings",
    )
    source = Stage(
        "source",
        19,
        "the rows of one of data.sources",
        Phase.start,
        next="data",
        absent="List files or hub datasets in data.sources.",
        section="settings",
    )
    data = Stage(
        "data", 14, "prompts in four disjoint splits", Phase.start, next="sft", section="settings"
    )
    select = Stage(
        "select",
        11,
        "judged answers become examples",
        next="sft",
        absent="Set data.tasks.open_sft or sft.demonstrations=selected.",
        settings=("select",),
        section="labels",
    )
    sft = Stage("sft", 21, "supervised fine-tuning", Phase.start, next="sample", section="curves")
    sample = Stage(
        "sample",
        15,
        "candidates from the SFT model",
        Phase.candidates,
        next="label",
        settings=("sample",),
        section="labels",
    )
    pool = Stage(
        "pool",
        3,
        "candidates of several sources, together",
        Phase.candidates,
        next="label",
        absent="Name further candidates in sample.pool.",
        section="labels",
    )
    label = Stage(
        "label",
        25,
        "a score for every candidate",
        Phase.candidates,
        next="pairs",
        settings=("label",),
        section="labels",
    )
    pairs = Stage(
        "pairs",
        14,
        "chosen and rejected",
        Phase.preferences,
        next="reference",
        settings=("pairs",),
        section="labels",
    )
    unpaired = Stage(
        "unpaired",
        6,
        "completions with a label each",
        Phase.preferences,
        next="kto",
        absent="Set align=kto or arms=[kto].",
        settings=("unpaired",),
        section="labels",
    )
    reference = Stage(
        "reference",
        11,
        "log-probs of pairs under the reference",
        Phase.preferences,
        next="dpo",
        absent="dpo.loss_type=[simpo] needs no reference.",
        settings=("reference",),
        section="labels",
    )
    dpo = Stage(
        "dpo",
        16,
        "direct preference optimization",
        Phase.policy,
        next="eval",
        instead="kto",
        absent="Set align=dpo.",
        settings=("dpo", "rounds", "control", "control_pairs"),
        section="curves",
        title="DPO",
    )
    kto = Stage(
        "kto",
        7,
        "single labelled completions (align=kto)",
        Phase.policy,
        next="eval",
        instead="grpo",
        absent="Set align=kto or arms=[kto].",
        settings=("kto",),
        section="curves",
        title="KTO",
    )
    grpo = Stage(
        "grpo",
        13,
        "answers of its own, scored (align=grpo)",
        Phase.policy,
        next="eval",
        absent="Set align=grpo or arms=[grpo].",
        settings=("grpo",),
        section="curves",
        draws=True,
        title="GRPO",
    )
    online_dpo = Stage(
        "online_dpo",
        2,
        "pairs of answers of its own (align=online_dpo)",
        Phase.policy,
        next="eval",
        absent="Set align=online_dpo or arms=[online_dpo].",
        settings=("online_dpo",),
        section="curves",
        draws=True,
        title="Online DPO",
    )
    reward = Stage(
        "reward",
        7,
        "a reward model of the chain's pairs",
        next="report",
        absent="Set reward.source.path=FILE, or stage=reward with align=dpo.",
        settings=("reward.source", "reward.pairs", "reward"),
        section="reward",
    )
    answer = Stage(
        "answer",
        15,
        "a model's answers to held-out prompts",
        Phase.evaluation,
        next="eval",
        section="answers",
    )
    versus = Stage(
        "versus",
        6,
        "two models' answers, and which is better",
        Phase.evaluation,
        next="eval",
        absent="Set eval/judged=judge, reward_model or ensemble.",
        settings=("eval.judged",),
        section="judged",
    )
    eval = Stage(
        "eval", 36, "did it help? with intervals", Phase.evaluation, next="report", section="seeds"
    )
    vars().update(stages_of_extras())  # each is `Target(NAME)`
    report = Stage("report", 36, "one page, outputs/report.html", Phase.evaluation)


STAGES = {str(target): target.record for target in Target}


def stages_of(*phases: Phase) -> tuple[Target, ...]:
    """Return the stages of phases of a run."""
    return tuple(target for target in Target if target.record.phase in phases)


POLICY_STAGES = stages_of(Phase.policy)  # stages that train the policy
# … on draws of its own
DRAWING = tuple(name for name, stage in STAGES.items() if stage.draws)
