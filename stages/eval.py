"""Stage `eval`: did it help? It compares all models on the same held-out prompts and pairs, with intervals.

A verdict has up to three parts, all of which are printed. *Checks*: policy minus SFT in the share of prompts that pass
all checks, on one primary endpoint. *Learnt*: the share of held-out pairs whose chosen answer the policy favours more
than SFT does. *Judged*: the policy's win rate by a labeler. With the user's own preferences, the parts about them come
first. All other figures have an interval and no verdict."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from stages.config.blocks.evaluation import Eval
from stages.config.errors import UserError
from stages.curation.answer_rules import is_repetitive
from stages.evaluation import (
    benchmarks,
    judged,
    learnt,
    likelihood,
    measures,
    outcomes,
    retention,
    rounds,
)
from stages.evaluation.asked import PROMPT_SOURCES, prompts_of_set
from stages.evaluation.checked import Checked
from stages.evaluation.outcomes import Answers, Outcome, Table, tabulate
from stages.evaluation.suite_results import read_suites
from stages.models.loading import resolve_device
from stages.store import safe_files
from stages.store.manifest import manifest_of
from stages.store.records import Candidate, Example, Pair, Records, save
from stages.store.single_completions import UnpairedPreference
from stages.store.splits import draw_order
from stages.store.workspace import StageDir

# Titles of the sets of prompts without checks. A verdict without checks is about the first set in this order.
SETS_WITHOUT_CHECKS = {
    "the prompts of held-out pairs": "answer_held_out",
    "your own prompts": "answer_judged",
    "prompts without checks": "answer",
}


def run(cfg: Eval, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish `results.json` (models, rates, differences, held-out pairs, judged comparisons, verdict) and
    `outcomes.parquet` (pass or fail for every answer to a prompt with checks) and `measures.parquet` (for the gate).
    Raise UserError if no prompt and no held-out pair is left to evaluate."""
    titles = cfg.models
    if "base" in inputs and manifest_of(inputs["base"])["config"]["random_init"]:
        out.warn(
            "the base has random weights, as with scale=toy: the verdict says nothing of your data."
        )
    by_set, left_out = read_shared_answers(cfg, inputs, out)
    prompts = {
        name: prompts_in(name, inputs, answers["policy"]) for name, answers in by_set.items()
    }
    checked = with_checks(cfg, inputs, prompts, by_set, out)
    unchecked = without_checks(prompts, by_set)
    labelled = not inputs.keys().isdisjoint(("pairs", "unpaired"))
    pairs, favoured = (
        learnt.learnt_results(cfg, inputs, outcomes.before(titles), out) if labelled else ({}, [])
    )
    comparisons, wins = judged.judged_results(cfg, inputs)
    own = {e.id for e in prompts.get("answer_judged", [])}
    if count := len(own & in_run(inputs)) if own else 0:
        out.warn(
            f"{count} prompts of eval.judged.source are also in the data or the pairs, and count."
        )
    parts = parts_of_verdict(checked, pairs, comparisons, own="answer_held_out_policy" in inputs)
    if not parts:
        ids = {
            e.id
            for name, examples in prompts.items()
            if name != "answer_held_out"
            for e in examples
        }
        key = "unpaired" if "unpaired" in inputs else "pairs"
        raise UserError(
            f"none of the {len(ids)} prompts can show if training helped: {len(ids & trained_on(inputs))} are also in "
            "the training pairs, the others have no checks or are only rephrased, and no pair is held out. Raise "
            f"data.tasks.test or {key}.validation_fraction, or add test prompts to data.sources."
        )
    answers = {
        role: {i: a for each in by_set.values() for i, a in each[role].items()} for role in titles
    }
    by_checks = checked.primary if parts[0] == "checks" else None
    # the answers that the verdict is about
    table = by_checks or next(iter(unchecked.values()), checked.primary)
    scored = (checked.verdict_table if by_checks else table or checked.verdict_table).prompts
    scored = sorted(scored, key=lambda e: draw_order(e.id))[: cfg.likelihood_prompts]
    retained, measured = retention.claims(cfg, inputs, checked.everything, answers, out)
    results: dict[str, Any] = {
        "models": titles,
        "decoding": {"max_new_tokens": cfg.max_new_tokens},
        "before": outcomes.before(titles),
        "main_difference": outcomes.main_difference(titles),
        "differences": {
            name: f"{titles[a]} − {titles[b]}"
            for name, (a, b) in outcomes.differences(titles).items()
        },
        **checked.results(answers, cfg),
        **measure_form(table, answers, cfg, out),
        "shown_on": next(
            (name for name, each in unchecked.items() if each is table), checked.endpoint
        ),
        "open": {
            name: {"prompts": len(t.prompts), **measure_answers(t, answers)}
            for name, t in unchecked.items()
        },
        "learnt": pairs,
        "judged": comparisons,
        "gives_verdict": parts,
        **likelihood.score(cfg, inputs, scored, answers, out),
        "retention": retained,
    }
    if by_round := rounds.compare_rounds(inputs, cfg.confidence, trained_on(inputs)):
        results["rounds"] = by_round
    by_suite, measured_by_suite = read_suites(cfg, inputs, out)
    results |= {"suites": by_suite} if by_suite else {}
    by_task, scores = benchmarks.benchmark_results(cfg, inputs)
    results |= {"benchmarks": by_task} if by_task else {}
    results["cautions"] = learnt.cautions(results)
    results["verdict"] = verdict_of(results)
    save(out / "outcomes.parquet", checked.outcomes(), Outcome)
    tables = [checked.everything, *checked.outside.values(), *unchecked.values()]
    passes = {measures.PASSES: checked.primary} if checked.primary else {}
    passes |= {
        f"{measures.PASSES} of {name}": table
        for name, table in checked.outside.items()
        if table is not checked.primary
    }
    measured += measures.measure_answers(tables, passes, answers["policy"])
    # other held-out pairs are of each run's own samples
    measured += favoured if parts[0] == "learnt" else []
    save(out / measures.FILE, [*measured, *measured_by_suite, *wins, *scores], measures.Measure)
    safe_files.write(out / "results.json", json.dumps(results, indent=1))
    main, groups = results["primary"], results["groups"]
    rates = [
        f"{title} {main[role]['mean']:.1%}"
        for role, title in titles.items()
        if main and "checks" in parts
    ]
    return {
        "device": str(resolve_device(cfg.runtime.device)),
        "prompts_left_out": left_out,
        "pass_rate": {role: main[role]["mean"] for role in titles} if main else {},
        "unseen_tasks": {
            role: groups["unseen tasks"][role]["mean"]
            for role in titles
            if "unseen tasks" in groups
        },
        "delta": {name: main[name] for name in outcomes.differences(titles)} if main else {},
        **{
            name: results[name]
            for name in ("mean_tokens", "stop_rate", "kl", "references", "learnt", "judged")
        },
        "verdict": results["verdict"],
        "summary": f"{', '.join(rates)}. " * bool(rates) + results["verdict"],
    }


