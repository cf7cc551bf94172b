"""The references instead of DPO: `python -m tests.bench.references [OUTPUTS] [KEY=VALUE …]`.

The demo's preference prompts have references. Beside the chain in OUTPUTS, which is built where it is missing, SFT
trains with its own settings on the references of its own prompts and of those, and stands where a control does:
base, SFT, this and DPO are compared on the same prompts. Tells what each way took.
"""

import json
import logging
from dataclasses import replace
from pathlib import Path

from stages.config.blocks.data import SPLIT_OF_GROUP, Source
from stages.config.choices import Role
from stages.pipeline.build import build
from stages.pipeline.graph import wire_graph
from stages.store.manifest import read_manifest
from stages.store.node import Node
from stages.store.records import Example, load
from stages.store.store import Store
from tests.bench import chains

CONTROL = "SFT on all references"


def main(outputs: Path, overrides: list[str]) -> None:
    cfg, store, nodes = chains.prepared(outputs, overrides)
    build([nodes["eval"]], store, cfg, overrides)
    examples = load(store.folder(nodes["data"]) / "examples.parquet", Example)
    splits_by_stage = {"sft": ("sft", "preference"), "validation": ("validation",)}
    sources = [
        Source(
            str(written(outputs, name, [e for e in examples if e.split in splits])),
            splits={name: 1.0},
        )
        for name, splits in splits_by_stage.items()
    ]
    none = replace(cfg.data.tasks, **dict.fromkeys(SPLIT_OF_GROUP, 0))
    control = wire_graph(
        replace(cfg, data=replace(cfg.data, tasks=none, sources=sources)), store.digest_cache
    )["sft"]
    answer = replace(nodes["answer_sft"], inputs={**nodes["answer_sft"].inputs, "model": control})
    before = nodes["eval"]
    models = {
        str(Role.base): "Base",
        str(Role.sft): "SFT",
        str(Role.control): CONTROL,
        str(Role.policy): "DPO",
    }
    inputs = {**before.inputs, str(Role.control): control, f"answer_{Role.control}": answer}
    compared = replace(before, config=replace(before.config, models=models), inputs=inputs)
    build([compared], store, cfg, overrides)
    tell(store, compared, nodes, control)


def written(outputs: Path, name: str, examples: list[Example]) -> Path:
    """The examples that have a reference, as conversations."""
    path = outputs / "cache" / "references" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"messages": e.conversation}, ensure_ascii=False)
        for e in examples
        if e.reference is not None
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def tell(store: Store, compared: Node, nodes: dict[str, Node], control: Node) -> None:
    results = json.loads((store.folder(compared) / "results.json").read_text())
    for group, rates in results["groups"].items():
        rates_message = ", ".join(
            f"{title} {100 * rates[role]['mean']:.1f}" for role, title in results["models"].items()
        )
        logging.info("%-20s %s", group, rates_message)
    ways = {CONTROL: [control], "SFT": [nodes["sft"]], "DPO, from that": []}
    ways["DPO, from that"] = [
        nodes[name] for name in ("sample", "label", "pairs", "reference", "dpo")
    ]
    for way, overrides in ways.items():
        seconds = sum(
            manifest["wall_seconds"]
            for n in overrides
            if (manifest := read_manifest(store.folder(n)))
        )
        logging.info("%-22s %6.0f s", way, seconds)


if __name__ == "__main__":
    chains.run(main)
