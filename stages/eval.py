"""Stage `eval`: did it help? Pass rates of all models on the same held-out prompts, with intervals.

One primary endpoint, and the verdict from it alone: policy minus SFT, share of prompts that pass all checks on seen
tasks (held-out instances and unseen phrasings); where the data has open requests alone, on kinds of constraint that
nothing was trained on. Everything else has an interval and no verdict.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.config.blocks.evaluation import Eval
from stages.config.errors import UserError
from stages.evaluation import likelihood, retention
from stages.evaluation.outcomes import (
    GROUPS,
    LENGTH_DRIFT,
    SIDES,
    Answers,
    Table,
    consistency,
    differences,
    endings_clause,
    ends_less,
    matched,
    rates,
    read_answers,
    tabulate,
    verdict,
    with_intervals,
)
from stages.models.loading import device_of
from stages.store import safe_files
from stages.store.records import Example, Outcome, Pair, Records, save, stream
from stages.store.text_units import lower_words
from stages.store.workspace import Work
from stages.tasks.checks import share_passed

# The first that has prompts.
ENDPOINTS = ("seen tasks", "untrained kinds", "unseen tasks", "trained kinds", "validation kinds")
OUTSIDE = "outside: "
UNKNOWN_CONTEXT: dict[str, Any] = {"containing": {}, "constant": None}  # of prompts made without a reference


def run(cfg: Eval, inputs: dict[str, Path], out: Work) -> dict[str, Any]:
    """Publish `results.json`: the models in their order, their rates and differences by group, kind and task, and what
    puts them in proportion; and `outcomes.parquet`: of every answer to a prompt of ours whether it passes.

    Raises:
        UserError: where no prompt is left to tell by.
    """
    data = Records(inputs["data"] / "examples.parquet", Example)
    answers, left_out = answered_by_all(cfg, "answer", inputs, out)
    asked, known = {e.id: e for e in data if e.id in answers["sft"]}, trained_on(inputs)
    everything = tabulate(unknown([asked[prompt_id] for prompt_id in answers["sft"]], known, out), answers)
    ours = everything.group(*GROUPS)
    if not ours.prompts:
        split = asked[next(iter(answers["sft"]))].split
        raise UserError(
            f"of {len(answers['sft'])} {split} prompts none can say whether it helped: "
            f"{len(known & answers['sft'].keys())} are in the pairs as well, and any others are rephrased or plain. "
            f"Raise data.tasks.{split}, or name other data."
        )
    groups = ours.views()
    labelled, labelled_left_out = outside(cfg, known, inputs, out)
    groups |= {f"{OUTSIDE}{name}": table for name, table in labelled.items()}
    endpoint = next(name for name in ENDPOINTS if name in groups)
    primary = groups[endpoint]
    by_group = {name: rates(table, cfg) for name, table in groups.items()}
    for name, row in by_group.items():
        row |= UNKNOWN_CONTEXT if name.startswith(OUTSIDE) else context_rates(groups[name], answers, cfg)
    main = by_group[endpoint]
    sides = {side: ours.group(*names) for side, names in SIDES.items()}
    scored = sorted(ours.prompts, key=lambda e: e.id)[: cfg.likelihood_prompts]
    tokens, stopped = primary.mean(primary.tokens), primary.mean(primary.stopped)
    titles = cfg.models
    if abs(drift := tokens["policy"] / tokens["sft"] - 1) > LENGTH_DRIFT:
        word = f"{abs(drift):.0%} {'longer' if drift > 0 else 'shorter'}"
        out.warn(f"{titles['policy']}'s answers are {word} than {titles['sft']}'s: part of any change may be length.")
    if fewer := ends_less(groups, titles, cfg):
        out.warn(fewer)
    endings = endings_clause(primary, titles, cfg)
    results = {
        "models": titles,
        "differences": {name: f"{titles[a]} − {titles[b]}" for name, (a, b) in differences(titles).items()},
        "endpoint": endpoint,
        "primary": main,
        "groups": by_group,
        "kinds": divided(sides, "kind", cfg),
        "tasks": divided(sides, "task", cfg),
        "mean_tokens": tokens,
        "stop_rate": stopped,
        "matched": matched(primary, cfg),
        "rephrased": consistency(everything.group("rephrased")),
        "endings": endings,
        "verdict": verdict(main, titles, endings),
        **likelihood.score(cfg, inputs, scored, answers, out),
        "retention": retention.claims(cfg, inputs, everything, answers, out),
    }
    save(out / "outcomes.parquet", ours.outcomes(), Outcome)
    safe_files.write(out / "results.json", json.dumps(results, indent=1))
    return {
        "device": str(device_of(cfg.runtime.device)),
        "prompts_left_out": left_out + labelled_left_out,
        "pass_rate": {role: main[role]["mean"] for role in titles},
        "unseen_tasks": {role: by_group["unseen tasks"][role]["mean"] for role in titles if "unseen tasks" in groups},
        "delta": {name: main[name] for name in differences(titles)},
        "mean_tokens": tokens,
        "stop_rate": stopped,
        "kl": results["kl"],
        "references": results["references"],
        "verdict": results["verdict"],
        "summary": ", ".join(f"{title} {main[role]['mean']:.1%}" for role, title in titles.items())
        + f". {results['verdict']}",
    }


def divided(sides: dict[str, Table], field: str, cfg: Eval) -> dict[str, dict[str, Any]]:
    """By side, and there by kind or task: rates and differences."""
    return {
        side: {name: rates(part, cfg) for name, part in table.by(field).items()}
        for side, table in sides.items()
        if table.prompts
    }


def trained_on(inputs: dict[str, Path]) -> set[str]:
    """The prompts of preference pairs that came from a file: unlike our own they may be in the test."""
    return {*Records(inputs["pairs"] / "pairs.parquet", Pair).column("prompt_id")} if "pairs" in inputs else set()


def unknown(prompts: list[Example], known: set[str], out: Work) -> list[Example]:
    """Those that nothing was trained on."""
    fresh = [e for e in prompts if e.id not in known]
    if len(fresh) < len(prompts):
        out.warn(f"{len(prompts) - len(fresh)} test prompts are in the data or the pairs as well and do not count.")
    return fresh


def outside(cfg: Eval, known: set[str], inputs: dict[str, Path], out: Work) -> tuple[dict[str, Table], int]:
    """Labelled sets that are not ours, by file, and how many of their prompts not every model answered. A prompt that
    the data holds too, in any split, is left out."""
    if "outside" not in inputs:
        return {}, 0
    answers, left_out = answered_by_all(cfg, "answer_outside", inputs, out)
    prompts = [e for e in stream(inputs["outside"] / "examples.parquet", Example) if e.id in answers["sft"]]
    known = known.union(Records(inputs["data"] / "examples.parquet", Example).column("id"))
    return tabulate(unknown(prompts, known, out), answers).by("task"), left_out


def answered_by_all(cfg: Eval, name: str, inputs: dict[str, Path], out: Work) -> tuple[Answers, int]:
    """Return the answers to the prompts that every model answered, and how many prompts that leaves out, with a
    warning.

    Raises:
        UserError: where no prompt is left.
    """
    answers, left_out = read_answers({role: inputs[f"{name}_{role}"] for role in cfg.models})
    message = f"{left_out} prompts are too long for one of the models, so that they count for none"
    if not answers["sft"]:
        raise UserError(f"{message}; no prompt is left. Lower answer.max_new_tokens.")
    if left_out:
        out.warn(f"{message}: all models are compared on the same prompts.")
    return answers, left_out


def context_rates(table: Table, answers: Answers, cfg: Eval) -> dict[str, Any]:
    """Return what puts a pass rate in proportion: the rate of answers that hold the reference whatever their form, and
    what one constant answer per task would score."""
    return {"containing": containing(table, answers, cfg), "constant": constant(table.prompts)}


def containing(table: Table, answers: Answers, cfg: Eval) -> dict[str, Any]:
    """The share of answers that contain the reference's words in their order, whatever their case, their marks and
    what stands around them: by role, and paired differences, as of the strict rates; of the prompts that have a
    reference."""
    told = table.where(np.array([bool(e.reference) for e in table.prompts], bool))
    if not told.prompts:
        return {}
    held = [[holds(answers[role][e.id].text, e.reference or "") for role in told.roles] for e in told.prompts]
    return {"prompts": len(held), **with_intervals(told, np.array(held, float), cfg)}


def holds(answer: str, reference: str) -> bool:
    wanted, found = lower_words(reference), lower_words(answer)
    if not wanted:  # marks alone
        return reference.strip() in answer
    return any(found[i : i + len(wanted)] == wanted for i in range(len(found) - len(wanted) + 1))


def constant(prompts: Sequence[Example]) -> float | None:
    """The pass rate of one answer per task that looks at no prompt: the reference of one prompt that passes most of
    the task's others, chosen with hindsight. None where a prompt has no reference."""
    if not prompts or not all(e.reference for e in prompts):
        return None
    tasks: dict[str, list[Example]] = {}
    for e in prompts:
        tasks.setdefault(e.task, []).append(e)
    return sum(len(same) * carried_over(same) for same in tasks.values()) / len(prompts)


def carried_over(prompts: list[Example]) -> float:
    """Of one task's prompts, the share that the best of their references passes, but for the prompt it belongs to."""
    if len(prompts) == 1:
        return 0.0
    references = {e.reference or "" for e in prompts}
    passed = max(sum(share_passed(e.checks, text) == 1 for e in prompts) for text in references)
    return max(0, passed - 1) / (len(prompts) - 1)
