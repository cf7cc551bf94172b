"""The table of stages: a line for each. Its import loads no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """`version` is part of the fingerprints of the stage's nodes: raise it when the stage computes something else. The
    command line suggests the stage `next` afterwards, or `instead` if this run does not train this one. `absent` says
    why a graph has no such node, or which setting adds one."""

    version: int
    next: str | None = None
    instead: str | None = None
    absent: str = ""


STAGES = {
    "base": Stage(8, next="sft"),
    "source": Stage(19, next="data", absent="List files or hub datasets in data.sources."),
    "data": Stage(14, next="sft"),
    "select": Stage(
        11,
        next="sft",
        absent="Set data.tasks.open_sft or sft.demonstrations=selected.",
    ),
    "sft": Stage(21, next="sample"),
    "sample": Stage(15, next="label"),
    "pool": Stage(3, next="label", absent="Name further candidates in sample.pool."),
    "label": Stage(25, next="pairs"),
    "pairs": Stage(13, next="reference"),
    "unpaired": Stage(5, next="kto", absent="Set align=kto or arms=[kto]."),
    "reference": Stage(10, next="dpo", absent="dpo.loss_type=[simpo] needs no reference."),
    "dpo": Stage(16, next="eval", instead="kto", absent="Set align=dpo."),
    "kto": Stage(7, next="eval", instead="grpo", absent="Set align=kto or arms=[kto]."),
    "grpo": Stage(13, next="eval", absent="Set align=grpo or arms=[grpo]."),
    "reward": Stage(
        7, next="report", absent="Set reward.source.path=FILE, or stage=reward with align=dpo."
    ),
    "answer": Stage(15, next="eval"),
    "versus": Stage(
        6, next="eval", absent="Set eval/judged=judge, reward_model, human or ensemble."
    ),
    "benchmark": Stage(3, next="eval", absent="Name tasks: benchmark.tasks=[NAME]."),
    "eval": Stage(36, next="report"),
    "diff": Stage(1, absent="Set recipe=examine."),
    "examine": Stage(3, absent="Set recipe=examine."),
    "report": Stage(34),
}
