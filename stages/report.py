"""Stage `report`: one self-contained page that says whether it helped, and how it came about, and one of its labels.

It reads the nodes it is given and nothing else; text that a model wrote is escaped.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from stages.config.schema import Report
from stages.evaluation.diagnosis.diagnose import diagnose
from stages.evaluation.diagnosis.evidence import gather
from stages.pages import changes, figures, glossary, label_page, seeds, settings_table
from stages.pages.environment import environment
from stages.pages.example_answers import side_by_side, strips
from stages.pages.headline import Headline
from stages.store.manifest import Manifest, manifest_of
from stages.store.records import Pair, load
from stages.store.sealed_json import having, load_json
from stages.store.workspace import Work, read_curves

SHOWN = ("policy-sft", "policy-control", "sft-base")  # differences, what a reader came for first
SCORED_BY = ("label_reward_model", "label")  # whose labeler a reward model may be: in an ensemble, or alone


def run(cfg: Report, inputs: dict[str, Path], out: Work) -> dict[str, Any]:
    """Publish `report.html` and, of the last round's labels, `labels.html`."""
    inputs = dict(sorted(inputs.items(), key=lambda item: "_seed_" in item[0]))  # this seed's first
    nodes = {role: manifest_of(folder) for role, folder in inputs.items()}
    results = load_json(inputs["eval"] / "results.json", having("models"))
    models = results["models"]
    trained = nodes["eval"]["inputs"]["policy"]["stage"]
    tokens = inputs["sft"] / "token_example.json"
    made = {role: role if role in nodes else trained for role in models if role != "base"}
    runs = seeds.runs(inputs, nodes)
    pairs = load(inputs["pairs"] / "pairs.parquet", Pair)
    sft_trained = nodes["sft"]["settings"].get("train", True)
    evidence = gather(inputs, nodes, results, pairs)
    why = diagnose(evidence, models["policy"])
    over_seeds = seeds.summary(runs, inputs, results["endpoint"], nodes["eval"]["settings"])
    taught = trained_on_tasks(nodes, models["sft"])
    lineage = rows(nodes)
    confidence = nodes["eval"]["settings"]["confidence"]
    sections = {"control": "control" in models, "retention": results["retention"], "seeds": over_seeds}
    samples = strips(inputs, nodes, models)
    reward = of_reward(nodes)
    sections |= {"samples": samples, "tokens": tokens.exists(), "reward": reward}
    absent = {name for name, there in sections.items() if not there}
    page = environment().get_template("page.html.jinja")
    html = page.render(
        models=models,
        results=results,
        headline=Headline(results, confidence, len(runs), taught, seeds.more(nodes["eval"], runs)),
        contents=glossary.contents(absent, first=[] if why.helped else ["why"]),
        roles=glossary.ROLES if sft_trained else glossary.ROLES | {"sft": glossary.AS_IT_CAME},
        glossary=glossary.GLOSSARY,
        settings=settings_table.settings(nodes, nodes[trained], models["policy"], [run["seed"] for run in runs]),
        level=f"{confidence:.0%} interval",
        differences={name: results["differences"][name] for name in SHOWN if name in results["differences"]},
        constant=any(group["constant"] is not None for group in results["groups"].values()),
        runs=runs,
        over_seeds=over_seeds,
        by_kind=changes.chart(results["kinds"], taught),
        by_task=changes.chart(results["tasks"], taught),
        kinds_conclusion=changes.conclusion(results["kinds"], models["policy"]),
        single_tasks=changes.single(results["tasks"]),
        curves=curves(inputs["sft"], models["policy"], evidence.curve, inputs[trained] / "held_out.json"),
        trained={models[role]: nodes[of]["metrics"]["summary"] for role, of in made.items()},
        answers=side_by_side(inputs, models, cfg.side_by_side),
        samples=samples,
        tokens=load_json(tokens, list) if tokens.exists() else [],
        label=nodes["label"]["metrics"],
        pairs=nodes["pairs"]["metrics"],
        pair=pairs[0],
        reward=reward,
        why=why,
        warnings=[(role, warning) for role, m in nodes.items() for warning in m["warnings"]],
        lineage=lineage,
        longest=max(lineage, key=lambda node: node["seconds"]),
        origin=nodes["eval"],
        seconds=sum(node["seconds"] for node in lineage),
    )
    (out / "report.html").write_text(html, encoding="utf-8")
    (out / label_page.PAGE).write_text(label_page.page(inputs["label"]), encoding="utf-8")
    return {"verdict": results["verdict"], "bytes": len(html.encode()), "summary": results["verdict"]}


def curves(sft: Path, title: str, curve: list[dict[str, Any]], held_out: Path) -> list[Markup]:
    """Figures of SFT's training, and of the policy's: its title, its curve, and its margins on held-out pairs."""
    margins = load_json(held_out, lambda pairs: [pair["margin"] for pair in pairs])
    drawn = [*figures.sft(read_curves(sft)), *figures.preference(title, curve), *figures.calibration(title, margins)]
    return [Markup(figure) for figure in drawn]


def trained_on_tasks(nodes: dict[str, Manifest], sft: str) -> str:
    """What learnt from prompts made as the test's are: `it` (the policy), SFT by its title, or nothing."""
    made = nodes["data"]["config"]["tasks"] or {}
    judged = nodes["label"]["inputs"].get("pool", {}).get("fingerprint")
    of_data = any(m["fingerprint"] == judged and "data" in m["roots"] for m in nodes.values())
    if of_data and (made.get("preference") or made.get("open_preference")):
        return "it"
    taught = nodes["sft"]["settings"].get("train", True) and (made.get("sft") or made.get("open_sft"))
    return sft if taught else "nothing"


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
