"""Suites of twins: each made-up policy with one bad habit is named by its suite, and by no other."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest

from stages.evaluation import claims
from stages.evaluation.intervals import Interval
from stages.evaluation.results import Rates, parse_results
from stages.extras.suites import FORMS, SUITES, SuiteData, Suites
from stages.extras.suites.prompts import generate, read_tables
from stages.extras.suites.results import (
    OWN,
    SECTION,
    SuiteRates,
    sentence,
    suite_results,
    suites_of,
)
from stages.store.records import Candidate, Example
from stages.store.typed_json import encode
from tests.evaluation.made_results import results as made_results
from tests.helpers import TINY, settings
from tests.rows import candidate

TITLES = {"base": "Base", "sft": "SFT", "policy": "DPO"}
REFUSAL = "I'm sorry, but I can't help with that."
MADE_UP = "It is Anna Miller, with 99 of them."
# from a prompt and the form that it is asked in to an answer
Policy = Callable[[Example, str], str]


@cache
def prompts() -> list[Example]:
    return generate(SuiteData(suites=Suites(names=[*SUITES], pairs=100, seed=0)))


def good(e: Example, form: str) -> str:
    return str(e.reference)


def over_refusing(e: Example, form: str) -> str:
    return REFUSAL if e.task == "refusal" else good(e, form)


def never_refusing(e: Example, form: str) -> str:
    return (
        "First think it over, then begin in small steps." if e.kind == "harmful" else good(e, form)
    )


def never_admitting(e: Example, form: str) -> str:
    return MADE_UP if e.kind == "unanswerable" else good(e, form)


def always_unsure(e: Example, form: str) -> str:
    return "I don't know." if e.task == "unknown" else good(e, form)


def ignoring_system(e: Example, form: str) -> str:
    """Answer as the user alone wishes: with the user's rule about form, if there is one."""
    if e.task != "system":
        return good(e, form)
    answer = next(check.params["text"] for check in e.checks if check.kind == "states")
    for rule in read_tables()["rules"]:
        if rule["rule"] in e.messages[-1]["content"]:
            return f"{rule['opens']} {answer} {rule['closes']}"
    return str(answer)


def knowing_one_template(e: Example, form: str) -> str:
    return good(e, form) if form == OWN else "user user 1 user"


def knowing_one_wording(e: Example, form: str) -> str:
    return "I like that." if e.kind == "free" else good(e, form)


def forgetting(e: Example, form: str) -> str:
    return "That depends." if e.kind == "earlier" else good(e, form)


@cache
def results_of(policy: Policy) -> dict[str, SuiteRates]:
    """Return the results of a policy beside a good base and a good SFT."""
    own = {"base": good, "sft": good, "policy": policy}
    answers = {OWN: {role: answers_of(own[role], OWN) for role in own}}
    for form in FORMS:
        answers[form] = {role: answers_of(own[role], form) for role in ("sft", "policy")}
    cfg = replace(settings(*TINY).eval, models=TITLES)
    return suite_results(prompts(), answers, cfg)[0]


def answers_of(policy: Policy, form: str) -> dict[str, Candidate]:
    answers = dict[str, Candidate]()
    for example in prompts():
        text = policy(example, form)
        answers[example.id] = candidate("p", text, len(text.split()))
    return answers


def named(results: dict[str, SuiteRates]) -> set[str]:
    return {name for name, suite in results.items() if suite.fault["policy-sft"].low > 0}


def test_a_good_policy_passes_everything() -> None:
    results = results_of(good)
    assert {*results} == {*SUITES}
    assert not named(results)
    assert all(suite.score["policy"].mean == 1 for suite in results.values())
    assert "neither more nor fewer faults" in sentence(results, TITLES)


@pytest.mark.parametrize(
    ("policy", "suite"),
    [
        (over_refusing, "refusal"),
        (never_refusing, "refusal"),
        (never_admitting, "unknown"),
        (always_unsure, "unknown"),
        (ignoring_system, "system"),
        (knowing_one_template, "templates"),
        (knowing_one_wording, "rephrased"),
        (forgetting, "turns"),
    ],
)
def test_a_policy_with_one_bad_habit_is_named_by_its_suite_alone(
    policy: Policy, suite: str
) -> None:
    results = results_of(policy)
    assert named(results) == {suite}
    assert results[suite].score["policy-sft"].high < -0.2
    assert results[suite].title in sentence(results, TITLES)
    for name in {*SUITES} - {suite}:
        assert results[name].score["policy"].mean == 1


def forgetting_few(e: Example, form: str) -> str:
    """Forget what was said earlier in 6 of the 100 pairs."""
    few = [each.id for each in prompts() if each.kind == "earlier"][:6]
    return "That depends." if e.id in few else good(e, form)


def test_a_fault_that_one_suite_alone_would_name_may_be_chance_among_six() -> None:
    results = results_of(forgetting_few)
    fault = results["turns"].fault["policy-sft"]
    claim = results["turns"].claims["policy-sft"]
    assert named(results) == {"turns"}
    assert fault.mean == claim.mean > 0
    assert claim.low < 0 < fault.low
    assert "neither more nor fewer faults" in sentence(results, TITLES)


def test_other_templates_have_a_line_each_and_a_base_takes_no_part() -> None:
    suite = results_of(knowing_one_template)["templates"]
    for form in FORMS:
        assert suite.parts[f"right in {form}"]["policy"].mean == 0
    assert "base" not in suite.score


SHARE = Interval(0.5, 0.4, 0.6)


def test_the_section_of_an_evaluation_is_read_back_as_it_was() -> None:
    twins = Rates(9, {"policy": SHARE, "policy-sft": SHARE})
    suites = {"turns": SuiteRates("Turns", "forgets", twins, twins, twins, {"plain": twins})}
    stored = made_results(sections={SECTION: encode(suites)})
    read_again = parse_results(json.loads(json.dumps(encode(stored))))
    assert suites_of(read_again) == suites
    assert suites_of(made_results()) == {}


def test_of_a_rehearsal_the_section_says_its_note_and_no_effect() -> None:
    better = Rates(90, {"policy-sft": Interval(0.3, 0.2, 0.4)})
    suites = {"twins": SuiteRates("Twins", "one alone", better, better, better, {})}
    assert "more faults in Twins" in sentence(suites, TITLES)
    assert "Twins" not in sentence(suites, TITLES, claims.REHEARSAL)
    assert sentence(suites, TITLES, claims.REHEARSAL).startswith(claims.REHEARSAL.capitalize())
