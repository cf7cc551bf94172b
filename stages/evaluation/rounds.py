"""Rounds of DPO on validation prompts: how far each policy is above SFT, and which round is best."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stages.config.blocks.evaluation import ROUND
from stages.config.choices import Split
from stages.evaluation.asked import read_prompts
from stages.evaluation.best_model import compare_models
from stages.evaluation.intervals import Interval
from stages.evaluation.outcomes import read_answers, tabulate
from stages.store.manifest import Manifest


def compare_rounds(
    inputs: Mapping[str, Path], confidence: float, trained_ids: set[str]
) -> dict[str, Any]:
    """Return SFT's and each round's pass rate (`rates`), each round's difference to SFT (`gains`), the number of the
    best round, and its differences to SFT and to the last round, with intervals for the best of several. Return {} if
    the evaluation has no answers by rounds, or only to prompts that were trained on (`trained_ids`)."""
    if not (
        numbers := sorted(
            int(name.removeprefix(ROUND)) for name in inputs if name.startswith(ROUND)
        )
    ):
        return {}
    answers, _ = read_answers(
        {f"{ROUND}{number}": inputs[f"{ROUND}{number}"] for number in numbers}
    )
    untrained = next(iter(answers.values())).keys() - trained_ids
    if not (
        prompts := [
            e for e in read_prompts({"data": inputs["data"]}, Split.validation) if e.id in untrained
        ]
    ):
        return {}
    passed = tabulate(prompts, answers).passed
    tasks, last = [e.task for e in prompts], numbers[-1]
    with_sft = compare_models(passed, tasks, confidence=confidence)
    of_rounds = compare_models(passed[:, 1:], tasks, confidence=confidence)
    means = with_sft.means
    best = max(numbers[1:], key=lambda number: means.means[number])  # the first of equal ones
    return {
        "prompts": len(prompts),
        "rates": [asdict(means.share(number, confidence)) for number in numbers],
        "gains": [asdict(means.difference(number, 0, confidence)) for number in numbers[1:]],
        "best": best,
        "over_sft": asdict(with_sft.corrected(0, best)),
        "over_last": asdict(of_rounds.corrected(last - 1, best - 1)),
    }


def table_rows(nodes: Mapping[str, Manifest], by_round: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row per round. `right`: the share of its candidates, by the policy before it, that pass all checks
    (None unless the verifier scored). `ordered`: the share of its pairs whose chosen answer that policy prefers."""
    rows = list[dict[str, Any]]()
    for number, (rate, gain) in enumerate(
        zip(by_round["rates"][1:], by_round["gains"], strict=True), 1
    ):
        suffix = f"_{number}" if number < len(by_round["gains"]) else ""
        label, dpo = nodes[f"label{suffix}"]["metrics"], nodes[f"dpo{suffix}"]["metrics"]
        reference = nodes.get(f"reference{suffix}")  # SimPO has none
        right = label.get("pass_rate") if label["labeler"] == "verifier" else None
        made_of = {"right": right, "ordered": reference and reference["metrics"]["ordered"]}
        rows.append({"number": number, "rate": rate, "gain": gain, **made_of, **dpo})
    return rows


def sentence(by_round: Mapping[str, Any]) -> str:
    """Return which round is best on validation prompts, and if it is above the last one by more than noise."""
    best = by_round["best"]
    rounds = len(by_round["gains"])
    over_last = Interval(**by_round["over_last"])
    text = f"Of {rounds} rounds, round {best} is best on {by_round['prompts']} validation prompts: "
    text += f"{Interval(**by_round['over_sft']).points()} over SFT"
    if best == rounds:
        return f"{text}. It is the last: another round may gain more."
    certainty = "more than noise" if over_last.low > 0 else "which may be noise"
    text += f", and {over_last.points()} over the last round, {certainty}"
    return f"{text}. If sample.prompts_per_round is set, rounds={best} reuses its nodes."
