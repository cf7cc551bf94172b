"""The bake-off: every objective from the same SFT, each tuned as often.

`python -m tests.bench.bakeoff [OUTPUTS] [jobs=2] [only="dpo kto:1e-5"] [KEY=VALUE …]`, with `'seeds=[1,2]'` for three
seeds. `only` names some arms; one whose rate it gives is not tuned.

Each of ARMS is trained at three learning rates with the run's seed, and answers validation prompts. With the rate that
passes most of them it is trained with every seed, and answers the test prompts. `jobs` processes train at once. An arm
that fails is said, and left out. Tells pass rates by group and seed, differences from SFT (with a second interval, for
as many comparisons as there are arms), tokens, endings, loops, KL, operations and seconds.
"""

import json
import logging
import math
import multiprocessing
from collections import defaultdict
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stages.config.blocks.training import OBJECTIVES
from stages.config.schema import Config
from stages.curation.answer_rules import is_repetitive
from stages.evaluation.intervals import Means
from stages.evaluation.outcomes import Outcome, average_runs, read_answers, tabulate
from stages.hardware import process
from stages.pipeline.build import build
from stages.store.manifest import Manifest
from stages.store.node import Node
from stages.store.records import Example, load
from stages.store.store import Store
from tests.bench import chains
from tests.helpers import composed, settings_by_key

FORWARD = 2  # operations per parameter and token
BACKWARD = 4
ADAPTER_BACKWARD = 2
SETTINGS = ["recipe=bakeoff", "tracker=none", "arms=[]", "control=false", "control_pairs=null"]
SETTINGS += [
    "answer.max_new_tokens=128",
    "data.tasks.validation=560",
    "data.tasks.open_validation=140",
]
SETTINGS += ["data.tasks.rephrased=0", "data.tasks.open_test=240", "data.tasks.open_plain=200"]
VIEWS = {
    "trained tasks": ("seen", "unseen_phrasings"),
    "open requests": ("open_test",),
    "new tasks": ("unseen_tasks",),
}


@dataclass(frozen=True)
class Arm:
    """An objective: its title, the key and values of its learning rate, the name of its model's node, and overrides."""

    title: str
    key: str
    rates: tuple[float, float, float]
    node: str = "dpo"
    overrides: tuple[str, ...] = ()

    def settings(self, rate: float) -> list[str]:
        return [*self.overrides, f"{self.key}={rate}"]


PAIR_RATES = (2.5e-5, 5e-5, 1e-4)
ARMS = {  # those that take longest come first
    "grpo": Arm("GRPO", "grpo.learning_rate", (1e-5, 2e-5, 4e-5), "grpo", ("align=grpo",)),
    "rounds": Arm(
        "DPO in four rounds",
        "dpo.learning_rate",
        PAIR_RATES,
        "dpo",
        ("rounds=4", "sample.prompts_per_round=400"),
    ),
    "kto": Arm("KTO", "kto.learning_rate", (2e-6, 5e-6, 1e-5), "kto", ("align=kto",)),
    "dpo": Arm("DPO", "dpo.learning_rate", PAIR_RATES),
    "random": Arm(
        "DPO on pairs at random",
        "dpo.learning_rate",
        PAIR_RATES,
        "control_pairs",
        ("control_pairs=random",),
    ),
    "control": Arm("control", "control_learning_rate", PAIR_RATES, "control", ("control=true",)),
}


def undeclared_differences(name: str, *overrides: str) -> set[str]:
    """Return the keys in which an arm's composed settings differ from DPO's, less those that the arm states."""
    arm, settings = ARMS[name], [*SETTINGS, *overrides]
    plain = settings_by_key(composed(*settings, *ARMS["dpo"].settings(PAIR_RATES[0])))
    own = settings_by_key(composed(*settings, *arm.settings(arm.rates[0])))
    stated = {override.partition("=")[0] for override in arm.settings(0.0)}
    rate = ARMS["dpo"].key
    differing = {key for key in plain.keys() | own.keys() if plain.get(key) != own.get(key)}
    return differing - stated - {rate}


