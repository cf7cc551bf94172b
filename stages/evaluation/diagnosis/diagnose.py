"""The diagnosis of a run: all findings, the likeliest cause first, and a sentence."""

from dataclasses import dataclass
from typing import Any

from stages.evaluation.diagnosis.causes import CAUSES
from stages.evaluation.diagnosis.effects import EFFECTS, EVALUATION
from stages.evaluation.diagnosis.evidence import Evidence
from stages.evaluation.diagnosis.finding import FAR, Finding
from stages.evaluation.outcomes import PRIMARY


@dataclass(frozen=True)
class Diagnosis:
    """`found`: what is out of its range, likeliest cause first; `follows`: those of them that may follow from it;
    `normal`: the rest. `helped`: the verdict says so, and there is nothing to explain."""

    helped: bool
    sentence: str
    found: list[Finding]
    follows: list[Finding]
    normal: list[Finding]


def diagnose(run: Evidence, title: str) -> Diagnosis:
    """What is far out comes first, then what is out. Among these a cause comes before what it causes: what DPO was
    given before what it did, each in the order of the pipeline; last, what the evaluation could see. `title`: the
    policy's."""
    groups = (CAUSES, EFFECTS, EVALUATION)
    given, done, seen = ([f for measure in measures if (f := measure(run))] for measures in groups)
    asked = [*given, *done, *seen]
    found = sorted((f for f in asked if f.severity), key=lambda f: -f.severity)
    explained = any(f.severity == FAR for f in given)  # of opposite advice only one can be right
    follows = [f for f in found if explained and f in done]
    delta = run.results["primary"][PRIMARY]
    helped = delta["low"] > 0
    normal = [f for f in asked if not f.severity]
    return Diagnosis(helped, told(helped, found, title, delta), found, follows, normal)


def told(helped: bool, found: list[Finding], title: str, delta: dict[str, Any]) -> str:
    """One sentence: the likeliest cause, or that nothing stands out."""
    if found and (cause := found[0].cause):
        measured = f"{cause.says} ({found[0].what} {found[0].shown}, normal is {found[0].range})"
        if helped:
            return f"{title} helped. What stands out is that {measured}."
        return f"The likeliest cause is that {measured}."
    if helped:
        return f"{title} helped, and nothing that was measured is out of its normal range."
    half = 50 * (delta["high"] - delta["low"])
    return (
        f"Nothing that was measured is out of its normal range. A change of less than about {half:.0f} points cannot "
        "be told from none here: prompts of more tasks, or further seeds, would tell; more pairs or rounds may help."
    )
