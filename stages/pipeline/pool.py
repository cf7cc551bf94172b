"""Where a round's candidates come from: the policy itself, or the sources of `sample.pool`."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from stages.config.blocks.models import Model
from stages.config.blocks.sampling import Member, Pool, Sample
from stages.config.schema import Config
from stages.store.node import Node
from stages.store.numbers import numbered


def candidates(
    cfg: Config, node: Callable[..., Node], number: int, policy: Node, data: Node, models: Mapping[str, Node]
) -> tuple[Node, dict[str, Node]]:
    """The node that holds the candidates of a round, and all that make them, by name. `models`: those that a source
    may name; any other name is a path or a hub id."""
    asked = replace(cfg.sample, round=number)
    if not asked.pool:
        pool = source(replace(asked, pool=None), node, policy, data)
        return pool, {"sample": pool}
    made, sources = dict[str, Node](), dict[str, Node]()
    known = {**models, "policy": policy, "previous": policy.inputs.get("policy") or policy.inputs["base"]}
    for i, (member, block) in enumerate(zip(asked.pool, asked.members, strict=True)):
        name = member.model or "policy"  # which an endpoint is asked for
        if name not in known:
            known[name] = made[f"model_{i + 1}"] = node("base", Model(name, None, of=f"{block.key}.model"))
        sources[f"source_{i + 1}"] = source(block, node, known[name], data)
    pool = node("pool", Pool(names(asked.pool)), policy=policy, **sources)
    return pool, made | sources | {"pool": pool}


def source(block: Sample, node: Callable[..., Node], policy: Node, data: Node) -> Node:
    """The node of candidates that are drawn, or read from a file. Files need no model, so that what is wrong with one
    is told before any is trained; a file that brings its prompts needs no data either."""
    if not (file := block.candidate_file):
        return node("sample", block, policy=policy, data=data)
    return node("sample", file) if file.own_prompts else node("sample", file, data=data)


def names(members: list[Member]) -> list[str]:
    """What each source is called in candidates and pairs; of several that are called the same, with their number."""
    return numbered([str(m.endpoint.model or Path(m.file or m.model or "policy").name) for m in members])
