"""The sentences at the top of a report: a number with what it is of, and no more than the numbers bear out."""

from typing import Any

import pytest

from stages.pages import changes
from stages.pages.headline import Headline
from stages.pages.seeds import more

DPO = {"base": "Base", "sft": "SFT", "policy": "DPO"}


def share(mean: float, low: float = 0.0, high: float = 1.0) -> dict[str, float]:
    return {"mean": mean, "low": low, "high": high}


def group(delta: tuple[float, float, float], prompts: int = 800, tasks: int = 28, **more: Any) -> dict[str, Any]:
    rates = {"base": share(0.011), "sft": share(0.316), "policy": share(0.316 + delta[0])}
    note = "too few tasks to say" if tasks < 12 else ""
    return {"prompts": prompts, "tasks": tasks, "note": note, "containing": {}, "gained": 98, "lost": 70} | rates | {
        "sft-base": share(0.305), "policy-sft": share(*delta)
    } | more  # fmt: skip


def headline(groups: dict[str, Any], runs: int = 1, trained: str = "it", models: Any = DPO) -> Headline:
    endpoint = next(iter(groups))
    results = {"groups": groups, "models": models, "endpoint": endpoint, "differences": {}, "references": {}}
    return Headline(results, 0.95, runs, trained)


FAILED = {"sft": share(0.0), "policy": share(0.0)}
HELPED, NOTHING, HURT = (0.086, 0.026, 0.158), (-0.017, -0.071, 0.034), (-0.1, -0.15, -0.05)


def test_a_gain_stands_with_what_it_is_of_and_beside_where_there_is_none() -> None:
    told = headline({"seen tasks": group(HELPED), "unseen tasks": group(NOTHING, 240, 35)})
    assert told.helped
    assert told.verdict == (
        "DPO helped on 28 tasks that it was trained on: SFT passes 31.6% of 800 held-out prompts, DPO 40.2% "
        "(+8.6 points, 95% interval +2.6 to +15.8)."
    )
    assert told.elsewhere == [
        "On 35 tasks that it never saw: no measurable change (−1.7 points, −7.1 to +3.4; 240 prompts)."
    ]
    assert told.caution.startswith("One seed ")
    assert told.control == told.form == ""


def test_the_command_for_more_seeds_is_that_of_this_run() -> None:
    """It named the demo's, with a seed that the run may have had."""
    command = more({"command": "python run.py stage=eval recipe=instructions seed=1 dpo.beta=0.2"}, [{"seed": 1}])
    assert command == "python run.py recipe=instructions seed=1 dpo.beta=0.2 'seeds=[2,3]'"
    told = Headline(headline({"seen tasks": group(HELPED)}).results, 0.95, 1, more_seeds=command)
    assert f"{command} trains from two more" in told.caution


@pytest.mark.parametrize(("delta", "word"), [(NOTHING, "made no measurable change"), (HURT, "hurt")])
def test_what_did_not_help_is_not_said_to(delta: tuple[float, float, float], word: str) -> None:
    told = headline({"seen tasks": group(delta), "unseen tasks": group(HURT)}, runs=3)
    assert told.verdict.startswith(f"DPO {word} on 28 tasks that it was trained on: ")
    assert not told.helped
    assert "worse (−10.0 points, −15.0 to −5.0" in told.elsewhere[0]
    assert told.caution == ""


def test_few_tasks_are_too_few_to_say() -> None:
    told = headline({"seen tasks": group(HELPED, 32, 2), "unseen tasks": group((0.0, 0.0, 0.0), 8, 1)})
    assert told.elsewhere == [
        "On 1 task that it never saw: too few tasks to say (+0.0 points, +0.0 to +0.0; 8 prompts)."
    ]
    assert "Fewer than 12 tasks: too few to say it of any others." in told.caution
    assert "Fewer than 800 prompts" in told.caution


def test_open_requests_alone_are_told_by_kinds_of_constraint() -> None:
    told = headline({"untrained kinds": group(HELPED, 900, 30), "trained kinds": group(NOTHING, 248, 31)})
    assert told.verdict.startswith("DPO helped on 30 kinds of constraint that nothing was trained on: ")
    assert told.elsewhere[0].startswith("On 31 kinds of constraint that it was trained on: no measurable change (")


