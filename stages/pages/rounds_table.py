"""The rounds of DPO in the report: what each learnt from, and how far each policy is above SFT."""

from collections.abc import Mapping
from typing import Any

from stages.evaluation.intervals import Interval
from stages.store.manifest import Manifest


def table_rows(nodes: Mapping[str, Manifest], by_round: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row per round. `right`: the share of its candidates, by the policy before it, that pass all checks
    (None without scores). `ordered`: the share of its pairs whose chosen completion that policy already prefers."""
    rows = list[dict[str, Any]]()
    for number, (rate, gain) in enumerate(zip(by_round["rates"][1:], by_round["gains"], strict=True), 1):
        suffix = f"_{number}" if number < len(by_round["gains"]) else ""
        label, reference, dpo = (nodes[f"{stage}{suffix}"]["metrics"] for stage in ("label", "reference", "dpo"))
        row = {"right": label.get("pass_rate"), "ordered": reference["ordered"], "pairs": dpo["pairs"]}
        rows.append({"number": number, **row, "steps": dpo["steps"], "rate": rate, "gain": gain})
    return rows


def sentence(by_round: Mapping[str, Any]) -> str:
    """Return which round is best on validation prompts, and if it is above the last one by more than noise."""
    best, rounds, over_last = by_round["best"], len(by_round["gains"]), Interval(**by_round["over_last"])
    gain = Interval(**by_round["gains"][best - 1])
    text = f"Of {rounds} rounds, round {best} is best on {by_round['prompts']} validation prompts: "
    text += f"{gain.points()} over SFT"
    if best == rounds:
        return f"{text}. It is the last: another round may gain more."
    certainty = "more than noise" if over_last.low > 0 else "which may be noise"
    text += f", and {over_last.points()} over the last round, {certainty}"
    return f"{text}. With sample.prompts_per_round, rounds={best} reuses its nodes."
