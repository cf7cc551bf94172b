"""Rounds of DPO on validation prompts: how far each policy is above SFT, and which round is best."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stages.config.blocks.evaluation import ROUND
from stages.config.choices import Split
from stages.evaluation import claims
from stages.evaluation.asked import read_prompts
from stages.evaluation.best_model import compare_models
from stages.evaluation.intervals import Interval
from stages.evaluation.outcomes import read_answers, tabulate
from stages.evaluation.results import Results
from stages.store.manifest import Manifest
from stages.store.typed_json import decode

SECTION = "rounds"  # of an evaluation's results


@dataclass(frozen=True)
class Rounds:
    """SFT's and each round's pass rate (`rates`), each round's difference to SFT (`gains`), the number of the best
    round, and its differences to SFT and to the last round, with intervals for the best of several."""

    prompts: int
    rates: list[Interval]
    gains: list[Interval]
    best: int
    over_sft: Interval
    over_last: Interval


@dataclass(frozen=True)
class RoundRow:
    """A round in the table of a report. `right`: the share of its candidates, by the policy before it, that pass all
    checks (None unless the verifier scored); `pairs`: their number; `ordered`: the share of them whose chosen answer
    that policy prefers."""

    number: int
    rate: Interval
    gain: Interval
    right: float | None
    ordered: float | None
    pairs: int
    steps: int


def rounds_of(results: Results) -> Rounds | None:
    """Return an evaluation's rounds, None without any."""
    if SECTION not in results.sections:
        return None
    return decode(Rounds, results.sections[SECTION])


def compare_rounds(
    inputs: Mapping[str, Path], confidence: float, trained_ids: set[str]
) -> Rounds | None:
    """Return the comparison of rounds, None if the evaluation has no answers by rounds, or only to prompts that were
    trained on (`trained_ids`)."""
    if not (
        numbers := sorted(
            int(name.removeprefix(ROUND)) for name in inputs if name.startswith(ROUND)
        )
    ):
        return None
    answers, _ = read_answers(
        {f"{ROUND}{number}": inputs[f"{ROUND}{number}"] for number in numbers}
    )
    untrained = next(iter(answers.values())).keys() - trained_ids
    if not (
        prompts := [
            e for e in read_prompts({"data": inputs["data"]}, Split.validation) if e.id in untrained
        ]
    ):
        return None
    passed = tabulate(prompts, answers).passed
    tasks, last = [e.task for e in prompts], numbers[-1]
    with_sft = compare_models(passed, tasks, confidence=confidence)
    of_rounds = compare_models(passed[:, 1:], tasks, confidence=confidence)
    means = with_sft.means
    best = max(numbers[1:], key=lambda number: means.means[number])  # the first of equal ones
    return Rounds(
        prompts=len(prompts),
        rates=[means.share(number, confidence) for number in numbers],
        gains=[means.difference(number, 0, confidence) for number in numbers[1:]],
        best=best,
        over_sft=with_sft.corrected(0, best),
        over_last=of_rounds.corrected(last - 1, best - 1),
    )


def table_rows(nodes: Mapping[str, Manifest], by_round: Rounds) -> list[RoundRow]:
    """Return a row per round."""
    rows = list[RoundRow]()
    for number, (rate, gain) in enumerate(zip(by_round.rates[1:], by_round.gains, strict=True), 1):
        suffix = f"_{number}" if number < len(by_round.gains) else ""
        label, dpo = nodes[f"label{suffix}"]["metrics"], nodes[f"dpo{suffix}"]["metrics"]
        reference = nodes.get(f"reference{suffix}")  # SimPO has none
        right = label.get("pass_rate") if label["labeler"] == "verifier" else None
        ordered = reference["metrics"]["ordered"] if reference else None
        rows.append(RoundRow(number, rate, gain, right, ordered, dpo["pairs"], dpo["steps"]))
    return rows


def sentence(by_round: Rounds, note: str = "") -> str:
    """Return which round is best on validation prompts, and if it is above the last one by more than noise. `note`: why
    nothing can be said, or ''."""
    best = by_round.best
    rounds = len(by_round.gains)
    if note:
        return f"{note.capitalize()} which of {rounds} rounds is best."
    over_last = by_round.over_last
    text = f"Of {rounds} rounds, round {best} is best on {by_round.prompts} validation prompts: "
    text += f"{by_round.over_sft.points()} over SFT"
    if best == rounds:
        return f"{text}. It is the last: another round may gain more."
    certainty = claims.difference(over_last).says("noise")
    text += f", and {over_last.points()} over the last round, {certainty}"
    return f"{text}. If sample.prompts_per_round is set, rounds={best} reuses its nodes."
