"""Stage `eval`: did it help? Pass rates of base, SFT and DPO on the same held-out prompts, with intervals.

One primary endpoint, and the verdict from it alone: DPO minus SFT, share of prompts that pass all checks on seen
tasks (held-out instances and unseen phrasings). Everything else has an interval and no verdict.
"""

import json
from pathlib import Path
from typing import Any

from stages.config.schema import Eval
from stages.evaluation import likelihood
from stages.evaluation.outcomes import (
    DIFFERENCES,
    GROUPS,
    LENGTH_DRIFT,
    MODELS,
    Table,
    compare,
    consistency,
    matched,
    read_answers,
    tabulate,
    verdict,
)
from stages.models.loading import device_of
from stages.store.records import Example, Pair, load
from stages.store.work import Work


def run(cfg: Eval, inputs: dict[str, Path], out: Work) -> dict[str, Any]:
    """Publish `results.json`: rates and differences by group, kind and task, and what puts them in proportion."""
    examples = {e.id: e for e in load(inputs["data"] / "examples.parquet", Example)}
    answers = read_answers({m: inputs[m] for m in MODELS})
    known = trained_on(inputs)
    everything = tabulate(unknown([examples[prompt_id] for prompt_id in answers["base"]], known, out), answers)
    ours = everything.group(*GROUPS)
    seen, unseen = ours.group("seen", "unseen_phrasings"), ours.group("unseen_tasks")
    endpoint, primary = ("seen tasks", seen) if seen.prompts else ("unseen tasks", unseen)
    groups = {
        "seen tasks": seen,
        "unseen phrasings": ours.group("unseen_phrasings"),
        "unseen tasks": unseen,
        **{f"outside: {name}": table for name, table in outside({*examples, *known}, inputs, out).items()},
    }
    by_group = {name: compare(table, cfg) for name, table in groups.items() if table.prompts}
    main = by_group[endpoint]
    scored = sorted(ours.prompts, key=lambda e: e.id)[: cfg.likelihood_prompts]
    tokens, stopped = (
        dict(zip(MODELS, map(float, a.mean(0)), strict=True)) for a in (primary.tokens, primary.stopped)
    )
    if abs(drift := tokens["dpo"] / tokens["sft"] - 1) > LENGTH_DRIFT:
        word = "longer" if drift > 0 else "shorter"
        out.warn(f"DPO's answers are {abs(drift):.0%} {word} than SFT's: part of any change may be length.")
    results = {
        "primary": main,
        "groups": by_group,
        "kinds": {name: compare(table, cfg) for name, table in ours.by("kind").items()},
        "tasks": {name: compare(table, cfg) for name, table in ours.by("task").items()},
        "mean_tokens": tokens,
        "stop_rate": stopped,
        "matched": matched(primary, cfg),
        "rephrased": consistency(everything.group("rephrased")),
        "verdict": verdict(main),
        **likelihood.score(cfg, inputs, scored, answers["dpo"]),
    }
    (out / "results.json").write_text(json.dumps(results, indent=1))
    return {
        "device": str(device_of(cfg.runtime.device)),
        "pass_rate": {m: main[m]["mean"] for m in MODELS},
        "unseen_tasks": {m: by_group["unseen tasks"][m]["mean"] for m in MODELS} if unseen.prompts else {},
        "delta": {f"{a}-{b}": main[f"{a}-{b}"] for a, b in DIFFERENCES},
        "mean_tokens": tokens,
        "stop_rate": stopped,
        "kl": results["kl"],
        "references": results["references"],
        "verdict": results["verdict"],
        "summary": f"base {main['base']['mean']:.1%}, SFT {main['sft']['mean']:.1%}, "
        f"DPO {main['dpo']['mean']:.1%}. {results['verdict']}",
    }


def trained_on(inputs: dict[str, Path]) -> set[str]:
    """The prompts of preference pairs that came from a file: unlike our own they may be in the test."""
    return {p.prompt_id for p in load(inputs["pairs"] / "pairs.parquet", Pair)} if "pairs" in inputs else set()


def unknown(prompts: list[Example], known: set[str], out: Work) -> list[Example]:
    """Those that nothing was trained on."""
    fresh = [e for e in prompts if e.id not in known]
    if len(fresh) < len(prompts):
        out.warn(f"{len(prompts) - len(fresh)} test prompts are in the data or the pairs as well and do not count.")
    return fresh


def outside(known: set[str], inputs: dict[str, Path], out: Work) -> dict[str, Table]:
    """Labelled sets that are not ours, by file. A prompt that the data holds too, in any split, is left out."""
    if "outside" not in inputs:
        return {}
    prompts = [e for e in load(inputs["outside"] / "examples.parquet", Example) if e.checks]
    answers = read_answers({m: inputs[f"outside_{m}"] for m in MODELS})
    return tabulate(unknown(prompts, known, out), answers).by("task")
