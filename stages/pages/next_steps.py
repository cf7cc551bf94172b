"""The next steps after a verdict: a sentence each, and a command."""

from typing import Any

from stages.evaluation.diagnosis.diagnose import Diagnosis
from stages.store.manifest import Manifest

MOST = 2  # steps
JUDGE = "eval/judged=judge 'eval.judged.judge.endpoints=[{base_url: URL, model: NAME}]'"


def next_steps(
    results: dict[str, Any], evaluation: Manifest, seeds: list[int], why: Diagnosis | None
) -> list[tuple[str, str]]:
    """Return why, and the command, or '' where there is only advice; the most useful step first. `evaluation`: its
    manifest, with the command that made it. `seeds`: of the run's trainings, none where it trained nothing."""
    run, steps = evaluation["command"].replace(" stage=eval", "", 1), list[tuple[str, str]]()
    if waiting := sum(each.get("waiting", 0) for each in results["judged"].values()):
        steps.append((f"{waiting:,} comparisons wait for people. This asks them:", f"{run} stage=versus"))
    if "learnt" in results["gives_verdict"]:
        if not results["judged"]:
            words = "Pairs cannot say whether answers are better; a judge can, or people (eval/judged=human):"
            steps.append((words, f"{run} {JUDGE}"))
        if results["learnt"]["note"]:
            words = "held-out pairs are too few to say. Bring more rows, or hold out more (pairs.validation_fraction)."
            steps.append((f"{results['learnt']['pairs']} {words}", ""))
    if why and not why.helped and why.found and (cause := why.found[0].cause):
        steps.append((f"It may be that {cause.says}. To try: {cause.advice}.", ""))
    use = [("Talk to it:", f"{run} stage=chat"), ("Take it elsewhere, as one file:", f"{run} stage=export")]
    steps += use[:1] if not why or why.helped else []
    if len(seeds) == 1:
        further = f"'seeds=[{seeds[0] + 1},{seeds[0] + 2}]'"
        steps.append(("Whether the recipe does it, and not this seed, two more say:", f"{run} {further}"))
    return (steps + use[1:] if not why or why.helped else steps or use[:1])[:MOST]
