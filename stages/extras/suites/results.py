"""Results of `eval.suites`: by model the shares of passed prompts and of pairs with the suite's fault, with intervals.

A pair counts for a fault if one twin shows that the model can, and the other that it does not. A model that passes
neither twin has another weakness. In refusals and unknown facts, the fault is the share of wrong stances."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.config.blocks.evaluation import Eval
from stages.evaluation import claims
from stages.evaluation.asked import read_prompts
from stages.evaluation.estimate import Means, correction
from stages.evaluation.extra_sections import Section
from stages.evaluation.measures import Measure, unit_of
from stages.evaluation.outcomes import (
    Answers,
    before,
    main_difference,
    means_and_differences,
    read_answers,
)
from stages.evaluation.results import Rates, Results
from stages.extras.suites import FORMS
from stages.extras.suites.prompts import SUITES
from stages.store.records import Example, Records, content_id
from stages.store.typed_json import decode
from stages.store.workspace import StageDir
from stages.tasks.checks import share_passed

OWN = "suites"  # the answers in each model's own form
SECTION = "suites"  # of an evaluation's results


@dataclass(frozen=True)
class SuiteRates:
    """The results of a suite. `score`: the prompts passed; `fault`: the share of pairs with the fault that `wrong`
    names; `claims`: the same with intervals for as many comparisons as there are suites; `parts`: by side or form."""

    title: str
    wrong: str
    score: Rates
    fault: Rates
    claims: Rates
    parts: dict[str, Rates]


def suites_of(results: Results) -> dict[str, SuiteRates]:
    """Return the results of an evaluation's suites by name, {} without any."""
    return decode(dict[str, SuiteRates], results.sections.get(SECTION, {}))


def measure_section(cfg: Eval, inputs: Mapping[str, Path], out: StageDir) -> Section:
    """Return results and measures on pairs that every model answered and the data does not contain."""
    if OWN not in inputs:
        return Section(SECTION, {}, [])
    from stages.models.chat_templates import other_form  # imported late: a report needs no torch
    from stages.models.contract import load_contract

    seen = {*Records(inputs["data"] / "examples.parquet", Example).column("id")}
    folders = {
        form: {role: inputs.get(f"answer_{form}_{role}") for role in cfg.models}
        for form in (OWN, *FORMS)
    }
    present = {
        form: {role: folder for role, folder in each.items() if folder}
        for form, each in folders.items()
    }
    answers = {form: read_answers(each)[0] for form, each in present.items() if each}
    prompts = [*read_prompts({"data": inputs[OWN]})]
    unusable = {
        e.request
        for e in prompts
        for form, of_form in answers.items()
        if e.id in seen
        or (e.id not in of_form["policy"] and (form == OWN or e.task == "templates"))
    }
    if unusable:
        out.warn(
            f"eval.suites: {len(unusable)} pairs are left out: a model did not answer both, or the data has one."
        )
    results, measured = suite_results(
        [e for e in prompts if e.request not in unusable], answers, cfg
    )
    tokenizer = load_contract(inputs["policy"] / "model").tokenizer
    names = {f"right in {form}": f"right in {other_form(tokenizer, form)}" for form in FORMS}
    named = dict[str, SuiteRates]()
    for name, row in results.items():
        parts = {names.get(title, title): part for title, part in row.parts.items()}
        named[name] = replace(row, parts=parts)
    return Section(SECTION, named, measured)


def suite_results(
    prompts: Sequence[Example], answers: Mapping[str, Answers], cfg: Eval
) -> tuple[dict[str, SuiteRates], list[Measure]]:
    """Return the results of each suite by name, and each model's score and lack of the fault by pair. `answers` are
    those in each model's own form, and in every other."""
    results, measured = dict[str, SuiteRates](), list[Measure]()
    by_suite = {
        name: outcomes_of(name, [e for e in prompts if e.task == name], answers)
        for name in dict.fromkeys(e.task for e in prompts)
    }
    faults = [over_pairs(outcomes.fault) for outcomes in by_suite.values()]
    p_values = [
        p_of_fault(fault, outcomes.roles)
        for fault, outcomes in zip(faults, by_suite.values(), strict=True)
    ]
    levels = correction(p_values, 1 - cfg.confidence)
    for (name, outcomes), fault, level in zip(by_suite.items(), faults, levels, strict=True):
        results[name] = rates(SUITES[name], outcomes, fault, cfg.confidence, level)
        units = [
            content_id(*map(unit_of, twins))
            for twins in zip(*outcomes.prompts.values(), strict=True)
        ]
        for measure, values in {"score": outcomes.score, "no fault": 1 - outcomes.fault}.items():
            for role, column in zip(outcomes.roles, values.T.tolist(), strict=True):
                rows = zip(units, column, strict=True)
                measured += [Measure(f"{name}: {measure}", unit, name, v, role) for unit, v in rows]
    return results, measured


