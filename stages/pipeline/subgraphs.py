"""Nodes by name, and the parts of the graph that follow lists of the configuration: a node for each list item, and a
node that joins them.

The lists are `data.sources`, `sample.pool` and the members of `label.ensemble`. Since each item is a node, a run with
one more data source reads only that source again. Without `sample.pool`, the policy's samples are the candidates."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stages.config.blocks.data import Data, OneSource, Source
from stages.config.blocks.labels import Ensemble, Label, PreferenceDataset
from stages.config.blocks.models import Model
from stages.config.blocks.objective import Training
from stages.config.blocks.pairs import Pairs
from stages.config.blocks.sampling import CandidateFile, DrawnCandidates, Pool, Sample
from stages.config.schema import Config
from stages.config.stage_table import STAGES, Target
from stages.store import stage_sources
from stages.store.node import Built, Graph, Node
from stages.store.numbers import numbered

# from block and digest cache to pinned block and digests
Pin = Callable[[Any, Path], tuple[Any, dict[str, str]]]


@dataclass
class Wiring:
    """Makes the nodes of a configuration, and holds them by name. `pin` replaces files and hub revisions in a block by
    fixed versions, and returns the files' digests; `digest_cache` is the file that remembers these. `is_built` tells if a
    node is in the store. `reward` is the reward model that this run trains for its labelers, if it does."""

    cfg: Config
    digest_cache: Path
    pin: Pin
    is_built: Built
    nodes: Graph = field(default_factory=Graph)
    reward: Node | None = None

    def make_unnamed(self, stage: str, block: Any, **inputs: Node) -> Node:
        """Return a node without giving it a name."""
        block, digests = self.pin(with_reading_settings(block, self.cfg.data), self.digest_cache)
        fingerprinted = block.fingerprinted_runtime if isinstance(block, Training) else {}
        edited = stage_sources.of_process().edited(stage)
        return Node(stage, STAGES[stage].version, block, inputs, digests, fingerprinted, edited)

    def add(self, name: str, stage: str, block: Any, **inputs: Node) -> Node:
        """Return a node, and hold it under its name."""
        node = self.make_unnamed(stage, block, **inputs)
        self.nodes[name] = node
        return node

    def join_sources(self, name: str, block: Data) -> Node:
        """Return the `data` node that joins the block's sources, each read by a node of its own."""
        row_audit = block.audit.for_codes(from_comparing_rows=False)
        inputs = Graph()
        joined = list[Source]()
        for i, source in enumerate(block.sources):
            # without the keys that the `data` node reads
            rows = replace(source, rows=None, weight=None, epochs=None)
            one = OneSource(
                rows, block.max_bad, block.form, row_audit, block.own, block.source_setting(i)
            )
            role = f"source_{i + 1}"
            inputs[role] = self.add(f"{name}_{role}", "source", one)
            joined.append(joined_source(source, inputs[role].config.source))
        return self.add(name, "data", replace(block, sources=joined), **inputs)

    def candidates(
        self, round_index: int, policy: Node, data: Node, named_models: Graph, suffix: str
    ) -> Node:
        """Return the candidates of a round, of which the first has index 0. `named_models` are those that a member of
        `sample.pool` can name; others are folders or hub ids. `suffix` ends the nodes' names."""
        # Prompts of its own do not depend on the number of rounds: runs with more or fewer rounds share this one's nodes.
        rounds = 1 if self.cfg.sample.prompts_per_round else self.cfg.rounds
        block = replace(self.cfg.sample, round=round_index, rounds=rounds)
        if not isinstance(block, DrawnCandidates) or not block.pool:
            return self.candidate_source(f"sample{suffix}", block, policy, data)
        previous = policy.inputs.get("policy") or policy.inputs["base"]
        models_by_name = {**named_models, "policy": policy, "previous": previous}
        sources = Graph()
        names = list[str]()
        for i, (member, settings) in enumerate(zip(block.pool, block.members, strict=True), 1):
            # an endpoint samples for the policy, and loads no model here
            name = member.model or "policy"
            if name not in models_by_name:
                model = Model(name, None, key=f"{settings.key}.model")
                models_by_name[name] = self.add(f"model_{i}{suffix}", "base", model)
            sources[f"source_{i}"] = self.candidate_source(
                f"source_{i}{suffix}", settings, models_by_name[name], data
            )
            names.append(member.endpoint.model or Path(member.file or name).name)
        # Candidates and pairs state these names of their sources.
        pool = Pool(numbered(names))
        return self.add(f"pool{suffix}", "pool", pool, policy=policy, **sources)

    def candidate_source(self, name: str, block: Sample, policy: Node, data: Node) -> Node:
        """Return the candidates that a sampler draws or that a file holds. A node that reads a file has no model among
        its inputs, and no data if the file brings prompts, so errors in the file appear before any training."""
        if not isinstance(block, CandidateFile):
            return self.add(name, "sample", block, policy=policy, data=data)
        if block.own_prompts:
            return self.add(name, "sample", block)
        return self.add(name, "sample", block, data=data)

    def scorer(self, label: Label) -> Graph:
        """Return by role the run's own reward model, if this labeler scores with it."""
        return {"reward": self.reward} if self.reward and label.has_trained_reward_model else {}

    def judge(self, label: Label, pool: Node, suffix: str) -> Node:
        """Return the labels of a pool, which the caller names. The members of an ensemble are added, with names that end
        with `suffix`. A member has the same node as in a run in which it labels alone: no judgement is paid for twice."""
        if not isinstance(label, Ensemble):
            return self.make_unnamed("label", label, pool=pool, **self.scorer(label))
        members = Graph()
        for name in (voter.labeler for voter in label.members):
            scorer = self.scorer(label) if name == "reward_model" else {}
            members[name] = self.add(
                f"label_{name}{suffix}", "label", label.member_block(name), pool=pool, **scorer
            )
        return self.make_unnamed("label", label.without_member_settings, pool=pool, **members)

    def pairs(self, judged: Node, block: Pairs, suffix: str = "") -> Node:
        """Return the pairs of judged candidates. Add the labelled single completions of the same candidates, if
        wanted."""
        if self.cfg.stage == Target.unpaired:
            self.add(f"unpaired{suffix}", "unpaired", self.cfg.unpaired, judged=judged)
        return self.add(f"pairs{suffix}", "pairs", block, judged=judged)


def with_reading_settings(block: Any, data: Data) -> Any:
    """Return the block with the settings of `data` for the files that its node reads: the limits on the size of lines
    and files, and the shape of conversations."""
    reading: dict[str, Any] = {"limits": data.limits, "turns": data.form.turns}
    if isinstance(block, PreferenceDataset | CandidateFile):
        return replace(block, **reading)
    if not isinstance(block, OneSource):
        return block
    against = [replace(source, **reading) for source in block.audit.against or []]
    audit = replace(block.audit, against=against or None)
    return replace(block, source=replace(block.source, **reading), audit=audit)


def joined_source(source: Source, pinned: Source) -> Source:
    """Return the part of a source that the `data` node reads. A local file has its name without its folder. A hub
    dataset, which is pinned to a revision, keeps its full name."""
    # the `source` node covers a file's content, and the same file in another folder gives the same `data` node
    is_hub_dataset = pinned.revision
    path = source.path if is_hub_dataset else Path(source.path).name
    task = source.task_name if source.task else None
    mixture_settings = {key: getattr(source, key) for key in ("check", "rows", "weight", "epochs")}
    return Source(
        path, pinned.revision, source.subset, source.hub_split, task=task, **mixture_settings
    )
