"""Stage `report`: one self-contained page on the result and its causes, and one page on the labels.

It reads only its input nodes, and escapes text that a model wrote. Empty sections are left out."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.config.schema import POLICY_STAGES, Report
from stages.evaluation import benchmarks, rounds, suite_results
from stages.evaluation.diagnosis.diagnose import diagnose
from stages.evaluation.diagnosis.evidence import gather_evidence
from stages.evaluation.outcomes import arms
from stages.pages import (
    charts,
    first_screen,
    glossary,
    label_page,
    plots,
    seeds,
    settings_table,
)
from stages.pages.environment import environment
from stages.pages.example_answers import changed_words, side_by_side, strips
from stages.pages.headline import Headline, next_steps, run_command
from stages.pages.settings_table import learns
from stages.store.manifest import Manifest, manifest_of
from stages.store.records import Candidate, Pair, load
from stages.store.sealed_json import load_json, require_keys
from stages.store.workspace import StageDir, read_curves

# in the evaluation's warnings about prompts that it left out
NOT_COUNTED = ("do not count", "count for none")
# differences shown after the verdict's own and those of arms
SHOWN = ("policy-control", "control-sft", "sft-base")
MOST_SHOWN = 4  # differences: more make a table that is wider than a page
LENGTHS = (0, 2, 4, 8, 16, 32, 64, 128, 256)  # bounds of the bars of answers' lengths, in tokens
# nodes with a reward model as labeler: in an ensemble, or alone
SCORED_BY = ("label_reward_model", "label")
# The section that shows a stage's warnings, folded. Warnings of the evaluation stand at the top of the page, because
# they change how the verdict is read.
WARNED_IN = {
    stage: section
    for section, stages in glossary.TEXTS["warned_in"].items()
    for stage in stages.split()
}


def run(cfg: Report, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish `report.html` and, for the labels of the last round, `labels.html`."""
    # the report's own seed comes first
    inputs = dict(sorted(inputs.items(), key=lambda item: "_seed_" in item[0]))
    nodes = {role: manifest_of(folder) for role, folder in inputs.items()}
    results = with_plain_title(load_json(inputs["eval"] / "results.json", require_keys("models")))
    models = results["models"]
    titles = results["differences"]
    confidence = nodes["eval"]["settings"]["confidence"]
    of_arms = [name for name in titles if arms(name.split("-"))]
    compared = [name for name in (results["main_difference"], *of_arms, *SHOWN) if name in titles][
        :MOST_SHOWN
    ]
    model_names = settings_table.model_nodes(nodes, models)
    policy = nodes[model_names["policy"]]
    aligned = "pairs" in policy["inputs"]
    pairs = load(inputs["pairs"] / "pairs.parquet", Pair) if aligned else []
    why = (
        diagnose(gather_evidence(inputs, nodes, results, pairs), models["policy"])
        if aligned
        else None
    )
    seed = policy["settings"]["seed"] if learns(policy) else None
    runs = seeds.read_runs(inputs, nodes, seed)
    trained = [run["seed"] for run in runs if run["seed"] is not None]
    over_seeds = seeds.summary(runs, inputs, confidence)
    taught = trained_on_tasks(nodes, models)
    headline = Headline(
        results,
        len(trained),
        taught,
        [run["learnt"] for run in runs],
        f"{100 * confidence:g}%",
        elsewhere="examine" in inputs,
    )
    answers = side_by_side(inputs, results, cfg.side_by_side)
    reward, lineage = reward_figures(nodes), lineage_rows(nodes)
    examined = (
        load_json(inputs["examine"] / "examination.json", require_keys("faults", "facts", "rows"))
        if "examine" in inputs
        else {}
    )
    faults = f"{examined['sentence']}. " if examined else ""
    examples = {"A training example": inputs["sft"] / "token_example.json"}
    for side in ("chosen", "rejected") if "reference" in inputs else ():
        examples[f"A pair of several turns, {side}"] = inputs["reference"] / f"{side}_example.json"
    settings = settings_table.settings(nodes, models, trained)
    learning = {
        models[role]: nodes[name] for role, name in model_names.items() if learns(nodes[name])
    }
    summaries = {title: manifest["metrics"]["summary"] for title, manifest in learning.items()}
    by_round = results.get("rounds")  # of several
    of_rounds = [rounds.sentence(by_round)] if by_round else []
    label, pairing, single = (
        nodes[n]["metrics"] if n in nodes else {} for n in ("label", "pairs", "unpaired")
    )
    env = environment()
    seconds = sum(node["seconds"] for node in lineage)
    longest = max(lineage, key=lambda node: node["seconds"])
    conclusions = {
        "examined": faults,
        "results": headline.checks(),
        "learnt": headline.learnt(),
        "judged": " ".join(map(headline.comparison, results["judged"].values())),
        "outside": headline.outside_sets(),
        "benchmarks": benchmarks.sentence(
            results.get("benchmarks", []), results["main_difference"], titles
        ),
        "retention": results["retention"].get("sentence"),
        "suites": suite_results.sentence(results["suites"], models) if "suites" in results else "",
        "seeds": over_seeds and over_seeds["sentence"],
        "kinds": results["kinds"] and charts.conclusion(results),
        "proportion": headline.behaviour(),
        "answers": answers and f"{'; '.join(answers)}.",
        "why": why and why.sentence,
        "labels": label and f"{label['summary']}. {(pairing or single)['summary']}.",
        "curves": " ".join(
            [*of_rounds, *(f"{title}: {summary}." for title, summary in summaries.items())]
        ),
        "reward": reward
        and f"{reward.get('trained', {}).get('summary', 'It labelled the candidates')}.",
        "settings": f"{settings['model']}; {settings['computed on']}.",
        "lineage": f"{env.filters['duration'](seconds)} of work in {len(lineage)} nodes; the longest was "
        f"{longest['role'].replace('_', ' ')}, {env.filters['duration'](longest['seconds'])}.",
        "words": "Each model, and SFT, DPO, held out, interval, KL and others, in a sentence each.",
    }
    contents = glossary.contents(
        conclusions, results["gives_verdict"], helped=not why or why.helped
    )
    roles = {
        role: glossary.ROLES[model_kind(role, nodes[name])] for role, name in model_names.items()
    }
    sentence = faults + first_screen.sentence(results, nodes, taught)
    html = env.get_template("page.html.jinja").render(
        sentence=sentence,
        rates=first_screen.rates(results, taught),
        in_any_form=first_screen.rates_in_any_form(results, taught),
        lamps=first_screen.lamps(results, nodes, taught, run_command(nodes["eval"])),
        example=first_screen.example(answers),
        changed_words=changed_words,
        chain=first_screen.chain(nodes),
        facts=first_screen.facts(results, nodes, seconds, why),
        own_file=first_screen.next_for_files(nodes),
        lengths=lengths(inputs, models),
        scores=scores(label),
        models=models,
        results=results,
        primary=titles[results["main_difference"]],
        subject=settings_table.subject(nodes, models),
        headline=headline,
        contents=contents,
        steps=next_steps(results, nodes["eval"], trained, why),
        warnings=warnings(nodes, [*contents]),
        roles=roles,
        glossary=glossary.GLOSSARY,
        settings=settings,
        level=f"{100 * confidence:g}% interval",
        differences={name: titles[name] for name in compared},
        runs=runs,
        over_seeds=over_seeds,
        charts={by: charts.chart(results, by, taught) for by in ("kinds", "tasks") if results[by]},
        rounds=rounds.table_rows(nodes, by_round) if by_round else [],
        curves=curves(inputs, nodes, {models[role]: name for role, name in model_names.items()}),
        answers=answers,
        samples=strips(inputs, nodes, models),
        token_examples={
            title: load_json(path, list) for title, path in examples.items() if path.exists()
        },
        replaced=nodes["sft"]["metrics"].get("template"),
        examined=examined,
        pairs=pairing,
        pair=pairs[0] if pairs else None,
        reward=reward,
        why=why,
        lineage=lineage,
        origin=nodes["eval"],
    )
    (out / "report.html").write_text(html, encoding="utf-8")
    if label:
        (out / label_page.PAGE).write_text(label_page.page(inputs["label"]), encoding="utf-8")
    return {
        "verdict": results["verdict"],
        "sentence": sentence,
        "bytes": len(html.encode()),
        "summary": faults + results["verdict"],
    }


