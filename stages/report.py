"""Stage `report`: one self-contained page that says whether it helped, and how it came about.

It reads the nodes it is given and nothing else; text that a model wrote is escaped.
"""

from pathlib import Path
from typing import Any

from markupsafe import Markup

from stages.config.schema import Report
from stages.evaluation.diagnosis.evidence import gather
from stages.evaluation.diagnosis.ranking import diagnose
from stages.pages import figures, seeds
from stages.pages.environment import environment
from stages.pages.samples import strips
from stages.pages.side_by_side import side_by_side
from stages.store.kept import having, load_json
from stages.store.records import Pair, load
from stages.store.store import Manifest, manifest_of
from stages.store.work import Work, read_curves


def run(cfg: Report, inputs: dict[str, Path], out: Work) -> dict[str, Any]:
    """Publish `report.html`."""
    nodes = {role: manifest_of(folder) for role, folder in inputs.items()}
    results = load_json(inputs["eval"] / "results.json", having("models"))
    models = results["models"]
    policy = inputs[nodes["eval"]["inputs"]["policy"]["stage"]]
    tokens = inputs["sft"] / "token_example.json"
    held_out = load_json(policy / "held_out.json", lambda pairs: [pair["margin"] for pair in pairs])
    curves = [*figures.sft(read_curves(inputs["sft"])), *figures.preference(models["policy"], read_curves(policy))]
    curves += figures.calibration(models["policy"], held_out)
    runs = seeds.runs(inputs, nodes)
    pairs = load(inputs["pairs"] / "pairs.parquet", Pair)
    why = diagnose(gather(inputs, nodes, results, pairs), models["policy"])
    page = environment().get_template("page.html.jinja")
    html = page.render(
        models=models,
        results=results,
        runs=runs,
        over_seeds=seeds.summary(runs),
        by_kind=Markup(figures.rates(results["kinds"], models)),
        by_task=Markup(figures.rates(results["tasks"], models)),
        curves=[Markup(figure) for figure in curves],
        answers=side_by_side(inputs, models, cfg.side_by_side),
        samples=strips(inputs, nodes, models),
        tokens=load_json(tokens, list) if tokens.exists() else [],
        label=nodes["label"]["metrics"],
        pairs=nodes["pairs"]["metrics"],
        pair=pairs[0],
        why=why,
        warnings=[(role, warning) for role, m in nodes.items() for warning in m["warnings"]],
        lineage=[row(role, manifest) for role, manifest in nodes.items()],
        cost=Markup(figures.cost({role: m["wall_seconds"] for role, m in nodes.items()})),
        origin=nodes["eval"],
        seconds=sum(m["wall_seconds"] for m in nodes.values()),
    )
    (out / "report.html").write_text(html, encoding="utf-8")
    return {"verdict": results["verdict"], "bytes": len(html.encode()), "summary": results["verdict"]}


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
