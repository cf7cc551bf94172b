"""Stage `eval`: did it help? All models on the same held-out prompts and pairs, with intervals.

A verdict has up to three parts, which never hide each other. By checks: policy minus SFT, the share of prompts that
pass all of them, on one primary endpoint. Learnt: how often the policy favours the chosen answer of held-out pairs
more than SFT does. Judged: how often a labeler finds its answers better. Preferences that are somebody's own speak
first of what they are about; everything else has an interval and no verdict.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from stages.config.blocks.evaluation import Eval
from stages.config.errors import UserError
from stages.curation.answer_rules import loops
from stages.evaluation import judged, learnt, likelihood, retention
from stages.evaluation.asked import prompts_of
from stages.evaluation.checked import Checked
from stages.evaluation.outcomes import (
    LENGTH_DRIFT,
    Answers,
    Table,
    before,
    differences,
    endings_clause,
    ends_less,
    main_difference,
    read_answers,
    tabulate,
    verdict,
)
from stages.models.loading import device_of
from stages.store import safe_files
from stages.store.records import Candidate, Example, Outcome, Pair, Records, save
from stages.store.workspace import Work

# Sets of prompts that models are asked, by the name of their answers: the input that has them.
ASKED = {"answer": "data", "answer_outside": "outside", "answer_held_out": "pairs", "answer_judged": "judged_prompts"}
# What those without checks are called; the first that were asked are those that a verdict without checks is about.
OPEN = {
    "the prompts of held-out pairs": "answer_held_out",
    "your own prompts": "answer_judged",
    "prompts without checks": "answer",
}


def run(cfg: Eval, inputs: dict[str, Path], out: Work) -> dict[str, Any]:
    """Publish `results.json`: the models in their order, their rates and differences by group, kind and task, what
    they learnt of held-out pairs, what was judged, and what puts all this in proportion; and `outcomes.parquet`: of
    every answer to a prompt of ours whether it passes.

    Raises:
        UserError: where nothing is left to tell by.
    """
    titles = cfg.models
    answers, left_out = answered_by_all(cfg, inputs, out)
    checked, opened = with_checks(cfg, inputs, answers, out), without_checks(inputs, answers)
    pairs = learnt.learnt(cfg, inputs, before(titles), out) if "pairs" in inputs else {}
    comparisons = judged.judged(cfg, inputs)
    parts = gives_verdict(checked, pairs, comparisons, own="answer_held_out_policy" in inputs)
    if not parts:
        asked = {prompt for each in answers.values() for prompt in each["policy"]}
        raise UserError(
            f"of {len(asked)} prompts none can say whether it helped: {len(asked & trained_on(inputs))} are in the "
            "pairs as well, any others have no checks, or are rephrased or plain; and no pair is held out. Raise "
            "data.tasks.test, or name other data."
        )
    leads = checked.primary if parts[0] == "checks" else None
    shown = leads or next(iter(opened.values()), checked.primary)
    everywhere = {role: {i: a for asked in answers.values() for i, a in asked[role].items()} for role in titles}
    told = figures(shown, everywhere, cfg, out) if shown else {}
    if leads and (fewer := ends_less(checked.groups, titles, cfg)):
        out.warn(fewer)
    scored = sorted((checked.ours if leads else shown or checked.ours).prompts, key=lambda e: e.id)
    scored = scored[: cfg.likelihood_prompts]
    results: dict[str, Any] = {
        "models": titles,
        "before": before(titles),
        "main_difference": main_difference(titles),
        "differences": {name: f"{titles[a]} − {titles[b]}" for name, (a, b) in differences(titles).items()},
        **checked.results(everywhere, cfg),
        **{"mean_tokens": {}, "stop_rate": {}, "loops": {}, "endings": "", **told},
        "shown_on": next((name for name, table in opened.items() if table is shown), checked.endpoint),
        "open": {
            name: of_answers(table, everywhere) | {"prompts": len(table.prompts)} for name, table in opened.items()
        },
        "learnt": pairs,
        "judged": comparisons,
        "gives_verdict": parts,
        **likelihood.score(cfg, inputs, scored, everywhere, out),
        "retention": retention.claims(cfg, inputs, checked.everything, everywhere, out),
    }
    results["verdict"] = sentences(results, cfg)
    save(out / "outcomes.parquet", checked.ours.outcomes(), Outcome)
    safe_files.write(out / "results.json", json.dumps(results, indent=1))
    main, by_group = results["primary"], results["groups"]
    return {
        "device": str(device_of(cfg.runtime.device)),
        "prompts_left_out": left_out,
        "pass_rate": {role: main[role]["mean"] for role in titles} if main else {},
        "unseen_tasks": {r: by_group["unseen tasks"][r]["mean"] for r in titles if "unseen tasks" in by_group},
        "delta": {name: main[name] for name in differences(titles)} if main else {},
        **{name: results[name] for name in ("mean_tokens", "stop_rate", "kl", "references", "learnt", "judged")},
        "verdict": results["verdict"],
        "summary": ", ".join(f"{title} {main[role]['mean']:.1%}" for role, title in titles.items() if main)
        + ". " * bool(main)
        + results["verdict"],
    }


def gives_verdict(checked: Checked, pairs: dict[str, Any], comparisons: dict[str, Any], own: bool) -> list[str]:
    """Which parts the verdict has, the most important first. `own`: the preferences are somebody's own, and generated
    prompts are not about them."""
    there = {"checks": checked.endpoint, "learnt": pairs, "judged": comparisons}
    if own:
        order = ["learnt", "judged"] + ["checks"] * checked.own
    else:
        order = ["checks", "judged"] if checked.endpoint or comparisons else ["learnt"]
    return [name for name in order if there[name]]


def sentences(results: dict[str, Any], cfg: Eval) -> str:
    """The verdict: a sentence of every part, the first with what became worse."""
    titles, told = cfg.models, list[str]()
    for name in results["gives_verdict"]:
        if name == "checks":
            told.append(verdict(results["primary"], titles, results["endings"]))
        elif name == "learnt":
            told.append(learnt.sentence(results["learnt"], titles, learnt.cautions(results)))
        else:
            told += [judged.sentence(its, titles["policy"]) for its in results["judged"].values()]
    return " ".join(told)


def figures(shown: Table, answers: Answers, cfg: Eval, out: Work) -> dict[str, Any]:
    """Length and endings of the answers that the verdict is about, with a warning where lengths drift apart."""
    titles, told = cfg.models, of_answers(shown, answers)
    first = before(titles)
    if abs(drift := told["mean_tokens"]["policy"] / told["mean_tokens"][first] - 1) > LENGTH_DRIFT:
        word = f"{abs(drift):.0%} {'longer' if drift > 0 else 'shorter'}"
        out.warn(f"{titles['policy']}'s answers are {word} than {titles[first]}'s: part of any change may be length.")
    return told | {"endings": endings_clause(shown, titles, cfg)}


def of_answers(table: Table, answers: Answers) -> dict[str, Any]:
    """Mean tokens, and the shares of answers that end by themselves and that loop, by role."""
    looping = [[loops(answers[role][e.id].text) for role in table.roles] for e in table.prompts]
    told = {"mean_tokens": table.tokens, "stop_rate": table.stopped, "loops": np.array(looping, float)}
    return {name: table.mean(values) for name, values in told.items()}


def trained_on(inputs: dict[str, Path]) -> set[str]:
    """The prompts of preference pairs: where they came from a file, they may be in the test."""
    return {*Records(inputs["pairs"] / "pairs.parquet", Pair).column("prompt_id")} if "pairs" in inputs else set()


def with_checks(cfg: Eval, inputs: dict[str, Path], answers: dict[str, Answers], out: Work) -> Checked:
    """The prompts with checks that every model answered, and that nothing was trained on. Of labelled sets a prompt is
    left out as well that the data holds, in any split."""
    known, names = trained_on(inputs), ("answer", "answer_outside")
    ours, theirs = ([e for e in prompts_in(inputs, answers, name) if e.checks] for name in names)
    seen = known.union(Records(inputs["data"] / "examples.parquet", Example).column("id")) if theirs else known
    fresh, nobody = unknown(ours, known, out), {role: dict[str, Candidate]() for role in cfg.models}
    everything = tabulate(fresh, answers.get("answer", nobody))
    outside = tabulate(unknown(theirs, seen, out), answers.get("answer_outside", nobody))
    return Checked(everything, outside.by("task"))


def without_checks(inputs: dict[str, Path], answers: dict[str, Answers]) -> dict[str, Table]:
    """The answers to prompts without checks, by what the prompts are: how long they are, and how they end."""
    found = dict[str, Table]()
    for title, name in OPEN.items():
        if prompts := [e for e in prompts_in(inputs, answers, name) if not e.checks]:
            found[title] = tabulate(prompts, answers[name])
    return found


def prompts_in(inputs: dict[str, Path], answers: dict[str, Answers], name: str) -> list[Example]:
    """The prompts of a set of answers that every model answered, in their order."""
    if name not in answers:
        return []
    role, asked = ASKED[name], answers[name]["policy"]
    found = {e.id: e for e in prompts_of({"pairs" if role == "pairs" else "data": inputs[role]}) if e.id in asked}
    return [found[prompt_id] for prompt_id in asked]


def unknown(prompts: list[Example], known: set[str], out: Work) -> list[Example]:
    """Those that nothing was trained on."""
    fresh = [e for e in prompts if e.id not in known]
    if len(fresh) < len(prompts):
        out.warn(f"{len(prompts) - len(fresh)} test prompts are in the data or the pairs as well and do not count.")
    return fresh


def answered_by_all(cfg: Eval, inputs: dict[str, Path], out: Work) -> tuple[dict[str, Answers], int]:
    """Return, by the name of each set of prompts that was asked, the answers to those that every model answered; and
    how many prompts that leaves out, with a warning.

    Raises:
        UserError: where no prompt of a set is left.
    """
    found, total = dict[str, Answers](), 0
    for name in ASKED:
        if f"{name}_policy" not in inputs:
            continue
        found[name], left_out = read_answers({role: inputs[f"{name}_{role}"] for role in cfg.models})
        message = f"{left_out} prompts are too long for one of the models, so that they count for none"
        if not found[name]["policy"]:
            raise UserError(f"{message}; no prompt is left. Lower answer.max_new_tokens.")
        if left_out:
            out.warn(f"{message}: all models are compared on the same prompts.")
        total += left_out
    return found, total
