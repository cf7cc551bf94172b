"""Stage `report`: one self-contained page that says whether it helped, and how it came about, and one of its labels.

It reads the nodes it is given and nothing else; text that a model wrote is escaped. A section that has nothing to say
is not there.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from stages.config.schema import Report
from stages.evaluation.diagnosis.diagnose import diagnose
from stages.evaluation.diagnosis.evidence import gather
from stages.pages import changes, figures, glossary, label_page, next_steps, seeds, settings_table
from stages.pages.environment import duration, environment
from stages.pages.example_answers import side_by_side, strips
from stages.pages.headline import OUTSIDE, Headline
from stages.store.manifest import Manifest, manifest_of
from stages.store.records import Pair, load
from stages.store.sealed_json import having, load_json
from stages.store.workspace import Work, read_curves

SHOWN = ("policy-control", "sft-base")  # differences, after the one that the verdict is of
SCORED_BY = ("label_reward_model", "label")  # whose labeler a reward model may be: in an ensemble, or alone
# The section that a stage's warnings are folded in; those of the evaluation change how the verdict is read, and stand
# above all.
WARNED_IN = {"base": "settings", "source": "settings", "data": "settings", "sft": "curves", "dpo": "curves"}
WARNED_IN |= dict.fromkeys(("select", "sample", "pool", "label", "pairs", "unpaired", "reference"), "labels")
WARNED_IN |= {"reward": "reward", "answer": "answers", "versus": "judged", "eval": "seeds"}


def run(cfg: Report, inputs: dict[str, Path], out: Work) -> dict[str, Any]:
    """Publish `report.html` and, of the last round's labels, `labels.html`."""
    inputs = dict(sorted(inputs.items(), key=lambda item: "_seed_" in item[0]))  # this seed's first
    nodes = {role: manifest_of(folder) for role, folder in inputs.items()}
    results = load_json(inputs["eval"] / "results.json", having("models"))
    models, confidence = results["models"], nodes["eval"]["settings"]["confidence"]
    made = settings_table.model_nodes(nodes, models)
    policy = nodes[made["policy"]]
    aligned = "pairs" in policy["inputs"]
    pairs = load(inputs["pairs"] / "pairs.parquet", Pair) if aligned else []
    why = diagnose(gather(inputs, nodes, results, pairs), models["policy"]) if aligned else None
    seed = policy["settings"]["seed"] if policy["settings"].get("train", True) else None
    runs = seeds.runs(inputs, nodes, seed)
    trained = [run["seed"] for run in runs if run["seed"] is not None]
    over_seeds = seeds.summary(runs, inputs, confidence)
    taught = trained_on_tasks(nodes, models)
    headline = Headline(results, len(trained), taught, [run["learnt"] for run in runs])
    answers = side_by_side(inputs, results, cfg.side_by_side)
    reward, lineage = of_reward(nodes), rows(nodes)
    told = settings_table.settings(nodes, policy, models["policy"], trained)
    summaries = {models[role]: nodes[name]["metrics"]["summary"] for role, name in made.items() if role != "base"}
    label, pairing = (nodes[name]["metrics"] if name in nodes else {} for name in ("label", "pairs"))
    seconds, longest = sum(node["seconds"] for node in lineage), max(lineage, key=lambda node: node["seconds"])
    conclusions = {
        "results": headline.checks,
        "learnt": headline.learnt,
        "judged": headline.judged,
        "outside": headline.outside,
        "control": headline.control,
        "retention": results["retention"].get("sentence"),
        "seeds": over_seeds and f"On {results['endpoint']}, in points: {seeds.each(runs)}.",
        "kinds": results["kinds"] and f"{changes.conclusion(results)} {changes.single(results)}",
        "proportion": headline.behaviour,
        "answers": answers and f"{'; '.join(answers)}.",
        "why": why and why.sentence,
        "labels": label and f"{label['summary']}. {pairing['summary']}.",
        "curves": " ".join(f"{title}: {summary}." for title, summary in summaries.items()),
        "reward": reward and f"{reward.get('trained', {}).get('summary', 'It labelled the candidates')}.",
        "settings": f"{told['model']}; {told['precision']}; {told['computed on']}.",
        "lineage": f"{duration(seconds)} of work in {len(lineage)} nodes; the longest was "
        f"{longest['role'].replace('_', ' ')}, {duration(longest['seconds'])}.",
        "words": "What each model is; SFT, DPO, held out, interval, KL and others, in a sentence each.",
    }
    contents = glossary.contents(conclusions, results["gives_verdict"], next_steps.helped(results))
    html = (
        environment()
        .get_template("page.html.jinja")
        .render(
            models=models,
            results=results,
            primary=results["differences"][results["main_difference"]],
            subject=settings_table.subject(nodes, models),
            headline=headline,
            conclusions=conclusions,
            contents=contents,
            details=glossary.DETAILS,
            steps=next_steps.next_steps(results, nodes["eval"], trained, why, pairing.get("pairs", 0)),
            versus=next_steps.run_again(nodes["eval"], "stage=versus"),
            warnings=warnings(nodes, [*contents]),
            roles=roles(nodes, made),
            glossary=glossary.GLOSSARY,
            settings=told,
            level=f"{confidence:.0%} interval",
            differences={
                name: results["differences"][name]
                for name in (results["main_difference"], *SHOWN)
                if name in results["differences"]
            },
            outside=OUTSIDE,
            constant=any(group["constant"] is not None for group in results["groups"].values()),
            runs=runs,
            over_seeds=over_seeds,
            charts={by: changes.chart(results, by, taught) for by in ("kinds", "tasks") if results[by]},
            curves=curves(inputs, models["policy"], inputs[made["policy"]] if aligned else None),
            answers=answers,
            samples=strips(inputs, nodes, models),
            tokens=token_example(inputs),
            label=label,
            pairs=pairing,
            pair=pairs[0] if pairs else None,
            reward=reward,
            why=why,
            lineage=lineage,
            longest=longest,
            origin=nodes["eval"],
        )
    )
    (out / "report.html").write_text(html, encoding="utf-8")
    if label:
        (out / label_page.PAGE).write_text(label_page.page(inputs["label"]), encoding="utf-8")
    return {"verdict": results["verdict"], "bytes": len(html.encode()), "summary": results["verdict"]}


