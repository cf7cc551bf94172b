"""A chain's models on fresh prompts: `python -m tests.bench.fresh [OUTPUTS] [validation=560] [KEY=VALUE …]`.

SFT, the policy of every round of DPO, the control and GRPO (`'arms=[grpo]'` or `align=grpo`), of every seed in
`'seeds=[1,2]'`, answer prompts of the trained tasks that no test has. The last round's policies also answer open
requests: `open_validation=240` of validation kinds, `open_test=240` of trained kinds (0: none). Prompts that the data
holds in any phrasing are left out. Tells each model's difference to SFT, and on open requests to the base: by seed,
and with every prompt's outcomes averaged over seeds. Models that are not in the store are left out.
"""

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from stages.config.blocks.data import SPLIT_OF_GROUP
from stages.config.choices import Split
from stages.config.schema import Config
from stages.evaluation.intervals import Means
from stages.evaluation.outcomes import read_answers, tabulate
from stages.pipeline.build import build
from stages.pipeline.graph import wire_graph
from stages.store.node import Node
from stages.store.records import Example, load
from stages.store.store import Store
from tests.bench import chains

SEED = 20261125  # of other prompts than the data has
MODEL = re.compile(r"(base|sft|control|grpo|dpo|dpo_\d+)(?:_seed_(\d+))?")
MAX_NEW_TOKENS = {"validation": 48, "open_validation": 128, "open_test": 128}


def main(outputs: Path, words: list[str]) -> None:
    sizes, overrides = {"validation": 560, "open_validation": 240, "open_test": 240}, list[str]()
    for word in words:
        key, _, value = word.partition("=")
        if key in sizes:
            sizes[key] = int(value)
        else:
            overrides.append(word)
    cfg, store, nodes = chains.prepared(outputs, overrides)
    matches = {
        name: match
        for name in nodes
        if (match := MODEL.fullmatch(name)) and store.find(nodes[name])
    }
    models = {(match[1], int(match[2] or cfg.seed)): nodes[name] for name, match in matches.items()}
    for group, size in sizes.items():
        if not size:
            continue
        first = "sft" if group == "validation" else "base"
        left_out = (
            ("base",)
            if first == "sft"
            else tuple(role for role, _ in models if role.startswith("dpo_"))
        )
        answering = {key: node for key, node in models.items() if key[0] not in left_out}
        logging.info("%s, %d prompts; differences to %s", group, size, first)
        compare(cfg, store, overrides, nodes["data"], answering, group, size, first)


def compare(
    cfg: Config,
    store: Store,
    overrides: list[str],
    data: Node,
    models: Mapping[tuple[str, int], Node],
    group: str,
    size: int,
    first: str,
) -> None:
    """Have the models, by role and seed, answer fresh prompts of a group; tell rates and differences to `first`."""
    tasks = replace(cfg.data.tasks, seed=SEED, **dict.fromkeys(SPLIT_OF_GROUP, 0) | {group: size})
    fresh = wire_graph(
        replace(cfg, data=replace(cfg.data, tasks=tasks, sources=[])), store.digest_cache
    )["data"]
    block = replace(
        cfg.answer, split=Split(SPLIT_OF_GROUP[group]), open=0, max_new_tokens=MAX_NEW_TOKENS[group]
    )
    template = wire_graph(cfg, store.digest_cache)["answer_policy"]
    answers = {
        key: replace(template, config=block, inputs={"model": m, "data": fresh})
        for key, m in models.items()
    }
    build([*answers.values()], store, cfg, overrides)
    examples = load(store.folder(data) / "examples.parquet", Example)
    used_ids = {e.id for e in examples} | {e.request for e in examples if e.request}
    names = {f"{role} {seed}": store.folder(node) for (role, seed), node in answers.items()}
    answers_by_name, _ = read_answers(names)
    fresh_examples = load(store.folder(fresh) / "examples.parquet", Example)
    answered = next(iter(answers_by_name.values()))
    prompts = [
        e for e in fresh_examples if e.id in answered and used_ids.isdisjoint((e.id, e.request))
    ]
    table = tabulate(prompts, answers_by_name)
    of_role = defaultdict[str, dict[int, int]](dict)
    for column, (role, seed) in enumerate(answers):
        of_role[role][seed] = column
    base = of_role.get("base", {}).get(cfg.seed)
    for role, columns in of_role.items():
        if role == first:
            continue
        starts = {seed: base if first == "base" else of_role[first][seed] for seed in columns}
        for seed, column in columns.items():
            tell(f"{role}, seed {seed}", prompts, table.passed, [column], [starts[seed]])
        if len(columns) > 1:
            tell(
                f"{role}, {len(columns)} seeds",
                prompts,
                table.passed,
                columns.values(),
                starts.values(),
            )


def tell(
    title: str,
    prompts: list[Example],
    passed: np.ndarray,
    columns: Iterable[int],
    starts: Iterable[int],
) -> None:
    """Tell the rate before and after, and the difference, of each prompt's outcomes averaged over the columns."""
    sides = np.stack([passed[:, [*starts]].mean(1), passed[:, [*columns]].mean(1)], 1)
    means = Means(sides, [e.task for e in prompts])
    before, after = (f"{100 * means.share(i).mean:.1f}%" for i in (0, 1))
    logging.info(
        "%-18s %s → %s, %s on %d",
        title,
        before,
        after,
        means.difference(1, 0).points(),
        len(prompts),
    )


if __name__ == "__main__":
    chains.run(main)