def with_plain_title(results: dict[str, Any]) -> dict[str, Any]:
    """Return the results with a title for the control that says what it is."""
    titles = {
        part: {
            key: each.replace("Control", first_screen.CONTROL)
            for key, each in results[part].items()
        }
        for part in ("models", "differences")
    }
    return results | titles


def warnings(
    nodes: Mapping[str, Manifest], sections: list[str]
) -> dict[str, list[tuple[str, str]]]:
    """Group (node, warning) by the section that shows them; '' is the top of the page."""
    by_section = defaultdict[str, list[tuple[str, str]]](list)
    for name, manifest in nodes.items():
        section = (
            "judged" if name.startswith("judged_") else WARNED_IN.get(manifest["stage"], "lineage")
        )
        for warning in manifest["warnings"]:
            if name == "eval":
                section = "answers" if any(words in warning for words in NOT_COUNTED) else ""
            by_section[section if section in ("", *sections) else "lineage"].append((name, warning))
    return by_section


def model_kind(role: str, model: Manifest) -> str:
    """Return the role that describes a model: a policy may be SFT itself, and an SFT an untrained model."""
    if model["stage"] in POLICY_STAGES and role != "control_pairs":
        return str(model["stage"])
    return (
        role
        if role == "control" or model["stage"] != "sft"
        else "sft"
        if learns(model)
        else "other"
    )