def parts_of_verdict(
    checked: Checked, pairs: dict[str, Any], comparisons: dict[str, Any], own: bool
) -> list[str]:
    """Return the verdict's parts, the most important first. `own`: preferences of the user, not generated ones."""
    parts = {"checks": checked.endpoint, "learnt": pairs, "judged": comparisons}
    if own:
        order = ["learnt", "judged"] + ["checks"] * checked.is_from_files
    else:
        order = ["checks", "judged"] if checked.endpoint or comparisons else ["learnt"]
    return [name for name in order if parts[name]]


def verdict_of(results: dict[str, Any]) -> str:
    """Return one sentence per part of the verdict; the first also names what became worse. Only the first of several
    judged opponents is included; the report has a line for each of them."""
    titles = results["models"]
    sentence_of = {
        "checks": lambda: outcomes.verdict(results["primary"], titles, results["endings"]),
        "learnt": lambda: learnt.sentence(results["learnt"], titles, results["cautions"]),
        "judged": lambda: judged.sentence(next(iter(results["judged"].values())), titles["policy"]),
    }
    return " ".join(sentence_of[name]() for name in results["gives_verdict"])


def measure_form(table: Table | None, answers: Answers, cfg: Eval, out: StageDir) -> dict[str, Any]:
    """Return length and endings of the answers that the verdict is about, and warn if mean lengths differ a lot."""
    if table is None:
        return {"mean_tokens": {}, "stop_rate": {}, "loops": {}, "endings": ""}
    titles, form, first = cfg.models, measure_answers(table, answers), outcomes.before(cfg.models)
    tokens = form["mean_tokens"]
    if abs(drift := tokens["policy"] / max(1.0, tokens[first]) - 1) > outcomes.LENGTH_DRIFT:
        word = f"{abs(drift):.0%} {'longer' if drift > 0 else 'shorter'}"
        out.warn(
            f"{titles['policy']}'s answers are {word} than {titles[first]}'s: a change may be partly length."
        )
    return form | {"endings": outcomes.endings_clause(table, titles, cfg)}


