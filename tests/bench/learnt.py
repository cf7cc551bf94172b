"""A chain whose labels are learnt, beside the one whose labels are checked: `python -m tests.bench.learnt [OUTPUTS]
[KEY=VALUE …]`.

The SFT model of the chain in OUTPUTS, which is built where it is missing, answers other prompts of the same kinds;
checks judge these, and a reward model learns from all their pairs. It labels the chain's own candidates, DPO trains on
the best against the worst of every prompt that its scores tell apart, and checks judge both policies on the same test
prompts. Tells what the reward model gets right, the checks that the best of n by its score pass, and the comparison.
"""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from stages.config.blocks.data import SPLIT_OF_GROUP
from stages.config.blocks.labels import RewardModel
from stages.config.choices import Role
from stages.config.schema import Config
from stages.pipeline.build import build
from stages.pipeline.graph import wire_graph
from stages.pipeline.stage_table import STAGES
from stages.store.manifest import read_manifest
from stages.store.node import Node
from stages.store.store import Store
from tests.bench import chains

SEED = 20261124  # of other prompts than the chain's
PREFERENCE = ("preference", "open_preference")
MARGIN = 0.1  # of the ranks of two rewards among all: nearer ones say little


def main(outputs: Path, overrides: list[str]) -> None:
    cfg, store, nodes = chains.prepared(outputs, overrides)
    reward = of_other_prompts(cfg, store, nodes)
    scores = RewardModel(precision=cfg.reward.precision)
    label = replace(
        nodes["label"],
        config=scores,
        inputs={"pool": nodes["label"].inputs["pool"], "reward": reward},
    )
    wide = replace(cfg.pairs, strategy="best_worst", min_score=0.0, min_margin=MARGIN)
    pairs = replace(nodes["pairs"], config=wide, inputs={"judged": label})
    reference = on(nodes["reference"], pairs=pairs)
    learnt = on(nodes["dpo"], pairs=pairs, reference=reference)
    answer = on(nodes[f"answer_{Role.policy}"], model=learnt)
    models = {
        str(Role.base): "Base",
        str(Role.sft): "SFT",
        str(Role.control): "DPO by learnt labels",
    }
    models[str(Role.policy)] = "DPO by checks"
    compared = on(nodes["eval"], **{str(Role.control): learnt, f"answer_{Role.control}": answer})
    compared = replace(compared, config=replace(compared.config, models=models))
    build([compared], store, cfg, overrides)
    label_nodes = {
        "reward model": reward,
        "its labels": label,
        "its pairs": pairs,
        "pairs by checks": nodes["pairs"],
    }
    for what, node in label_nodes.items():
        logging.info("%-16s %s", what, metrics(store, node)["summary"])
    for n, mean in metrics(store, label).get("best_of", {}).items():
        logging.info(
            "best of %s: score %.3f, %.1f%% of the checks", n, mean["score"], 100 * mean["checks"]
        )
    chains.tell(json.loads((store.folder(compared) / "results.json").read_text()))


def of_other_prompts(cfg: Config, store: Store, nodes: dict[str, Node]) -> Node:
    """A reward model of the same SFT model's answers to other prompts, as checks judge them."""
    counts = {
        group: getattr(cfg.data.tasks, group) if group in PREFERENCE else 0
        for group in SPLIT_OF_GROUP
    }
    tasks = replace(cfg.data.tasks, seed=SEED, **counts)
    data = wire_graph(replace(cfg, data=replace(cfg.data, tasks=tasks)), store.digest_cache)["data"]
    judged = on(nodes["label"], pool=on(nodes["sample"], data=data))
    every = replace(cfg.pairs, strategy="all", max_per_prompt=16, max_per_task=None)
    pairs = replace(nodes["pairs"], config=every, inputs={"judged": judged})
    return Node(
        "reward",
        STAGES["reward"].version,
        cfg.reward,
        {"policy": nodes["sft"], "judged": judged, "pairs": pairs},
    )


def on(node: Node, **inputs: Node) -> Node:
    """The same stage on other inputs."""
    return replace(node, inputs={**node.inputs, **inputs})


def metrics(store: Store, node: Node) -> dict[str, Any]:
    manifest = read_manifest(store.folder(node))
    assert manifest
    return manifest["metrics"]  # type: ignore[no-any-return]


if __name__ == "__main__":
    chains.run(main)