@dataclass(frozen=True)
class PairOutcomes:
    """The outcomes of a suite. `parts`: by side or form, 1 for each prompt that passed, as (pairs, roles)."""

    roles: list[str]
    prompts: dict[str, list[Example]]  # of both sides, twins at the same place
    parts: dict[str, NDArray[Any]]
    score: NDArray[Any]
    fault: NDArray[Any]


def outcomes_of(name: str, prompts: list[Example], answers: Mapping[str, Answers]) -> PairOutcomes:
    suite, forms = SUITES[name], FORMS if name == "templates" else ()
    roles = [role for role in answers[OWN] if all(role in answers[form] for form in forms)]
    sides = {side: [e for e in prompts if e.kind == side] for side in suite["checks"]}
    passed = {side: table(examples, answers[OWN], roles) for side, examples in sides.items()}
    if by_form := {form: table(sides["own"], answers[form], roles) for form in forms}:
        passed = {"other": np.mean([*by_form.values()], axis=0), **passed}
    hard, plain = passed.values()
    if suite["fault"] == "stance":
        fault = 1 - np.mean(
            [table(each, answers[OWN], roles, stance=True) for each in sides.values()], axis=0
        )
    else:
        fault = plain * (1 - hard) + (hard * (1 - plain) if suite["fault"] == "either" else 0)
    parts = {suite["sides"][side]: of_side for side, of_side in passed.items()}
    parts |= {f"right in {form}": of_form for form, of_form in by_form.items()}
    return PairOutcomes(roles, sides, parts, (hard + plain) / 2, fault)


def rates(
    suite: Mapping[str, Any], outcomes: PairOutcomes, fault: Means, confidence: float, level: float
) -> SuiteRates:
    """Return the results of one suite of several. `fault`: the means of its fault; `level`: the share of all truths that
    the intervals of its claim may miss, as several suites need."""
    return SuiteRates(
        title=suite["title"],
        wrong=suite["wrong"],
        score=with_intervals(over_pairs(outcomes.score), outcomes.roles, confidence),
        fault=with_intervals(fault, outcomes.roles, confidence),
        claims=with_intervals(fault, outcomes.roles, 1 - level),
        parts={
            title: with_intervals(over_pairs(part), outcomes.roles, confidence)
            for title, part in outcomes.parts.items()
        },
    )


def over_pairs(values: NDArray[Any]) -> Means:
    """Return the means of `values` (pairs of twins, roles), of which each pair is one draw."""
    return Means(values, [""] * len(values))


def p_of_fault(fault: Means, roles: list[str]) -> float:
    """Return the p-value of a difference in the fault between the policy and the model before it."""
    return fault.differs(roles.index("policy"), roles.index(before(roles)))


def table(
    prompts: list[Example], answers: Answers, roles: list[str], stance: bool = False
) -> NDArray[Any]:
    """Return 1 for every answer that passes all checks of its prompt, or the first one, which is about its stance."""
    texts = [
        (e.checks[:1] if stance else e.checks, [answers[role][e.id].answer for role in roles])
        for e in prompts
    ]
    return np.array(
        [[share_passed(checks, text) == 1 for text in row] for checks, row in texts], float
    )


def with_intervals(means: Means, roles: list[str], confidence: float) -> Rates:
    """Return the mean by role, and the paired differences, with their intervals."""
    return Rates(means.prompts, means_and_differences(means, roles, confidence))


def sentence(suites: Mapping[str, SuiteRates], titles: Mapping[str, str], note: str = "") -> str:
    """Say in which suites the policy shows the fault measurably more or less often than the model before it. `note`: why
    nothing can be said, or ''."""
    if note:
        return f"{note.capitalize()} in which suites {titles['policy']} shows faults."
    main = main_difference(titles)
    deltas = {each.title: each.claims[main] for each in suites.values() if main in each.claims}
    more, fewer = list[str](), list[str]()
    for title, delta in deltas.items():
        of_faults = claims.difference(delta)  # of which more is worse
        if of_faults.is_better:
            more.append(f"{title}, {delta.points()}")
        elif of_faults.is_worse:
            fewer.append(f"{title}, {delta.points()}")
    lists = [
        f"{word} faults in {'; '.join(each)}"
        for word, each in (("more", more), ("fewer", fewer))
        if each
    ]
    clause = " and ".join(lists) or "neither more nor fewer faults, measurably, in any suite"
    return f"Against {titles[before(titles)]}, {titles['policy']} shows {clause}." if deltas else ""