@dataclass(frozen=True)
class Run:
    """A chain in a store with one of the command's seeds."""

    outputs: Path
    overrides: tuple[str, ...]
    seed: int | None = None  # None: the run's own

    def prepared(self, *more: str) -> tuple[Config, Store, dict[str, Node], list[str]]:
        words = [
            *SETTINGS,
            *self.overrides,
            *more,
            *([] if self.seed is None else [f"seeds=[{self.seed}]"]),
        ]
        cfg, store, nodes = chains.prepared(self.outputs, words)
        end = "" if self.seed is None else f"_seed_{self.seed}"
        shared = {name: node for name, node in nodes.items() if "_seed_" not in name}
        own = {
            name.removesuffix(end): node
            for name, node in nodes.items()
            if end and name.endswith(end)
        }
        return cfg, store, shared | own, words


def main(outputs: Path, words: list[str]) -> None:
    own = {"jobs": "2", "only": " ".join(ARMS)}
    own |= dict(word.split("=", 1) for word in words if word.startswith(("jobs=", "only=")))
    overrides = [word for word in words if not word.startswith(("jobs=", "only="))]
    seeds = chains.prepared(outputs, [*SETTINGS, *overrides])[0].seeds
    runs = [Run(outputs, (*overrides, "seeds=[]"), seed) for seed in (None, *seeds)]
    chosen_arms = [each.partition(":") for each in own["only"].split()]
    for name, _, _ in chosen_arms:
        if keys := undeclared_differences(name, *overrides):
            raise SystemExit(f"{name} differs from DPO in more than it states: {', '.join(keys)}")
    rates = {name: (float(rate),) if rate else ARMS[name].rates for name, _, rate in chosen_arms}
    with ProcessPoolExecutor(
        int(own["jobs"]), multiprocessing.get_context("spawn"), process.prepare
    ) as pool:
        started = [pool.submit(start, run) for run in runs]
        tuned = defaultdict[str, dict[float, float]](dict)
        for future in started:
            future.result()
        waiting = {
            pool.submit(tune, runs[0], name, rate): (name, rate)
            for name in rates
            for rate in rates[name]
        }
        trained, chosen = list[Future[Any]](), dict[str, float]()
        for future in as_completed(waiting):
            name, rate = waiting[future]
            if (passed := result(future, f"{name} at {rate}")) is None:
                continue
            tuned[name][rate] = passed
            logging.info("%s at %g passes %.1f%% of validation prompts", name, rate, 100 * passed)
            if len(tuned[name]) == len(rates[name]):
                # of equal ones the lowest
                chosen[name] = max(rates[name], key=tuned[name].__getitem__)
                trained += [pool.submit(answered, run, name, chosen[name]) for run in runs]
        for future in trained:
            result(future, "a model")
        tell(runs, chosen)
        evaluated = [pool.submit(evaluate, run, chosen) for run in runs]
        results = [each for future in evaluated if (each := result(future, "an evaluation"))]
        for name in chosen:
            of_seeds = [f"{kl[name]:.3f}" for kl in results if name in kl]
            logging.info("%s: KL from SFT in nats a token, by seed: %s", name, of_seeds)


def result(future: Future[Any], title: str) -> Any:
    """Return what a process computed; None if it failed, with its reason told."""
    if (error := future.exception()) is None:
        return future.result()
    logging.error("%s: %s", title, error)
    return None


def start(run: Run) -> None:
    """Build what the arms share: SFT and its answers."""
    cfg, store, nodes, words = run.prepared()
    first = [nodes["answer_base"]] if run.seed is None else []
    build([nodes["answer_sft"], *first], store, cfg, words)


def tune(run: Run, name: str, rate: float) -> float:
    """Return the share of validation prompts that an arm passes at a learning rate."""
    arm = ARMS[name]
    cfg, store, nodes, words = run.prepared(*arm.settings(rate), "answer.split=validation")
    answer = answer_of(nodes, arm)
    build([answer], store, cfg, words)
    return passes(store, nodes["data"], answer)


