"""Retention on more requested lengths: `python -m tests.bench.lengths [OUTPUTS] [prompts=400] [KEY=VALUE …]`.

A recipe's test prompts that ask for a length are too few to show anything. So the models of a chain in the store, of
every seed in `'seeds=[1,2]'`, answer further prompts of the group `open_test` that ask for one, whose requests no
training has. Their answers, and those to the plain open requests of the test, go into the claims. Writes only
`cache/lengths/` in the store, where a stopped run goes on.
"""

import logging
from dataclasses import replace
from itertools import islice
from pathlib import Path

from stages import answer
from stages.config.choices import Split
from stages.evaluation import retention
from stages.evaluation.outcomes import read_answers, tabulate
from stages.store.node import Node
from stages.store.records import Example, content_id, load, save
from stages.store.store import Store
from stages.store.workspace import StageDir
from stages.tasks import open_requests
from tests.bench import chains

SEED = 20261127  # of other prompts than the data has
COLUMNS = ("what", "against", "policy", "other", "p", "prompts")  # of a claim
DRAWN = 30  # prompts that are drawn for each one that asks for a length: two kinds of constraint do


def main(outputs: Path, words: list[str]) -> None:
    count = next((int(w.removeprefix("prompts=")) for w in words if w.startswith("prompts=")), 400)
    cfg, store, nodes = chains.prepared(outputs, [w for w in words if not w.startswith("prompts=")])
    data = load(store.folder(nodes["data"]) / "examples.parquet", Example)
    lengths = requested_lengths(data, count)
    # other prompts need other answers
    folder = outputs / "cache" / "lengths" / content_id([e.id for e in lengths])
    folder.mkdir(parents=True, exist_ok=True)
    save(folder / "examples.parquet", lengths, Example)
    prompts = [*lengths, *(e for e in data if e.group == "open_plain")]
    for name in ("eval", *(f"eval_seed_{seed}" for seed in cfg.seeds)):
        inputs, titles = nodes[name].inputs, nodes[name].config.models
        titles = {role: titles[role] for role in ("base", "sft", "policy")}
        fresh = {role: answered(inputs[f"answer_{role}"], store, folder) for role in titles}
        tested, _ = read_answers({role: store.folder(inputs[f"answer_{role}"]) for role in titles})
        further, _ = read_answers(fresh)
        answers = {role: tested[role] | further[role] for role in titles}
        block, table = replace(cfg.eval, models=titles), tabulate(prompts, answers)
        results, _ = retention.claims(
            block, {}, table, answers, StageDir(folder, lambda metrics, step: None)
        )
        logging.info("%s: %s", name, results["sentence"])
        for c in results["claims"]:
            logging.info("  %s, against %s: %.3f, %.3f, p %.1e, %d prompts", *map(c.get, COLUMNS))


def requested_lengths(data: list[Example], count: int) -> list[Example]:
    """Return prompts of one constraint, a number of words, whose requests no training has."""
    used = {e.id for e in data} | {e.request for e in data if e.split != "test"}
    drawn = open_requests.generate(SEED, {"open_test": DRAWN * count})
    new = (e for e in drawn if retention.asked_length(e) and used.isdisjoint((e.id, e.request)))
    return [*islice(new, count)]


def answered(node: Node, store: Store, folder: Path) -> Path:
    """Return the folder of the answers of an answer node's model to the prompts in `folder`."""
    model = node.inputs["model"]
    place = folder / model.fingerprint
    if not (place / "answers.parquet").exists():
        place.mkdir(exist_ok=True)
        block = replace(node.config, split=Split.test)
        inputs = {"data": folder, "model": store.folder(model)}
        figures = answer.run(block, inputs, StageDir(place, lambda metrics, step: None))
        logging.info("%s: %s", model, figures["summary"])
    return place


if __name__ == "__main__":
    chains.run(main)
