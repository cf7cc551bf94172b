"""Stage `eval`: did it help? Pass rates of all models on the same held-out prompts, with intervals.

One primary endpoint, and the verdict from it alone: policy minus SFT, share of prompts that pass all checks on seen
tasks (held-out instances and unseen phrasings); where the data has open requests alone, on kinds of constraint that
nothing was trained on. Everything else has an interval and no verdict.
"""

import json
from pathlib import Path
from typing import Any

from stages.config.blocks.evaluation import Eval
from stages.config.errors import UserError
from stages.evaluation import context_rates, likelihood, retention
from stages.evaluation.endings import endings_clause
from stages.evaluation.outcomes import (
    GROUPS,
    LENGTH_DRIFT,
    SIDES,
    Answers,
    Table,
    consistency,
    differences,
    ends_less,
    matched,
    rates,
    read_answers,
    tabulate,
    verdict,
)
from stages.models.loading import device_of
from stages.store import atomic_write
from stages.store.records import Example, Outcome, Pair, Records, save, stream
from stages.store.workspace import Work

# The first that has prompts.
ENDPOINTS = ("seen tasks", "untrained kinds", "unseen tasks", "trained kinds", "validation kinds")
OUTSIDE = "outside: "


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
        row |= context_rates.UNKNOWN if name.startswith(OUTSIDE) else context_rates.of(groups[name], answers, cfg)
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
    atomic_write.write(out / "results.json", json.dumps(results, indent=1))
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