def passes(store: Store, data: Node, answer: Node) -> float:
    answers, _ = read_answers({"model": store.folder(answer)})
    examples = load(store.folder(data) / "examples.parquet", Example)
    prompts = [e for e in examples if e.id in answers["model"] and e.checks]
    return float(tabulate(prompts, answers).passed.mean())


def answer_of(nodes: dict[str, Node], arm: Arm) -> Node:
    """Return the node of an arm's answers."""
    template = nodes["answer_sft"]
    return replace(template, inputs={**template.inputs, "model": nodes[arm.node]})


def answered(run: Run, name: str, rate: float) -> None:
    """Build an arm's answers to the test prompts."""
    cfg, store, nodes, words = run.prepared(*ARMS[name].settings(rate))
    build([answer_of(nodes, ARMS[name])], store, cfg, words)


def models_of(
    run: Run, chosen: dict[str, float]
) -> tuple[Store, dict[str, Node], dict[str, dict[str, Node]]]:
    """Return the store, the nodes of the run without an arm, and by arm whose answers are there, its graph."""
    _, store, nodes, _ = run.prepared()
    graphs = {name: run.prepared(*ARMS[name].settings(rate))[2] for name, rate in chosen.items()}
    return (
        store,
        nodes,
        {name: g for name, g in graphs.items() if store.find(answer_of(g, ARMS[name]))},
    )


def tell(runs: list[Run], chosen: dict[str, float]) -> None:
    """Tell pass rates and differences from SFT, of each prompt's outcomes averaged over seeds, and each arm's cost."""
    outcomes, examples = list[list[Outcome]](), dict[str, Example]()
    cost, loops = (
        defaultdict[str, list[tuple[float, float]]](list),
        defaultdict[str, list[float]](list),
    )
    for run in runs:
        store, nodes, graphs = models_of(run, chosen)
        answers = {"base": nodes["answer_base"], "sft": nodes["answer_sft"]}
        answers |= {name: answer_of(graph, ARMS[name]) for name, graph in graphs.items()}
        by_role, _ = read_answers({role: store.folder(node) for role, node in answers.items()})
        examples = {
            e.id: e for e in load(store.folder(nodes["data"]) / "examples.parquet", Example)
        }
        prompts = [examples[i] for i in by_role["sft"] if examples[i].checks]
        outcomes.append(tabulate(prompts, by_role).outcomes())
        plain = [i for i in by_role["sft"] if examples[i].group == "open_plain"]
        for role, by_id in by_role.items():
            loops[role].append(
                sum(is_repetitive(by_id[i].text) for i in plain) / max(1, len(plain))
            )
        for name, graph in graphs.items():
            cost[name].append(cost_of(store, graph[ARMS[name].node], nodes["sft"]))
    roles = [
        role
        for role in ("base", "sft", *chosen)
        if all(any(o.role == role for o in run) for run in outcomes)
    ]
    for view, groups in VIEWS.items():
        rows = [
            [o for o in run if o.role in roles and examples[o.prompt_id].group in groups]
            for run in outcomes
        ]
        if rows[0]:
            tell_view(view, roles, rows, examples)
    for role, shares in loops.items():
        logging.info(
            "%s: loops in plain open requests, by seed: %s",
            role,
            [f"{share:.1%}" for share in shares],
        )
    for name, of in cost.items():
        logging.info("%s at %g: operations, seconds by seed: %s", name, chosen[name], of)


