"""The next steps after a verdict, each a sentence with a command."""

from typing import Any

from stages.evaluation.diagnosis.diagnose import Diagnosis
from stages.evaluation.diagnosis.effects import TEST_PROMPTS
from stages.store.manifest import Manifest

MOST = 2  # most steps on the page
JUDGE = "eval/judged=judge 'eval.judged.judge.endpoints=[{base_url: URL, model: NAME}]'"


def next_steps(
    results: dict[str, Any], evaluation: Manifest, seeds: list[int], why: Diagnosis | None
) -> list[tuple[str, str]]:
    """Return (sentence, command) of each step, the most useful first; the command is '' for advice alone.
    `evaluation`: the manifest of the evaluation, with its command. `seeds`: the seeds trained, none without
    training."""
    run, steps = evaluation["command"].replace(" stage=eval", "", 1), list[tuple[str, str]]()
    if waiting := sum(each.get("waiting", 0) for each in results["judged"].values()):
        steps.append((f"{waiting:,} comparisons wait for people. To ask them:", f"{run} stage=versus"))
    if "learnt" in results["gives_verdict"]:
        if not results["judged"]:
            words = "Pairs do not show if answers are better. Ask a judge, or people (eval/judged=human):"
            steps.append((words, f"{run} {JUDGE}"))
        if results["learnt"]["note"]:
            words = "held-out pairs are too few to say. Add rows, or raise pairs.validation_fraction."
            steps.append((f"{results['learnt']['pairs']} {words}", ""))
    doubt = why is not None and (not why.helped or bool(results["cautions"]))
    for i, finding in enumerate(why.out_of_range if why and doubt else []):
        if (i == 0 or finding.quantity == TEST_PROMPTS) and (cause := finding.cause):
            steps.append((f"Perhaps {cause.clause}. Try {cause.advice}.", ""))
    use = [("Chat with the model:", f"{run} stage=chat"), ("Export the model as one file:", f"{run} stage=export")]
    steps += [] if doubt else use[:1]
    if len(seeds) == 1:
        further = f"'seeds=[{seeds[0] + 1},{seeds[0] + 2}]'"
        steps.append(("To test the recipe, train two more seeds:", f"{run} {further}"))
    return (steps or use[:1] if doubt else steps + use[1:])[:MOST]