def curves(
    inputs: Mapping[str, Path], nodes: Mapping[str, Manifest], models: Mapping[str, str]
) -> list[plots.LineChart]:
    """Return the charts of the training of SFT, the policy and arms. `models`: nodes by title."""
    drawn = plots.training("sft", "SFT", read_curves(inputs["sft"]))
    for title, name in models.items():
        if (stage := nodes[name]["stage"]) in POLICY_STAGES:
            drawn += plots.training(stage, title, read_curves(inputs[name]))
    return drawn


def lengths(inputs: Mapping[str, Path], models: Mapping[str, str]) -> dict[str, list[plots.Bar]]:
    """Return for each evaluated model, by role, the bars of how many answers have how many tokens."""
    return {
        role: plots.histogram(
            [a.length for a in load(inputs[f"answer_{role}"] / "answers.parquet", Candidate)],
            LENGTHS,
        )
        for role in models
        if f"answer_{role}" in inputs
    }


def scores(label: Mapping[str, Any]) -> list[plots.Bar]:
    """Return the bars of how many candidates have which score."""
    counts = label.get("scores") or {}
    return plots.bars([*counts], [*counts.values()])


def trained_on_tasks(nodes: dict[str, Manifest], models: Mapping[str, str]) -> str:
    """Return the model trained on tasks like the test's: `it` (the policy), SFT's title, or `nothing here`."""
    tasks = nodes["data"]["config"].get("tasks") or {}
    by_grpo = any(node["stage"] == "grpo" for node in nodes.values())
    judged = (
        nodes["label"]["inputs"].get("pool", {}).get("fingerprint") if "label" in nodes else None
    )
    of_data = any(m["fingerprint"] == judged and "data" in m["roots"] for m in nodes.values())
    if (of_data or by_grpo) and (tasks.get("preference") or tasks.get("open_preference")):
        return "it"
    trained = learns(nodes["sft"]) and (tasks.get("sft") or tasks.get("open_sft"))
    return models.get("sft", "it") if trained else "nothing here"


def reward_figures(nodes: Mapping[str, Manifest]) -> dict[str, Any]:
    """Return the figures of the reward model. `trained`: those on held-out pairs, if this run trained it. `scored`:
    the checks passed by the best of n by score, if it labelled prompts with checks."""
    metrics = {name: nodes[name]["metrics"] for name in ("reward", *SCORED_BY) if name in nodes}
    scored = [
        each
        for each in metrics.values()
        if each.get("labeler") == "reward_model" and "best_of" in each
    ]
    figures = {"scored": scored[0]} if scored else {}
    return figures | (
        {"trained": metrics["reward"]} if "accuracy" in metrics.get("reward", {}) else {}
    )


def lineage_rows(nodes: dict[str, Manifest]) -> list[dict[str, Any]]:
    """Return the rows of the lineage table; a node that several seeds share occurs once."""
    names = {manifest["fingerprint"]: name for name, manifest in reversed(nodes.items())}
    return [
        {
            "role": name,
            "stage": node["stage"],
            "fingerprint": fingerprint,
            "inputs": [
                f"{role}: {each['stage']} {each['fingerprint']}"
                for role, each in node["inputs"].items()
            ],
            "seconds": node["wall_seconds"],
            "memory": node.get("peak_gpu_memory") or node["peak_memory"],
            "tokens": node["metrics"].get("tokens"),
            "command": f"{node['command']} rebuild={node['stage']}",
            "summary": node["metrics"]["summary"],
        }
        for fingerprint, name in reversed(names.items())
        for node in [nodes[name]]
    ]
