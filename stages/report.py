"""Stage `report`: one self-contained page that says whether it helped, and how it came about.

It reads the nodes it is given and nothing else; text that a model wrote is escaped.
"""

import json
from pathlib import Path
from typing import Any

from markupsafe import Markup

from stages.config.schema import Report
from stages.pages import figures, seeds
from stages.pages.environment import environment
from stages.pages.side_by_side import side_by_side
from stages.store.records import Pair, load
from stages.store.store import Manifest, read_manifest
from stages.store.work import Work, read_curves


def run(cfg: Report, inputs: dict[str, Path], out: Work) -> dict[str, Any]:
    """Publish `report.html`."""
    nodes = {role: manifest for role, folder in inputs.items() if (manifest := read_manifest(folder))}
    results = json.loads((inputs["eval"] / "results.json").read_text())
    models = results["models"]
    policy = inputs[nodes["eval"]["inputs"]["policy"]["stage"]]
    tokens = inputs["sft"] / "token_example.json"
    held_out = [pair["margin"] for pair in json.loads((policy / "held_out.json").read_text())]
    curves = [*figures.sft(read_curves(inputs["sft"])), *figures.preference(models["policy"], read_curves(policy))]
    curves += figures.calibration(models["policy"], held_out)
    runs = seeds.runs(inputs, nodes)
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
        tokens=json.loads(tokens.read_text()) if tokens.exists() else [],
        label=nodes["label"]["metrics"],
        pairs=nodes["pairs"]["metrics"],
        pair=load(inputs["pairs"] / "pairs.parquet", Pair)[0],
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