def measure_answers(table: Table, answers: Answers) -> dict[str, Any]:
    """Return by role the mean tokens and the shares of answers that end by themselves and that loop."""
    looping = [
        [is_repetitive(answers[role][e.id].answer) for role in table.roles] for e in table.prompts
    ]
    figures = {
        "mean_tokens": table.tokens,
        "stop_rate": table.stopped,
        "loops": np.array(looping, float),
    }
    means = {name: table.mean(values) for name, values in figures.items()}
    return means | count_thoughts(table, answers)


def count_thoughts(table: Table, answers: Answers) -> dict[str, Any]:
    """Return by role the share of answers after a thought and the mean tokens of a thought; {} if none has one."""
    candidates = [[answers[role][e.id] for role in table.roles] for e in table.prompts]
    thinks = np.array([[c.has_thought for c in row] for row in candidates], float)
    tokens = np.array([[c.n_tokens - c.length for c in row] for row in candidates], float)
    if not thinks.any():
        return {}
    per_thought = tokens.sum(0) / np.maximum(1, thinks.sum(0))
    return {
        "thoughts": table.mean(thinks),
        "thought_tokens": dict(zip(table.roles, map(float, per_thought), strict=True)),
    }


def trained_on(inputs: dict[str, Path]) -> set[str]:
    """Return the prompt ids of all labels that a model was trained on. Those from a file may also be test prompts."""
    kinds: dict[str, Any] = {"pairs": Pair, "unpaired": UnpairedPreference}
    tables = [
        Records(inputs[n] / f"{s}.parquet", kinds[s])
        for n in inputs
        if (s := n.partition("_")[0]) in kinds
    ]
    return {prompt_id for table in tables for prompt_id in table.column("prompt_id")}


def in_run(inputs: dict[str, Path]) -> set[str]:
    """Return the prompt ids of the data, in any split, and of the preferences."""
    return trained_on(inputs) | {
        *Records(inputs["data"] / "examples.parquet", Example).column("id")
    }


def with_checks(
    cfg: Eval,
    inputs: dict[str, Path],
    prompts: dict[str, list[Example]],
    by_set: dict[str, Answers],
    out: StageDir,
) -> Checked:
    """Check the answers to prompts with checks that every model answered and nothing was trained on. A prompt of a
    labelled set is also left out if the data contains it, in any split."""
    names = ("answer", "answer_outside")
    no_answers = {role: dict[str, Candidate]() for role in cfg.models}
    data, outside = ([e for e in prompts.get(name, []) if e.checks] for name in names)
    seen = trained_on(inputs)
    everything = tabulate(unseen(data, seen, out), by_set.get("answer", no_answers))
    if outside:
        seen = in_run(inputs)
    answers = by_set.get("answer_outside", no_answers)
    return Checked(everything, tabulate(unseen(outside, seen, out), answers).by("task"))


def without_checks(
    prompts: dict[str, list[Example]], by_set: dict[str, Answers]
) -> dict[str, Table]:
    """Tabulate length and endings of the answers to prompts without checks, by the set's title."""
    plain = {
        name: [e for e in prompts.get(name, []) if not e.checks]
        for name in SETS_WITHOUT_CHECKS.values()
    }
    return {
        title: tabulate(plain[name], by_set[name])
        for title, name in SETS_WITHOUT_CHECKS.items()
        if plain[name]
    }


def prompts_in(name: str, inputs: dict[str, Path], answers: dict[str, Candidate]) -> list[Example]:
    """Read the prompts of a set that every model answered, in the order of the answers."""
    by_id = {e.id: e for e in prompts_of_set(name, inputs) if e.id in answers}
    return [by_id[prompt_id] for prompt_id in answers]


def unseen(prompts: list[Example], trained_ids: set[str], out: StageDir) -> list[Example]:
    """Return the prompts that nothing was trained on, and warn about the others."""
    untrained = [e for e in prompts if e.id not in trained_ids]
    if len(untrained) < len(prompts):
        out.warn(
            f"{len(prompts) - len(untrained)} test prompts do not count: they are also in the data or the pairs."
        )
    return untrained


def read_shared_answers(
    cfg: Eval, inputs: dict[str, Path], out: StageDir
) -> tuple[dict[str, Answers], int]:
    """Read by set the answers to prompts that every model answered. Raise UserError if a set has none left."""
    by_set, total = dict[str, Answers](), 0
    for name in (name for name in PROMPT_SOURCES if f"{name}_policy" in inputs):
        by_set[name], left_out = outcomes.read_answers(
            {role: inputs[f"{name}_{role}"] for role in cfg.models}
        )
        message = f"{left_out} prompts are too long for one of the models and do not count"
        if not by_set[name]["policy"]:
            raise UserError(f"{message}, so that no prompt is left. Lower answer.max_new_tokens.")
        if left_out:
            out.warn(f"{message}: all models are compared on the same prompts.")
        total += left_out
    return by_set, total