def warnings(nodes: Mapping[str, Manifest], sections: list[str]) -> dict[str, list[tuple[str, str]]]:
    """Nodes and their warnings, by the section that has them; under '' those that change how the verdict is read."""
    found = defaultdict[str, list[tuple[str, str]]](list)
    for name, manifest in nodes.items():
        section = "judged" if name.startswith("judged_") else WARNED_IN.get(manifest["stage"], "lineage")
        section = "" if name == "eval" else section if section in sections else "lineage"
        found[section] += [(name, warning) for warning in manifest["warnings"]]
    return found


def roles(nodes: Mapping[str, Manifest], made: Mapping[str, str]) -> dict[str, str]:
    """What each model is, by role. `made`: the names of their nodes."""
    found = {role: glossary.ROLES.get(role, glossary.OF_A_FOLDER) for role in made}
    for role, name in made.items():
        if nodes[name]["stage"] == "sft" and role != "control":
            came = glossary.OF_A_FOLDER if role == "policy" else glossary.AS_IT_CAME
            found[role] = glossary.ROLES["sft"] if nodes[name]["settings"].get("train", True) else came
    return found


def token_example(inputs: Mapping[str, Path]) -> list[dict[str, Any]]:
    """A training example of SFT's, token by token; nothing where it was not trained."""
    path = inputs["sft"] / "token_example.json"
    return load_json(path, list) if path.exists() else []


def curves(inputs: Mapping[str, Path], title: str, policy: Path | None) -> list[Markup]:
    """Figures of SFT's training, and of the policy's, where pairs trained it: its curve and its margins on held-out
    pairs."""
    drawn = figures.sft(read_curves(inputs["sft"]))
    if policy:
        margins = load_json(policy / "held_out.json", lambda pairs: [pair["margin"] for pair in pairs])
        drawn += [*figures.preference(title, read_curves(policy)), *figures.calibration(title, margins)]
    return [Markup(figure) for figure in drawn]


def trained_on_tasks(nodes: dict[str, Manifest], models: Mapping[str, str]) -> str:
    """What learnt from prompts made as the test's are: `it` (the policy), SFT by its title, or nothing."""
    made = nodes["data"]["config"]["tasks"] or {}
    judged = nodes["label"]["inputs"].get("pool", {}).get("fingerprint") if "label" in nodes else None
    of_data = any(m["fingerprint"] == judged and "data" in m["roots"] for m in nodes.values())
    if of_data and (made.get("preference") or made.get("open_preference")):
        return "it"
    taught = nodes["sft"]["settings"].get("train", True) and (made.get("sft") or made.get("open_sft"))
    return models.get("sft", "it") if taught else "nothing"


def of_reward(nodes: Mapping[str, Manifest]) -> dict[str, Any]:
    """Return the figures of the reward model: `trained`, where this run trained it and pairs were held out; `scored`,
    the best of n by score with the checks passed, where it labelled prompts that have checks; nothing otherwise."""
    found = dict[str, Any]()
    trained = nodes["reward"]["metrics"] if "reward" in nodes else {}
    if "accuracy" in trained:
        found["trained"] = trained
    for name in SCORED_BY:
        metrics = nodes[name]["metrics"] if name in nodes else {}
        if metrics.get("labeler") == "reward_model" and "best_of" in metrics:
            found["scored"] = metrics
            break
    return found


def rows(nodes: dict[str, Manifest]) -> list[dict[str, Any]]:
    """The nodes as the lineage table shows them; one that several seeds share once."""
    found: dict[str, dict[str, Any]] = {}
    for role, manifest in nodes.items():
        found.setdefault(manifest["fingerprint"], row(role, manifest))
    return list(found.values())


def row(role: str, manifest: Manifest) -> dict[str, Any]:
    """A node as the lineage table shows it."""
    return {
        "role": role,
        "stage": manifest["stage"],
        "fingerprint": manifest["fingerprint"],
        "inputs": [f"{r}: {i['stage']} {i['fingerprint']}" for r, i in manifest["inputs"].items()],
        "seconds": manifest["wall_seconds"],
        "memory": manifest.get("peak_gpu_memory") or manifest["peak_memory"],
        "tokens": manifest["metrics"].get("tokens"),
        "command": f"{manifest['command']} rebuild={manifest['stage']}",
        "summary": manifest["metrics"]["summary"],
    }
