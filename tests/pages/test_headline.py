"""The sentences at the top of a report: each number with its prompts or pairs, and no claim beyond the numbers."""

from typing import Any

from stages.evaluation.diagnosis.diagnose import Diagnosis
from stages.pages import charts
from stages.pages.headline import Headline, next_steps

DPO = {"base": "Base", "sft": "SFT", "policy": "DPO"}


def share(mean: float, low: float = 0.0, high: float = 1.0) -> dict[str, float]:
    return {"mean": mean, "low": low, "high": high}


def group(
    delta: tuple[float, float, float], prompts: int = 800, tasks: int = 28, **more: Any
) -> dict[str, Any]:
    rates = {"base": share(0.011), "sft": share(0.316), "policy": share(0.316 + delta[0])}
    context = {
        "note": "too few tasks to say" if tasks < 12 else "",
        "containing": {},
        "tasks_drawn": False,
        "set": "",
    }
    return {"prompts": prompts, "tasks": tasks, "gained": 98, "lost": 70} | context | rates | {
        "sft-base": share(0.305), "policy-sft": share(*delta)
    } | more  # fmt: skip


def results(groups: dict[str, Any], models: dict[str, str] = DPO, **more: Any) -> dict[str, Any]:
    """Build results of an evaluation by checks; the verdict is about the first group. `more`: other results."""
    endpoint = next(iter(groups), None)
    names = {
        "endpoint": endpoint,
        "primary": groups.get(endpoint),
        "before": "sft",
        "main_difference": "policy-sft",
    }
    empty = {key: {} for key in ("references", "kl", "mean_tokens", "learnt", "judged")}
    return {
        "groups": groups,
        "models": models,
        **names,
        **empty,
        "gives_verdict": ["checks"],
        "cautions": "",
    } | more


def headline(groups: dict[str, Any], seeds: int = 1, trained: str = "it", **more: Any) -> Headline:
    return Headline(results(groups, **more), seeds, trained)


HELPED, NOTHING, HURT = (0.086, 0.026, 0.158), (-0.017, -0.071, 0.034), (-0.1, -0.15, -0.05)


def test_the_verdict_stands_with_what_it_is_of_and_how_far_it_reaches() -> None:
    line = headline({"seen tasks": group(HELPED), "unseen tasks": group(NOTHING, 240, 35)})
    about, checks = line.about(), line.checks()
    assert about.startswith(
        "Of 800 held-out prompts of 28 tasks that DPO was trained on, SFT passes 31.6%, DPO 40.2%."
    )
    assert ", DPO 40.2%. " in about and "95% confidence" in about and "One seed " in about
    assert "On seen tasks: better (+8.6" in checks
    assert "only DPO passes 98, only" in checks.replace("Only", "only")
    assert "other prompts of these tasks" in checks
    assert checks.endswith(
        "of training: no measurable change (−1.7 points, −7.1 to +3.4; 240 prompts)."
    )
    assert "One seed" not in headline({"seen tasks": group(HELPED)}, seeds=3).about()
    assert "One seed" not in headline({"seen tasks": group(HELPED)}, seeds=0).about(), (
        "of two folders"
    )


def test_none_or_all_of_many_stands_with_how_many_could_be() -> None:
    none = group(HELPED, sft=share(0, 0, 0.0093), policy=share(1, 0.996, 1))
    assert ", SFT passes 0 (up" in headline({"seen tasks": none}).about()


def test_a_control_says_what_preferences_gave() -> None:
    models = {"base": "Base", "sft": "SFT", "control": "Control", "policy": "DPO"}
    for delta, words in (
        (HELPED, "better (+8.6 points, +2.6 to +15.8"),
        (NOTHING, "no measurable difference (−1.7"),
    ):
        of = group(HELPED, **{"policy-control": share(*delta)})
        assert (
            f"on the chosen answers alone: {words}"
            in headline({"seen tasks": of}, models=models).checks()
        )


def test_held_out_pairs_never_say_that_it_helped() -> None:
    words = {
        (0.62, 0.58, 0.66): "above",
        (0.41, 0.33, 0.49): "below",
        (0.53, 0.4, 0.6): "not clearly different from",
    }
    for (mean, low, high), word in words.items():
        learnt = {
            "of": "500 held-out pairs",
            "pairs": 500,
            "ratio": {"policy": share(mean, low, high)},
            "note": "",
        }
        line = headline({}, learnt=learnt, gives_verdict=["learnt"]).learnt()
        assert (
            f"in {mean:.1%} ({low:.1%} to {high:.1%}) of 500 held-out pairs, {word} the 50% of chance"
            in line
        )
        assert "helped" not in line
    few = learnt | {"of": "26 held-out pairs", "pairs": 26, "note": "too few to say"}
    assert "of 26 held-out pairs, too" in headline({}, learnt=few).learnt()
    seeds = Headline(results({}, learnt=few), 3, learnt=[few, learnt, learnt])
    assert "(other seeds: 53.0%, 53.0%)" in seeds.learnt()


def test_the_chart_has_kinds_in_words_from_most_gained_to_most_lost_on_one_scale() -> None:
    kinds = {"follow_up": group(NOTHING), "case": group(HELPED), "mine_own": group((0.0, 0.0, 0.0))}
    chart = charts.chart(
        results({}, kinds={"seen": kinds, "unseen": {"list": group(HURT)}}), "kinds"
    )
    trained, never = chart["sides"].values()
    assert [row["name"] for row in trained] == [
        "upper and lower case",
        "mine own",
        "a second request",
    ]
    assert chart["end"] == 20
    assert (trained[1]["at_low"], trained[1]["at_mean"]) == (50, 50)
    assert (never[0]["at_low"], never[0]["at_mean"], never[0]["at_high"]) == (12.5, 25, 37.5)
    assert charts.conclusion(results({}, kinds={"seen": kinds})).startswith(
        "Of 3 kinds of seen tasks: "
    )


def steps(
    of: dict[str, Any],
    helped: bool | None = None,
    seeds: tuple[int, ...] = (1,),
    trained_on: str = "pairs",
) -> list[tuple[str, str]]:
    why = None if helped is None else Diagnosis(helped, "", [], [], [])
    run = "python run.py stage=eval recipe=instructions seed=1 dpo.beta=0.2"
    return next_steps(of, {"command": run, "inputs": {trained_on: {}}}, list(seeds), why)


def test_what_to_do_next_is_a_command_of_this_run() -> None:
    run = "python run.py recipe=instructions seed=1 dpo.beta=0.2"
    checks = results({"seen tasks": group(HELPED)})
    learnt = results({}, learnt={"pairs": 26, "note": "too few to say"}, gives_verdict=["learnt"])
    waiting = results({}, judged={"sft": {"waiting": 31}}, gives_verdict=["checks", "judged"])
    chat, export, seeds = f"{run} stage=chat", f"{run} stage=export", f"{run} 'seeds=[2,3]'"

    def commands(*of: Any) -> list[str]:
        return [command for _, command in steps(*of)]

    assert commands(checks, True) == [chat, seeds]
    assert commands(checks, True, (1, 2, 3)) == commands(checks, None, ()) == [chat, export]
    assert commands(learnt, False)[0].startswith(f"{run} eval/judged=judge ")
    assert "pairs.validation_fraction" in steps(learnt, False)[1][0]
    assert "unpaired.validation_fraction" in steps(learnt, False, trained_on="unpaired")[1][0]
    assert commands(waiting, False)[0] == f"{run} stage=versus"
