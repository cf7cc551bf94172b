"""Findings on a run are measured where the run can show them, and worded with numbers that people can type."""

from dataclasses import replace
from math import inf, nan
from typing import Any

import pytest

from stages.evaluation.diagnosis import effects
from stages.evaluation.diagnosis.evidence import Evidence
from stages.evaluation.diagnosis.finding import FAR, NUMBER, OUT, Normal, write_number
from stages.evaluation.results import Behaviour, Results
from tests.evaluation.made_results import group, results

# Points of DPO's training: two evaluations on held-out pairs, and five steps
CURVE: list[dict[str, Any]] = [
    {"eval_rewards/accuracies": 0.5, "eval_loss": 0.7, "eval_logps/chosen": -10.0},
    {"rewards/accuracies": 0.5},
    {"rewards/accuracies": 0.5},
    {"rewards/accuracies": 0.5},
    {"rewards/accuracies": 0.7},
    {"rewards/accuracies": 0.9},
    {"eval_rewards/accuracies": 0.55, "eval_loss": 0.77, "eval_logps/chosen": -14.0},
]
RUN = Evidence(
    label_metrics={},
    drawn=True,
    sft_trained=True,
    pair_metrics={},
    dpo_metrics={"held_out": 20},
    steps=5,
    trained_pairs=20,
    settings={"loss_type": ["sft", "sigmoid"]},
    results=results(),
    curve=CURVE,
    pairs=[],
    lengths=[],
    held_out_tokens=8.0,
    prompts={},
)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (5e-5, "5e-5"),
        (0.25, "0.25"),
        (99, "99"),
        (100, "100"),
        (1895, "1,895"),
        (-1895, "−1,895"),
        (999_999, "999,999"),
        (1e6, "1e6"),
        (1e38, "1e38"),
    ],
)
def test_a_number_is_written_as_people_write_it(number: float, text: str) -> None:
    assert write_number(NUMBER, number) == text


def test_a_value_is_out_of_its_range_or_far_out() -> None:
    normal = Normal(1.0, 2.0, floor=0.5, ceiling=4.0)
    values = {0.5: FAR, 0.6: OUT, 1.0: 0, 2.0: 0, 3.9: OUT, 4.0: FAR}
    assert {value: normal.severity(value) for value in values} == values
    assert Normal(1.0).severity(inf) == 0
    assert Normal.times(3.0, 6.0) == Normal(3.0, 6.0, 1.0, 18.0)
    assert Normal(1.0).in_words("{}") == "at least 1.0"
    assert Normal(high=2.0).in_words("{}") == "at most 2.0"
    assert normal.in_words("{}") == "1.0 to 2.0"


def test_accuracy_is_judged_where_training_pairs_were_learnt_and_enough_were_held_out() -> None:
    finding = effects.accuracy(RUN)
    assert finding
    assert finding.value == 0.55
    assert RUN.trained("rewards/accuracies") == 0.9, "of the last quarter of five steps"
    assert effects.accuracy(replace(RUN, dpo_metrics={"held_out": 19})) is None
    never_learnt = [point for point in CURVE if point.get("rewards/accuracies", 0.5) == 0.5]
    assert effects.accuracy(replace(RUN, curve=never_learnt)) is None
    assert effects.accuracy(replace(RUN, curve=CURVE[1:])) is None, "evaluated once"
    assert effects.accuracy(replace(RUN, curve=[CURVE[0], CURVE[-1]])) is None, "no step logged"


def test_overfitting_is_the_lead_of_training_pairs_over_held_out_ones() -> None:
    finding = effects.overfit(RUN)
    assert finding
    assert finding.value == pytest.approx(35)
    assert effects.overfit(replace(RUN, dpo_metrics={"held_out": 19})) is None


def test_a_risen_loss_is_a_ratio_of_the_last_to_the_first() -> None:
    finding = effects.risen(RUN)
    assert finding
    assert finding.value == pytest.approx(1.1)
    assert finding.detail == "0.700 → 0.770"


def test_displacement_is_per_token_of_held_out_completions() -> None:
    both = [point | {"eval_logps/rejected": -9.0} for point in CURVE]
    finding = effects.displaced(replace(RUN, curve=both))
    assert finding
    assert finding.value == -0.5
    assert effects.displaced(RUN) is None, "rejected ones were not measured"
    assert effects.displaced(replace(RUN, curve=both, held_out_tokens=nan)) is None


def test_the_main_loss_of_a_mixture_is_replaced() -> None:
    assert effects.replace_main_loss(["sft", "sigmoid"], "robust").endswith("[sft,robust]")
    assert effects.replace_main_loss(["sigmoid", "sft"], "robust").endswith("[robust,sft]")
    assert effects.replace_main_loss(["sigmoid"], "robust").endswith("[robust]")


def changed(low: float, high: float, **parts: Any) -> Results:
    """Return results whose main difference has these bounds, on 32 prompts of two tasks."""
    tested = group({"policy-sft": ((low + high) / 2, low, high)}, prompts=32, tasks=2)
    shown = Behaviour({"sft": 20.0, "policy": 30.0}, {"sft": 0.9, "policy": 0.7}, {})
    return results({"test prompts": tested}, behaviour=shown, **parts)


def test_few_prompts_are_a_finding_where_no_change_was_measured() -> None:
    finding = effects.test_prompts(replace(RUN, results=changed(-0.1, 0.1)))
    assert finding
    assert (finding.value, finding.severity) == (32, FAR)
    assert "±10.0 points" in finding.detail
    for low, high in ((0.01, 0.1), (-0.1, -0.01)):
        assert effects.test_prompts(replace(RUN, results=changed(low, high))) is None
    judged = changed(-0.1, 0.1, gives_verdict=["judged"])
    assert effects.test_prompts(replace(RUN, results=judged)) is None


def test_ends_and_lengths_are_compared_with_the_model_before() -> None:
    run = replace(RUN, results=changed(-0.1, 0.1))
    ends = effects.ends(run)
    length = effects.length(run)
    assert ends and length
    assert ends.value == pytest.approx(-20)
    assert length.value == 1.5
