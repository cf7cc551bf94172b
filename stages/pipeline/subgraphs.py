"""Parts of the graph whose nodes depend on lists in the configuration: one for each source of data, of candidates and
of labels, and the node that joins them.

A source of data is a node of its own, so that one more source is read without the others. A round's candidates come
from the policy itself, or from the sources of `sample.pool`; their labels from one labeler, or from the members of
`label.ensemble`.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from stages.config.blocks.data import Data, OneSource, ReadLimits, Source
from stages.config.blocks.labels import Label
from stages.config.blocks.models import Model
from stages.config.blocks.sampling import CandidateFile, Member, Pool, Sample
from stages.config.schema import Config
from stages.store.node import Node
from stages.store.numbers import numbered


def with_sources(name: str, block: Data, node: Callable[..., Node]) -> dict[str, Node]:
    """Return a node of `data` under this name, after one for each of its sources."""
    of, alone = block.of or "data.sources", block.audit.of_rows_alone
    read = [
        node("source", OneSource(as_read(source), block.max_bad, block.form, alone, block.own, f"{of}[{i}]"))
        for i, source in enumerate(block.sources)
    ]
    joined = replace(block, sources=[as_joined(s, r.config.source) for s, r in zip(block.sources, read, strict=True)])
    inputs = {f"source_{i}": source for i, source in enumerate(read, 1)}
    return {f"{name}_{role}": source for role, source in inputs.items()} | {name: node("data", joined, **inputs)}


def with_limits(block: Any, limits: ReadLimits) -> Any:
    """Return a node's block whose files are read within these limits."""
    if isinstance(block, Label | CandidateFile):
        return replace(block, limits=limits)
    if not isinstance(block, OneSource):
        return block
    against = [replace(source, limits=limits) for source in block.audit.against or []]
    audit = replace(block.audit, against=against or None)
    return replace(block, source=replace(block.source, limits=limits), audit=audit)


def as_read(source: Source) -> Source:
    """Return a source without what is decided where it joins others."""
    return replace(source, rows=None, weight=None, epochs=None)


def as_joined(source: Source, pinned: Source) -> Source:
    """Return a source as `data` joins it. Its files stand in the fingerprint of its own node, wherever they lie; a hub
    dataset, which alone is pinned to a revision, goes by its name."""
    path = source.path if pinned.revision else Path(source.path).name
    task = source.of_task if source.task else None
    kept = {key: getattr(source, key) for key in ("check", "rows", "weight", "epochs")}
    return Source(path, pinned.revision, source.subset, source.hub_split, task=task, **kept)


def candidates(
    cfg: Config, node: Callable[..., Node], number: int, policy: Node, data: Node, models: Mapping[str, Node]
) -> tuple[Node, dict[str, Node]]:
    """Return the node that holds the candidates of a round, and all nodes that make them, by name. `models`: those
    that a source may name; any other name is a path or a hub id."""
    asked = replace(cfg.sample, round=number)
    if not asked.pool:
        pool = candidate_source(replace(asked, pool=None), node, policy, data)
        return pool, {"sample": pool}
    made, sources = dict[str, Node](), dict[str, Node]()
    known = {**models, "policy": policy, "previous": policy.inputs.get("policy") or policy.inputs["base"]}
    for i, (member, block) in enumerate(zip(asked.pool, asked.members, strict=True)):
        name = member.model or "policy"  # which an endpoint is asked for
        if name not in known:
            known[name] = made[f"model_{i + 1}"] = node("base", Model(name, None, of=f"{block.key}.model"))
        sources[f"source_{i + 1}"] = candidate_source(block, node, known[name], data)
    pool = node("pool", Pool(source_names(asked.pool)), policy=policy, **sources)
    return pool, made | sources | {"pool": pool}


def candidate_source(block: Sample, node: Callable[..., Node], policy: Node, data: Node) -> Node:
    """Return the node of candidates that are drawn, or read from a file. Files need no model, so that what is wrong
    with one is told before any is trained; a file that brings its prompts needs no data either."""
    if not (file := block.candidate_file):
        return node("sample", block, policy=policy, data=data)
    return node("sample", file) if file.own_prompts else node("sample", file, data=data)


def source_names(members: list[Member]) -> list[str]:
    """Return the names of sources in candidates and pairs. Equal names are numbered."""
    return numbered([str(m.endpoint.model or Path(m.file or m.model or "policy").name) for m in members])


def labels(cfg: Label, node: Callable[..., Node], pool: Node, **reward: Node) -> tuple[Node, dict[str, Node]]:
    """Return the node of a pool's labels, and all nodes that label it, by name. A member's is that of a run in which
    it labels alone: what was asked and paid for once is not again. `reward`: the run's own reward model, where it
    labels."""
    if not cfg.voters:
        judged = node("label", cfg, pool=pool, **reward)
        return judged, {"label": judged}
    given = {"reward_model": reward}
    members = {
        name: node("label", cfg.member(name), pool=pool, **given.get(name, {}))
        for name in (voter.labeler for voter in cfg.voters)
    }
    judged = node("label", cfg.joined, pool=pool, **members)
    return judged, {f"label_{name}": member for name, member in members.items()} | {"label": judged}
