"""The sentences at the top of a report: each number with its prompts or pairs, and no claim beyond the numbers."""

from typing import Any

import pytest

from stages.evaluation.diagnosis.diagnose import Diagnosis
from stages.evaluation.results import Group, Opposed, Results, Waiting
from stages.pages.headline import Headline, next_steps, uses_of_model
from tests.evaluation.made_results import Bounds, learnt, results
from tests.evaluation.made_results import group as made_group

RUN = "python run.py recipe=instructions seed=1"


def group(delta: Bounds, more: dict[str, Bounds] | None = None, **fields: Any) -> Group:
    """Return the rates of a group in which the policy is above SFT by `delta`. `more`: other rates and differences."""
    rates: dict[str, Bounds] = {"base": (0.011, 0, 1), "sft": (0.316, 0, 1)}
    rates |= {"policy": (0.316 + delta[0], 0, 1), "sft-base": (0.305, 0, 1), "policy-sft": delta}
    return made_group(rates | (more or {}), **fields)


def headline(
    groups: dict[str, Group], seeds: int = 1, trained: str = "it", **more: Any
) -> Headline:
    return Headline(results(groups, **more), seeds, trained)


HELPED = (0.086, 0.026, 0.158)
NOTHING = (-0.017, -0.071, 0.034)


def test_the_verdict_stands_with_what_it_is_of_and_how_far_it_reaches() -> None:
    groups = {"seen tasks": group(HELPED), "unseen tasks": group(NOTHING, prompts=240, tasks=35)}
    line = headline(groups)
    for figure in ("800 held-out prompts", "28 tasks", "SFT passes 31.6%, DPO 40.2%", "One seed"):
        assert figure in line.about()
    checks = line.checks()
    assert "On seen tasks: better (+8.6" in checks
    assert "98" in checks
    assert "other prompts of these tasks" in checks
    assert "no measurable change (−1.7 points, −7.1 to +3.4; 240 prompts)" in checks
    assert "One seed" not in headline(groups, seeds=3).about()


def test_none_or_all_of_many_stands_with_how_many_could_be() -> None:
    none = group(HELPED, {"sft": (0, 0, 0.0093), "policy": (1, 0.996, 1)})
    assert ", SFT passes 0 (up" in headline({"seen tasks": none}).about()


@pytest.mark.parametrize(
    ("delta", "words"),
    [(HELPED, "better (+8.6 points, +2.6 to +15.8"), (NOTHING, "no measurable difference (−1.7")],
)
def test_a_control_says_what_preferences_gave(
    delta: tuple[float, float, float], words: str
) -> None:
    models = {"base": "Base", "sft": "SFT", "control": "Control", "policy": "DPO"}
    groups = {"seen tasks": group(HELPED, {"policy-control": delta})}
    assert words in headline(groups, models=models).checks()


@pytest.mark.parametrize(
    ("rate", "word"),
    [
        ((0.62, 0.58, 0.66), "learnt the preferences"),
        ((0.41, 0.33, 0.49), "learnt the opposite"),
        ((0.53, 0.4, 0.6), "did not measurably learn"),
    ],
)
def test_held_out_pairs_never_say_that_it_helped(
    rate: tuple[float, float, float], word: str
) -> None:
    line = headline({}, learnt=learnt({"policy": rate}), gives_verdict=["learnt"]).learnt()
    assert f"in {rate[0]:.1%} ({rate[1]:.1%} to {rate[2]:.1%}) of 500 held-out pairs" in line
    assert word in line
    assert "helped" not in line


def commands(
    figures: Results, helped: bool | None = None, seeds: tuple[int, ...] = (1,)
) -> list[str]:
    why = None if helped is None else Diagnosis(helped, "", [], [], [])
    manifest = {"command": f"{RUN} stage=eval", "inputs": {"pairs": {}}}
    return [command for _, command in next_steps(figures, manifest, list(seeds), why)]


def test_what_to_do_next_is_a_command_of_this_run() -> None:
    checks = results({"seen tasks": group(HELPED)})
    few = learnt({}, pairs=26, note="too few to say")
    preferences = results({}, learnt=few, gives_verdict=["learnt"])
    asked = {"sft": Waiting(Opposed("SFT", "human", 31, 0), 31, 0.2)}
    waiting = results({}, judged=asked, gives_verdict=["checks", "judged"])
    uses = [command for _, command in uses_of_model(RUN)]
    seeds = f"{RUN} 'seeds=[2,3]'"
    assert commands(checks, True) == [*uses[:1], seeds]
    assert commands(checks, True, (1, 2, 3)) == commands(checks, None, ()) == uses[:2]
    assert commands(preferences, False)[0].startswith(f"{RUN} eval/judged=judge ")
    assert commands(waiting, False)[0] == f"{RUN} stage=versus"


def test_after_a_rehearsal_the_same_command_trains_the_real_model() -> None:
    few = learnt({}, pairs=26, note="too few to say")
    rehearsal = results({}, learnt=few, gives_verdict=["learnt"], rehearsal="Rehearsed")
    toy = {"command": f"{RUN} scale=toy data.path=rows.jsonl stage=eval"}
    [(_, command)] = next_steps(rehearsal, toy, [1], None)
    assert command == f"{RUN} data.path=rows.jsonl"
