"""Stage `report`: one self-contained page that says whether it helped, and how it came about.

It reads the nodes it is given and nothing else; text that a model wrote is escaped.
"""

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from stages.config import Report
from stages.labelers.verifier import share_passed
from stages.records import Candidate, Example, Pair, content_id, load
from stages.report import figures
from stages.store import Manifest, Work, read_manifest
from stages.training import read_curves

MODELS = {"base": "Base", "sft": "SFT", "dpo": "DPO"}


def run(cfg: Report, inputs: dict[str, Path], out: Work) -> dict[str, Any]:
    """Publish `report.html`."""
    nodes = {role: manifest for role, folder in inputs.items() if (manifest := read_manifest(folder))}
    results = json.loads((inputs["eval"] / "results.json").read_text())
    sft_curve, dpo_curve = read_curves(inputs["sft"]), read_curves(inputs["dpo"])
    tokens = inputs["sft"] / "token_example.json"
    page = environment().get_template("page.html.jinja")
    html = page.render(
        models=MODELS,
        results=results,
        by_kind=Markup(figures.rates(results["kinds"], MODELS)),
        by_task=Markup(figures.rates(results["tasks"], MODELS)),
        curves=[Markup(figure) for figure in (*figures.sft(sft_curve), *figures.dpo(dpo_curve))],
        side_by_side=side_by_side(inputs, cfg.side_by_side),
        tokens=json.loads(tokens.read_text()) if tokens.exists() else [],
        label=nodes["label"]["metrics"],
        pairs=nodes["pairs"]["metrics"],
        pair=load(inputs["pairs"] / "pairs.parquet", Pair)[0],
        warnings=[(m["stage"], warning) for m in nodes.values() for warning in m["warnings"]],
        lineage=[row(role, manifest) for role, manifest in nodes.items()],
        origin=nodes["eval"],
        seconds=sum(m["wall_seconds"] for m in nodes.values()),
    )
    (out / "report.html").write_text(html, encoding="utf-8")
    return {"verdict": results["verdict"], "bytes": len(html.encode()), "summary": results["verdict"]}


def environment() -> Environment:
    """Jinja with everything escaped, and filters for figures."""
    env = Environment(
        loader=PackageLoader("stages", "report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    env.filters["percent"] = lambda share: f"{100 * share:.1f}%"
    env.filters["points"] = lambda difference: f"{100 * difference:+.1f}"
    env.filters["duration"] = lambda seconds: f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
    env.filters["size"] = lambda n: f"{n / 2**30:.1f} GiB" if n >= 2**30 else f"{n / 2**20:.0f} MiB"
    env.filters["visible"] = lambda text: text.replace("\n", "⏎\n") if text.strip("\n") == "" else text
    return env


def side_by_side(inputs: dict[str, Path], count: int) -> list[dict[str, Any]]:
    """Prompts with the answers of all three models: those where DPO and SFT differ first, by content, not by luck."""
    examples = {e.id: e for e in load(inputs["data"] / "examples.parquet", Example)}
    answers = {m: {a.prompt_id: a for a in load(inputs[f"answer_{m}"] / "answers.parquet", Candidate)} for m in MODELS}
    shown: list[dict[str, Any]] = []
    for prompt_id in sorted(answers["base"], key=content_id):
        example = examples[prompt_id]
        given = {m: answers[m][prompt_id].text for m in MODELS}
        passed = {m: share_passed(example.checks, text) == 1 for m, text in given.items()}
        shown.append({"example": example, "answers": given, "passed": passed})
    different = [s for s in shown if s["passed"]["sft"] != s["passed"]["dpo"]]
    better = [s for s in different if s["passed"]["dpo"]][: (count + 1) // 2]
    worse = [s for s in different if s["passed"]["sft"]][: count // 2]
    alike = [s for s in shown if s not in different]
    return (better + worse + alike)[:count]


def row(role: str, manifest: Manifest) -> dict[str, Any]:
    """A node as the lineage table shows it."""
    return {
        "role": role,
        "stage": manifest["stage"],
        "fingerprint": manifest["fingerprint"],
        "inputs": [f"{r}: {i['stage']} {i['fingerprint']}" for r, i in manifest["inputs"].items()],
        "seconds": manifest["wall_seconds"],
        "memory": manifest["peak_memory"],
        "tokens": manifest["metrics"].get("tokens"),
        "command": f"{manifest['command']} rebuild={manifest['stage']}",
        "summary": manifest["metrics"]["summary"],
    }