def tell_view(
    view: str, roles: list[str], outcomes: list[list[Outcome]], examples: dict[str, Example]
) -> None:
    table = average_runs(outcomes, examples)
    means = Means(table.passed, [e.task for e in table.prompts])
    logging.info("%s: %d prompts", view, len(table.prompts))
    for column, role in enumerate(table.roles):
        rates = ", ".join(
            f"{100 * sum(o.passed for o in run if o.role == role) / len(table.prompts):.1f}"
            for run in outcomes
        )
        delta, sft = "", table.roles.index("sft")
        if role != "sft":
            corrected = means.difference(column, sft, 1 - 0.05 / (len(roles) - 2))
            delta = f"{means.difference(column, sft).points()}, corrected {corrected.bounds()}"
        share = f"{100 * table.passed[:, column].mean():.1f}% ({rates})"
        form = f"{table.tokens[:, column].mean():.1f} tokens, {100 * table.stopped[:, column].mean():.1f}% end"
        logging.info("    %-13s %s  %s  %s", role, share, delta, form)


def training_flops(manifests: list[Manifest]) -> float:
    """Return the operations of the trainings, samples and stored log-probs among the nodes that a model came from.

    A token costs 2 operations per parameter forward and 4 backward (Kaplan et al. 2020, arXiv:2001.08361, section
    2.1), or 2 backward where only adapters are trained. GRPO also samples the completions that it trains on. Attention
    over earlier tokens, labels by models, and endpoints are not counted. The result is nan if a base is deleted."""
    parameters = dict[str, float]()
    for m in manifests:
        if m["stage"] == "base":
            parameters[m["fingerprint"]] = float(m["metrics"]["parameters"])
    total = 0.0
    for m in manifests:
        per_token = operations(m)
        if per_token:
            tokens = m["metrics"]["tokens"] + m["metrics"].get("prompt_tokens", 0)
            total += per_token * tokens * parameters.get(m["roots"].get("base", ""), math.nan)
    return total


def operations(m: Manifest) -> int:
    """Return the operations per parameter and token of a node; 0 if it runs no model here."""
    stage = m["stage"]
    if "tokens" not in m["metrics"] or m["settings"].get("sampler") == "openai":
        return 0
    if stage in ("sample", "reference"):
        return FORWARD
    if stage not in OBJECTIVES:
        return 0
    trains_all = m["settings"].get("adapter", "none") == "none"
    backward = BACKWARD if trains_all else ADAPTER_BACKWARD
    if stage == "kto":  # half of its tokens are of mismatched completions, which are only read
        backward //= 2
    if stage == "grpo":
        return 2 * FORWARD + backward
    return FORWARD + backward


def cost_of(store: Store, model: Node, sft: Node) -> tuple[float, float]:
    """Return the operations and seconds of a model's nodes after SFT: what it sampled, scored and trained on."""
    before = {node.fingerprint for node in sft.lineage if node.stage != "base"}
    manifests = list[Manifest]()
    for node in (each for each in model.lineage if each.fingerprint not in before):
        manifest = store.find(node)
        assert manifest is not None
        manifests.append(manifest)
    seconds = sum(m["wall_seconds"] for m in manifests if m["stage"] != "base")
    return training_flops(manifests), seconds


def evaluate(run: Run, chosen: dict[str, float]) -> dict[str, float]:
    """Return each arm's KL from SFT in nats a token, from one evaluation in which one of them is the policy."""
    store, _, graphs = models_of(run, chosen)
    lead = next(
        name for name in ("dpo", *graphs) if name in graphs and ARMS[name].node in OBJECTIVES
    )
    cfg, _, nodes, words = run.prepared(*ARMS[lead].settings(chosen[lead]))
    models = {"base": "Base", "sft": "SFT", "policy": ARMS[lead].title}
    inputs = dict(nodes["eval"].inputs)
    for name, graph in graphs.items():
        if name != lead:
            models[name], inputs[name] = ARMS[name].title, graph[ARMS[name].node]
            inputs[f"answer_{name}"] = answer_of(graph, ARMS[name])
    node = replace(
        nodes["eval"], config=replace(nodes["eval"].config, models=models), inputs=inputs
    )
    build([node], store, cfg, words)
    kl = json.loads((store.folder(node) / "results.json").read_text())["kl"]
    return {name: kl["policy" if name == lead else name]["per_token"] for name in graphs}


if __name__ == "__main__":
    chains.run(main)
