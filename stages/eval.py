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
from stages.evaluation.asked import ASKED, prompts_behind
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
from stages.store.workspace import StageDir

# What those without checks are called; the first that were asked are those that a verdict without checks is about.
OPEN = {
    "the prompts of held-out pairs": "answer_held_out",
    "your own prompts": "answer_judged",
    "prompts without checks": "answer",
}


def run(cfg: Eval, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish `results.json`: the models in their order, their rates and differences by group, kind and task, what
    they learnt of held-out pairs, what was judged, and what puts all this in proportion; and `outcomes.parquet`: of
    every answer to a prompt of ours whether it passes.

    Raises:
        UserError: where nothing is left to tell by.
    """
    titles = cfg.models
    by_set, left_out = answered_by_all(cfg, inputs, out)
    prompts = {name: prompts_in(name, inputs, answers["policy"]) for name, answers in by_set.items()}
    checked, unchecked = with_checks(cfg, inputs, prompts, by_set, out), without_checks(prompts, by_set)
    pairs = learnt.learnt(cfg, inputs, before(titles), out) if "pairs" in inputs else {}
    comparisons = judged.judged(cfg, inputs)
    parts = parts_of_verdict(checked, pairs, comparisons, own="answer_held_out_policy" in inputs)
    if not parts:
        ids = {e.id for each in prompts.values() for e in each}
        raise UserError(
            f"of {len(ids)} prompts none can say whether it helped: {len(ids & trained_on(inputs))} are in "
            "the pairs as well, any others have no checks, or are rephrased or plain; and no pair is held out. Raise "
            "data.tasks.test, or name other data."
        )
    answers = {role: {i: a for each in by_set.values() for i, a in each[role].items()} for role in titles}
    by_checks = checked.primary if parts[0] == "checks" else None
    if by_checks and (fewer := ends_less(checked.groups, titles, cfg)):
        out.warn(fewer)
    table = by_checks or next(iter(unchecked.values()), checked.primary)  # what the verdict is about
    scored = (checked.ours if by_checks else table or checked.ours).prompts
    scored = sorted(scored, key=lambda e: e.id)[: cfg.likelihood_prompts]
    results: dict[str, Any] = {
        "models": titles,
        "before": before(titles),
        "main_difference": main_difference(titles),
        "differences": {name: f"{titles[a]} − {titles[b]}" for name, (a, b) in differences(titles).items()},
        **checked.results(answers, cfg),
        **form_of(table, answers, cfg, out),
        "shown_on": next((name for name, each in unchecked.items() if each is table), checked.endpoint),
        "open": {
            name: {"prompts": len(each.prompts), **of_answers(each, answers)} for name, each in unchecked.items()
        },
        "learnt": pairs,
        "judged": comparisons,
        "gives_verdict": parts,
        **likelihood.score(cfg, inputs, scored, answers, out),
        "retention": retention.claims(cfg, inputs, checked.everything, answers, out),
    }
    results["cautions"] = learnt.cautions(results)
    results["verdict"] = verdict_of(results)
    save(out / "outcomes.parquet", checked.ours.outcomes(), Outcome)
    safe_files.write(out / "results.json", json.dumps(results, indent=1))
    main, groups = results["primary"], results["groups"]
    rates = [f"{title} {main[role]['mean']:.1%}" for role, title in titles.items() if main and "checks" in parts]
    return {
        "device": str(device_of(cfg.runtime.device)),
        "prompts_left_out": left_out,
        "pass_rate": {role: main[role]["mean"] for role in titles} if main else {},
        "unseen_tasks": {role: groups["unseen tasks"][role]["mean"] for role in titles if "unseen tasks" in groups},
        "delta": {name: main[name] for name in differences(titles)} if main else {},
        **{name: results[name] for name in ("mean_tokens", "stop_rate", "kl", "references", "learnt", "judged")},
        "verdict": results["verdict"],
        "summary": f"{', '.join(rates)}. " * bool(rates) + results["verdict"],
    }


def parts_of_verdict(checked: Checked, pairs: dict[str, Any], comparisons: dict[str, Any], own: bool) -> list[str]:
    """Return the parts that the verdict has, the most important first. `own`: the preferences are somebody's own, and
    prompts that were generated here are not about them."""
    parts = {"checks": checked.endpoint, "learnt": pairs, "judged": comparisons}
    if own:
        order = ["learnt", "judged"] + ["checks"] * checked.of_files
    else:
        order = ["checks", "judged"] if checked.endpoint or comparisons else ["learnt"]
    return [name for name in order if parts[name]]


def verdict_of(results: dict[str, Any]) -> str:
    """Return a sentence for every part of the verdict, the first with what became worse. Of several opponents the
    first one speaks: the others have their lines in the report."""
    titles = results["models"]
    say = {
        "checks": lambda: verdict(results["primary"], titles, results["endings"]),
        "learnt": lambda: learnt.sentence(results["learnt"], titles, results["cautions"]),
        "judged": lambda: judged.sentence(next(iter(results["judged"].values())), titles["policy"]),
    }
    return " ".join(say[name]() for name in results["gives_verdict"])


def form_of(table: Table | None, answers: Answers, cfg: Eval, out: StageDir) -> dict[str, Any]:
    """Return length and endings of the answers that the verdict is about, and warn where lengths drift apart."""
    if table is None:
        return {"mean_tokens": {}, "stop_rate": {}, "loops": {}, "endings": ""}
    titles, form, first = cfg.models, of_answers(table, answers), before(cfg.models)
    if abs(drift := form["mean_tokens"]["policy"] / form["mean_tokens"][first] - 1) > LENGTH_DRIFT:
        word = f"{abs(drift):.0%} {'longer' if drift > 0 else 'shorter'}"
        out.warn(f"{titles['policy']}'s answers are {word} than {titles[first]}'s: part of any change may be length.")
    return form | {"endings": endings_clause(table, titles, cfg)}


def of_answers(table: Table, answers: Answers) -> dict[str, Any]:
    """Return mean tokens, and the shares of answers that end by themselves and that loop, by role."""
    looping = [[loops(answers[role][e.id].text) for role in table.roles] for e in table.prompts]
    figures = {"mean_tokens": table.tokens, "stop_rate": table.stopped, "loops": np.array(looping, float)}
    return {name: table.mean(values) for name, values in figures.items()}


def trained_on(inputs: dict[str, Path]) -> set[str]:
    """The prompts of preference pairs: where they came from a file, they may be in the test."""
    return {*Records(inputs["pairs"] / "pairs.parquet", Pair).column("prompt_id")} if "pairs" in inputs else set()


def with_checks(
    cfg: Eval, inputs: dict[str, Path], prompts: dict[str, list[Example]], by_set: dict[str, Answers], out: StageDir
) -> Checked:
    """The prompts with checks that every model answered, and that nothing was trained on. Of labelled sets a prompt is
    left out as well that the data holds, in any split."""
    names, nobody = ("answer", "answer_outside"), {role: dict[str, Candidate]() for role in cfg.models}
    data, outside = ([e for e in prompts.get(name, []) if e.checks] for name in names)
    seen = trained_on(inputs)
    everything = tabulate(unseen(data, seen, out), by_set.get("answer", nobody))
    if outside:
        seen |= {*Records(inputs["data"] / "examples.parquet", Example).column("id")}
    return Checked(everything, tabulate(unseen(outside, seen, out), by_set.get("answer_outside", nobody)).by("task"))


def without_checks(prompts: dict[str, list[Example]], by_set: dict[str, Answers]) -> dict[str, Table]:
    """The answers to prompts without checks, by what the prompts are: how long they are, and how they end."""
    plain = {name: [e for e in prompts.get(name, []) if not e.checks] for name in OPEN.values()}
    return {title: tabulate(plain[name], by_set[name]) for title, name in OPEN.items() if plain[name]}


def prompts_in(name: str, inputs: dict[str, Path], answers: dict[str, Candidate]) -> list[Example]:
    """The prompts of a set that every model answered, in the order of the answers."""
    by_id = {e.id: e for e in prompts_behind(name, inputs) if e.id in answers}
    return [by_id[prompt_id] for prompt_id in answers]


def unseen(prompts: list[Example], seen: set[str], out: StageDir) -> list[Example]:
    """Return the prompts that nothing was trained on, and warn of the others."""
    fresh = [e for e in prompts if e.id not in seen]
    if len(fresh) < len(prompts):
        out.warn(f"{len(prompts) - len(fresh)} test prompts are in the data or the pairs as well and do not count.")
    return fresh


def answered_by_all(cfg: Eval, inputs: dict[str, Path], out: StageDir) -> tuple[dict[str, Answers], int]:
    """Return, by the name of each set of prompts, the answers to those that every model answered; and how many prompts
    that leaves out, with a warning.

    Raises:
        UserError: where no prompt of a set is left.
    """
    by_set, total = dict[str, Answers](), 0
    for name in (name for name in ASKED if f"{name}_policy" in inputs):
        by_set[name], left_out = read_answers({role: inputs[f"{name}_{role}"] for role in cfg.models})
        message = f"{left_out} prompts are too long for one of the models, so that they count for none"
        if not by_set[name]["policy"]:
            raise UserError(f"{message}; no prompt is left. Lower answer.max_new_tokens.")
        if left_out:
            out.warn(f"{message}: all models are compared on the same prompts.")
        total += left_out
    return by_set, total