def test_pairs_of_a_file_train_no_task() -> None:
    for trained in ("SFT", "nothing"):
        told = headline({"seen tasks": group(NOTHING)}, trained=trained)
        assert told.verdict.startswith(f"DPO made no measurable change on 28 tasks that {trained} was trained on: ")


def test_none_of_many_stands_with_how_many_could_be() -> None:
    told = headline({"seen tasks": group(HELPED, sft=share(0, 0, 0.0093), prompts=320)})
    assert "SFT passes 0 (up to 0.9%) of 320 held-out prompts, DPO 40.2%" in told.verdict


def test_none_or_all_of_the_policys_stands_in_one_pair_of_brackets_with_the_difference() -> None:
    none = group((-0.316, -0.4, -0.2), policy=share(0, 0, 0.089))
    assert headline({"seen tasks": none}).verdict.endswith(
        "DPO 0 (up to 8.9%; −31.6 points, 95% interval −40.0 to −20.0)."
    )
    same = group((0.0, 0.0, 0.0), sft=share(1, 0.996, 1), policy=share(1, 0.996, 1))
    assert headline({"seen tasks": same}).verdict.endswith(
        "DPO all (99.6% or more; +0.0 points, 95% interval +0.0 to +0.0)."
    )


def test_a_control_says_what_preferences_gave() -> None:
    models = {"base": "Base", "sft": "SFT", "control": "Control", "policy": "DPO"}
    told = headline({"seen tasks": group(HELPED, **{"policy-control": share(*HELPED)})}, models=models)
    assert told.control.endswith("on the chosen answers alone: better (+8.6 points, +2.6 to +15.8; 800 prompts).")
    told = headline({"seen tasks": group(HELPED, **{"policy-control": share(*NOTHING)})}, models=models)
    assert "alone: no measurable difference (−1.7 points" in told.control


def test_answers_that_became_less_likely_are_told_of_at_the_top() -> None:
    told = headline({"seen tasks": group(HELPED)})
    for delta, words in ((share(-0.35, -0.5, -0.2), "−0.35 nats per token (−0.50 to −0.20)"), (share(-0.1, -0.3), "")):
        told.results["references"] = {"prompts": 64, "policy-sft": delta}
        assert words in told.forgotten and bool(words) == bool(told.forgotten)


def test_form_stands_beside_the_strict_rate() -> None:
    held = {"base": share(0.31), "sft": share(0.51), "policy": share(0.58)}
    told = headline({"seen tasks": group(HELPED, containing=held)})
    assert told.form == (
        "Answers that contain the reference, whatever their form: Base 31.0%, SFT 51.0%, DPO 58.0%. "
        "In the form asked for: 1.1%, 31.6%, 40.2%."
    )


def test_the_chart_has_kinds_in_words_from_most_gained_to_most_lost_on_one_scale() -> None:
    kinds = {"follow_up": group(NOTHING), "case": group(HELPED), "mine_own": group((0.0, 0.0, 0.0))}
    chart = changes.chart({"seen": kinds, "unseen": {"list": group(HURT)}})
    trained, never = chart["sides"].values()
    assert [row["name"] for row in trained] == ["upper and lower case", "mine own", "a second request"]
    assert chart["end"] == 20
    assert (trained[1]["at_low"], trained[1]["at_mean"]) == (50, 50)
    assert (never[0]["at_low"], never[0]["at_mean"], never[0]["at_high"]) == (12.5, 25, 37.5)
    assert changes.conclusion({"seen": kinds}, "DPO").startswith("Of 3 kinds of seen tasks, DPO is better on 1 and")
    assert changes.single(
        {"seen": kinds, "unseen": {"list": group(HURT), "none": group((0.0, 0.0, 0.0)) | FAILED}}
    ) == (
        "By themselves, of 5 tasks: better on “upper and lower case” (32% → 40% of 800); worse on “making lists” "
        "(32% → 22% of 800). On 1 of 2 unseen tasks neither passes any prompt."
    )
    assert changes.single({"seen": {"list": group(NOTHING)}}) == ""
