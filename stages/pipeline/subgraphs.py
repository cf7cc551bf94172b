"""Parts of the graph that follow lists of the configuration: a node for each list item, and a node that joins them.

The lists are `data.sources`, `sample.pool` and the members of `label.ensemble`. Since each item is a node, a run with
one more data source reads only that source again. Without `sample.pool`, the policy's samples are the candidates."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stages.config.blocks.data import Data, OneSource, Source
from stages.config.blocks.labels import Ensemble, Label, PreferenceFile
from stages.config.blocks.models import Model
from stages.config.blocks.sampling import CandidateFile, Drawn, Pool, Sample
from stages.config.schema import Config
from stages.store.node import Graph, Node
from stages.store.numbers import numbered

MakeNode = Callable[..., Node]  # from stage, block and inputs by role to a node


def wire_sources(name: str, block: Data, make_node: MakeNode) -> Graph:
    """Return the nodes of the block's sources, and under `name` the `data` node that joins them."""
    row_audit = block.audit.part(among_rows=False)
    inputs, joined = Graph(), list[Source]()
    for i, source in enumerate(block.sources):
        # without the keys that the `data` node reads
        rows = replace(source, rows=None, weight=None, epochs=None)
        one = OneSource(rows, block.max_bad, block.form, row_audit, block.own, block.block(i))
        inputs[f"source_{i + 1}"] = node = make_node("source", one)
        joined.append(joined_source(source, node.config.source))
    data = make_node("data", replace(block, sources=joined), **inputs)
    return {f"{name}_{role}": node for role, node in inputs.items()} | {name: data}


def set_reading(block: Any, data: Data) -> Any:
    """Return the block with the settings of `data` for the files that its node reads: the limits on the size of lines
    and files, and the shape of conversations."""
    settings: dict[str, Any] = {"limits": data.limits, "turns": data.form.turns}
    if isinstance(block, PreferenceFile | CandidateFile):
        return replace(block, **settings)
    if not isinstance(block, OneSource):
        return block
    against = [replace(source, **settings) for source in block.audit.against or []]
    audit = replace(block.audit, against=against or None)
    return replace(block, source=replace(block.source, **settings), audit=audit)


def joined_source(source: Source, pinned: Source) -> Source:
    """Return the part of a source that the `data` node reads. The `source` node's fingerprint covers the content of
    local files, so here a file's name without its folder is enough: the same file in another folder gives the same
    node. A hub dataset, which is pinned to a revision, keeps its full name."""
    path = source.path if pinned.revision else Path(source.path).name
    task = source.task_name if source.task else None
    mixture_settings = {key: getattr(source, key) for key in ("check", "rows", "weight", "epochs")}
    return Source(
        path, pinned.revision, source.subset, source.hub_split, task=task, **mixture_settings
    )


def wire_judged(
    cfg: Config,
    make_node: MakeNode,
    earlier: Sequence[Node],
    policy: Node,
    data: Node,
    models: Graph,
    reward: Graph,
) -> tuple[Node, Graph]:
    """Return the node of a round's labels, of a file or of `wire_candidates`, and by name all nodes before it."""
    if cfg.label.brings_pool:
        return make_node("label", cfg.label), {}
    pool, nodes = wire_candidates(cfg, make_node, earlier, policy, data, models)
    judged, label_nodes = wire_labels(cfg.label, make_node, pool, **reward)
    return judged, nodes | label_nodes


def wire_judgements(cfg: Config, make_node: MakeNode, judged: Node) -> Graph:
    """Return the node of the judgements, of the pairs made of them and, if wanted, of labelled single completions."""
    nodes = {"label": judged}
    if cfg.unpaired_wanted:
        nodes["unpaired"] = make_node("unpaired", cfg.unpaired, judged=judged)
    return nodes | {"pairs": make_node("pairs", cfg.pairs, judged=judged)}


def wire_candidates(
    cfg: Config,
    make_node: MakeNode,
    earlier: Sequence[Node],
    policy: Node,
    data: Node,
    models: Graph,
) -> tuple[Node, Graph]:
    """Return the node of the candidates of a round, and by name all nodes that make them. `earlier` are the labels of
    the rounds before it. `models` are those that a member of `sample.pool` can name; others are folders or hub ids."""
    # Prompts of its own do not depend on the number of rounds: runs with more or fewer rounds share this one's nodes.
    rounds = 1 if cfg.sample.prompts_per_round else cfg.rounds
    block = replace(cfg.sample, round=len(earlier), rounds=rounds)
    if not isinstance(block, Drawn) or not block.pool:
        pool = wire_candidate_source(block, make_node, policy, data)
        return pool, {"sample": pool}
    model_nodes, sources = Graph(), Graph()
    models_by_name = {
        **models,
        "policy": policy,
        "previous": policy.inputs.get("policy") or policy.inputs["base"],
    }
    for i, (member, settings) in enumerate(zip(block.pool, block.members, strict=True)):
        # an endpoint samples for the policy, and loads no model here
        name = member.model or "policy"
        if name not in models_by_name:
            model = Model(name, None, key=f"{settings.key}.model")
            models_by_name[name] = model_nodes[f"model_{i + 1}"] = make_node("base", model)
        sources[f"source_{i + 1}"] = wire_candidate_source(
            settings, make_node, models_by_name[name], data
        )
    # Candidates and pairs state these names of their sources.
    names = [str(m.endpoint.model or Path(m.file or m.model or "policy").name) for m in block.pool]
    pool = make_node("pool", Pool(numbered(names)), policy=policy, **sources)
    return pool, model_nodes | sources | {"pool": pool}


def wire_candidate_source(block: Sample, make_node: MakeNode, policy: Node, data: Node) -> Node:
    """Return the node of candidates that a sampler draws or that a file holds. A node that reads a file has no model
    among its inputs, and no data if the file brings prompts, so errors in the file appear before any training."""
    if not isinstance(block, CandidateFile):
        return make_node("sample", block, policy=policy, data=data)
    return (
        make_node("sample", block) if block.own_prompts else make_node("sample", block, data=data)
    )


def wire_labels(cfg: Label, make_node: MakeNode, pool: Node, **reward: Node) -> tuple[Node, Graph]:
    """Return the node of a pool's labels, and by name all nodes that label the pool. An ensemble's member has the same
    node as in a run in which it labels alone: no judgement is paid for twice. `reward`: this run's reward model."""
    if not isinstance(cfg, Ensemble):
        judged = make_node("label", cfg, pool=pool, **reward)
        return judged, {"label": judged}
    inputs_by_labeler = {"reward_model": reward}
    members = {
        name: make_node("label", cfg.member(name), pool=pool, **inputs_by_labeler.get(name, {}))
        for name in (voter.labeler for voter in cfg.members)
    }
    judged = make_node("label", cfg.joined, pool=pool, **members)
    return judged, {f"label_{name}": member for name, member in members.items()} | {"label": judged}
