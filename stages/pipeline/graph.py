"""The graph of the whole pipeline: the nodes of a run, and the inputs of each. Start reading here.

Each stage is one function, `run(cfg, inputs, out) -> metrics`, in `stages/STAGE.py`. `cfg` is the stage's block of the
configuration, `inputs` maps the role of each input to its folder, and `out` is the folder that the stage fills.
A node is one such computation: a stage, its block and its input nodes. Their hash is the node's fingerprint, the name
of the node's folder in the store. This file only describes nodes. `build.py` runs those that the store does not have.

    base, data → sft → sample → label → pairs → reference, dpo      a further round of DPO samples from this DPO model
    base, data → sft → sample → label → unpaired → reference, kto   with `align=kto`: completions one by one
    base, data → sft → OBJECTIVE                                    of one that draws: `label` scores its completions
    `arms` trains further objectives from the same SFT, which the evaluation answers with beside the policy
    base, sft, dpo → answer → eval → report                         with `eval.judged`, versus and label before eval"""

from dataclasses import dataclass, field, fields, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from stages.config.blocks.arguments import SFTArguments
from stages.config.blocks.data import Data, Form
from stages.config.blocks.draws import Drawing
from stages.config.blocks.labels import Label, PreferenceDataset, Verifier
from stages.config.blocks.models import Model
from stages.config.blocks.runtimes import SamplingRuntime
from stages.config.blocks.sampling import HF, DrawnCandidates, OpenAI
from stages.config.blocks.training import OBJECTIVES, SFT
from stages.config.choices import Adapter, Align, Demonstrations, DPOReference, Role, Split
from stages.config.errors import UserError
from stages.config.extras import import_beside, modules_of_extras
from stages.config.schema import Config
from stages.config.stage_record import Phase
from stages.config.stage_table import DRAWING, STAGES, Target, stages_of
from stages.pipeline.evaluation_graph import (
    WAITING,
    Evaluation,
    other_model_block,
    title_models,
)
from stages.pipeline.extra_evaluation import evaluations_of_extras
from stages.pipeline.provenance import stage_to_type
from stages.pipeline.subgraphs import Pin, Wiring
from stages.store import source_files
from stages.store.node import Built, Graph, Node

# Stages that align=none and objectives that draw leave out.
PREFERENCE_STAGES = (*stages_of(Phase.candidates, Phase.preferences), Target.dpo)
# Data that only the evaluation reads, beside that of extras, with the setting that lists the sources of each.
EVALUATION_SETS = {
    "retained": "eval.retention",
    "judged_prompts": "eval.judged.source",
    "outside": "outside",
}
# keys of sampling that demonstrations have of their own, and that they have not
OWN_OF_DEMONSTRATIONS = ("candidates_per_prompt", "temperatures", "max_new_tokens")
ABSENT_OF_DEMONSTRATIONS = ("prompts", "prompts_per_round", "pool")
SEEDED_BLOCKS = ("sample", *OBJECTIVES)  # may have a seed; its default is the run's seed


def wire_graph(
    cfg: Config,
    digest_cache: Path,
    pin: Pin = source_files.pin,
    is_built: Built = lambda node: True,
) -> Graph:
    """Return all nodes of a configuration by name: the roots, a chain per seed, the evaluations and the report. `pin`
    replaces files and hub revisions in a block by fixed versions, and returns the files' digests; `digest_cache` is the
    file that remembers these. `is_built` tells if a node is in the store: the report waits for no judgements of
    people."""
    shared = Wiring(cfg, digest_cache, pin, is_built)
    if cfg.standalone:
        return import_beside(cfg.standalone, "alone").wire(shared)  # type: ignore[no-any-return]
    if cfg.needs_no_model:
        return wire_imported_candidates(shared)
    roots_class, chain_class = chain_classes(cfg)
    roots = roots_class(cfg, digest_cache, pin, is_built).wire()
    nodes = Graph()
    for seed in cfg.seeds:
        chain = chain_class(with_seed(cfg, seed), roots).wire()
        nodes |= {f"{name}_seed_{seed}": node for name, node in chain.items()}
    nodes |= roots.nodes
    nodes |= chain_class(cfg, roots).wire()  # of the run's own seed
    require_one_policy_a_seed(cfg, nodes)
    reported = {name: node for name, node in nodes.items() if not name.startswith(WAITING)}
    return nodes | {"report": shared.make_unnamed("report", cfg.report, **reported)}


def wire_unpinned(cfg: Config) -> Graph:
    """Return all nodes as `wire_graph` does, with files and hub revisions as the configuration names them: none is
    looked for or read. Such nodes tell what a run would do, and are not to be built."""
    # to tell what a run would do, not to be built
    return wire_graph(cfg, Path(), lambda block, cache: (block, {}))


def require_one_policy_a_seed(cfg: Config, nodes: Graph) -> None:
    """Raise UserError if two of `seeds` give the same policy, because its stages have seeds of their own."""
    evaluations = [node for node in nodes.values() if node.stage == "eval"]
    policies = {node.inputs["policy"].fingerprint for node in evaluations}
    if len(policies) < len(evaluations):
        raise UserError(
            f"seeds={cfg.seeds}: two of the runs make one policy, because its stages have seeds of their own, as by "
            "dpo.seed. Leave one of these out, or set seeds=[]."
        )


def wire_imported_candidates(wiring: Wiring) -> Graph:
    """Return the nodes of a run that reads its candidates, or labelled candidates, from a file. It needs no model."""
    cfg = wiring.cfg
    if cfg.label.brings_pool:
        judged = wiring.make_unnamed("label", cfg.label)
    else:
        pool = wiring.add("sample", "sample", cfg.sample)
        judged = wiring.judge(cfg.label, pool, suffix="")
    wiring.nodes["label"] = judged
    wiring.pairs(judged, cfg.pairs)
    return wiring.nodes


def chain_classes(cfg: Config) -> tuple[type["Roots"], type["Chain"]]:
    """Return the classes that wire a run: an extra has those for a policy that was trained elsewhere. Raise UserError if
    it is missing."""
    if cfg.align is not Align.given:
        return Roots, Chain
    for module in modules_of_extras("chain"):
        return module.Roots, module.Chain
    problem = "no folder of stages/extras/ is there for a policy that was trained elsewhere"
    raise UserError(f"align=given: {problem}. Type an objective: align=dpo.")


@dataclass
class Roots(Wiring):
    """The nodes that all seeds share: data that only the evaluation reads, the base model, the data, and the base
    model's own demonstrations."""

    evaluation_data: Graph = field(default_factory=Graph)

    def wire(self) -> "Roots":
        """Add the nodes, and return them."""
        cfg = self.cfg
        self.add_evaluation_data()
        base = self.add("base", "base", self.base_model())
        block = cfg.data
        if cfg.selects_by_label:
            sources = [replace(source, answered_later=True) for source in block.sources]
            block = replace(block, sources=sources)
        data = self.join_sources("data", block)
        if cfg.selects_demonstrations:
            self.select_demonstrations(base, data)
        return self

    def base_model(self) -> Model:
        """Return the block of the model that SFT starts from."""
        return self.cfg.model

    def add_evaluation_data(self) -> None:
        """Add the data that only the evaluation reads."""
        cfg = self.cfg
        for extra in evaluations_of_extras():
            self.evaluation_data |= extra.data(self)
        for name, setting in EVALUATION_SETS.items():
            listed_sources = attrgetter(setting)(cfg)
            if not listed_sources:
                continue
            split = "test"
            form = cfg.data.form
            if name == "retained":
                split = "sft"
                form = Form()
            sources = [replace(source, splits={split: 1.0}) for source in listed_sources]
            block = Data(seed=0, sources=sources, max_bad=cfg.data.max_bad, form=form, of=setting)
            self.evaluation_data[name] = self.join_sources(name, block)

    def select_demonstrations(self, base: Node, data: Node) -> Node:
        """Return the selection of demonstrations for SFT from the base model's own answers. A labeler scores these, and
        `select` keeps the best. By default, the labeler is the verifier, since generated requests carry checks, and no
        endpoint is asked. With `sft.demonstrations=selected`, the candidates' sampler and labeler work here too; of an
        ensemble, which compares answers, the verifier alone."""
        cfg = self.cfg
        label: Label = Verifier(block="select")
        if cfg.selects_by_label:
            label = cfg.label.of_demonstrations
        settings = {key: vars(cfg.select)[key] for key in OWN_OF_DEMONSTRATIONS}
        settings |= dict.fromkeys(ABSENT_OF_DEMONSTRATIONS)
        sample = replace(demonstration_sampler(cfg), split=Split.sft, **settings)
        pool = self.add("sample_base", "sample", sample, policy=base, data=data)
        judged = self.add("label_base", "label", label, pool=pool)
        return self.add("select", "select", cfg.select, judged=judged, data=data)


class Chain(Wiring):
    """The nodes of one seed: SFT, a reward model, the objectives that train SFT's model further, the controls and the
    evaluation. There is a method per stage, which adds its nodes."""

    def __init__(self, cfg: Config, roots: Roots) -> None:
        super().__init__(cfg, roots.digest_cache, roots.pin, roots.is_built)
        self.roots = roots.nodes
        self.evaluation_data = roots.evaluation_data
        self.base = roots.nodes["base"]
        self.data = roots.nodes["data"]
        self.sft = self.sft_model()
        # the end of the names of each round's nodes; those of the last round have the plain names
        self.suffixes = [*(f"_{number}" for number in range(1, cfg.rounds)), ""]
        self.policies = list[Node]()  # of each round of DPO

    def wire(self) -> Graph:
        """Return the nodes by name."""
        cfg = self.cfg
        if cfg.reward.source.path:
            self.reward = self.reward_model()
        if cfg.align is not Align.none:
            for align in cfg.objectives:
                self.train(align)
            for role, objective in cfg.controls.items():
                if objective in DRAWING:
                    self.train_on_draws(role, cfg.control_of_draws(objective))
                else:
                    self.control(role)
            if cfg.control_pairs:
                self.control_pairs()
        models = self.models()
        rounds = [self.sft, *self.policies] if len(self.policies) > 1 else []
        sets = self.evaluation_sets(models)
        Evaluation(self, models, self.titles(models), sets, rounds).results()
        for module in modules_of_extras("graph"):
            module.add_nodes(self)
        return self.nodes

    def sft_model(self) -> Node:
        """Return SFT of the base model on the selected demonstrations if there are any, else on the data."""
        block = self.cfg.sft
        if isinstance(block, SFT):
            selected = "select" in self.roots
            demonstrations = Demonstrations.selected if selected else Demonstrations.given
            block = replace(block, demonstrations=demonstrations)
        return self.add("sft", "sft", block, **self.inputs_of_sft())

    def inputs_of_sft(self) -> Graph:
        """Return the inputs of SFT by role."""
        return {"base": self.base, "data": self.roots.get("select", self.data)}

    def train(self, align: Align) -> None:
        """Train SFT's model by an objective."""
        if align in DRAWING:
            self.train_on_draws(align, vars(self.cfg)[align])
        elif align is Align.kto:
            self.kto()
        else:
            self.dpo()

    def reward_model(self) -> Node:
        """Return the reward model that learns from the preferences of `reward.source`."""
        source = self.cfg.reward.source
        keys_of_file = {key.name for key in fields(PreferenceDataset)}
        shared_keys = vars(source).keys() & keys_of_file
        settings = {key: getattr(source, key) for key in shared_keys}
        max_failed = self.cfg.label.max_failed
        block = PreferenceDataset(max_failed=max_failed, block="reward.source", **settings)
        judged = self.add("label_reward", "label", block)
        pairs_block = replace(self.cfg.reward.pairs, key="reward.pairs")
        pairs = self.add("pairs_reward", "pairs", pairs_block, judged=judged)
        return self.learn_reward(judged, pairs)

    def learn_reward(self, judged: Node, pairs: Node) -> Node:
        """Return the reward model that learns from pairs, and starts from SFT's model."""
        return self.add(
            "reward", "reward", self.cfg.reward, policy=self.sft, judged=judged, pairs=pairs
        )

    def labels(self, round_index: int, policy: Node) -> Node:
        """Return the labels of a round, of which the first has index 0: of a file, or of candidates that the policy
        samples. KTO beside DPO has those of DPO's first round."""
        suffix = self.suffixes[round_index]
        name = f"label{suffix}"
        if name in self.nodes:
            return self.nodes[name]
        label = self.cfg.label
        if label.brings_pool:
            return self.add(name, "label", label)
        models = {"base": self.base, "sft": self.sft}
        pool = self.candidates(round_index, policy, self.data, models, suffix)
        self.nodes[name] = self.judge(label, pool, suffix)
        return self.nodes[name]

    def dpo(self) -> None:
        """Train the policy on pairs of its own candidates. In a further round, the policy so far samples them."""
        policy = self.sft
        for round_index, suffix in enumerate(self.suffixes):
            judged = self.labels(round_index, policy)
            pairs = self.pairs(judged, self.cfg.pairs, suffix)
            policy = self.learn_pairs(f"dpo{suffix}", f"reference{suffix}", policy, pairs)
            self.policies.append(policy)
        if self.cfg.stage == Target.reward and self.reward is None:
            self.learn_reward(judged, pairs)

    def learn_pairs(self, name: str, reference_name: str, policy: Node, pairs: Node) -> Node:
        """Return DPO of a policy on pairs. Unless its loss needs none, a reference scores the pairs."""
        dpo = self.cfg.dpo
        inputs = {"policy": policy, "pairs": pairs}
        if not dpo.reference_free:
            block = replace(self.cfg.reference, weights=dpo.start_weights, forward=dpo.forward)
            model = policy if dpo.reference is DPOReference.previous else self.sft
            inputs["reference"] = self.add(
                reference_name, "reference", block, reference=model, pairs=pairs
            )
        # DPO with a continued adapter trains the SFT's LoRA, whose frozen weights are those of the base model.
        if dpo.adapter is Adapter.continued:
            inputs["frozen"] = self.base
        return self.add(name, "dpo", dpo, **inputs)

    def kto(self) -> None:
        """Train the policy on the candidates one by one, each with its label."""
        judged = self.labels(0, self.sft)
        beside_pairs = "_kto" if self.cfg.learns_from_pairs else ""
        unpaired = self.add(f"unpaired{beside_pairs}", "unpaired", self.cfg.unpaired, judged=judged)
        block = replace(self.cfg.reference, weights=self.cfg.kto.start_weights)
        reference = self.add(
            f"reference{beside_pairs}", "reference", block, reference=self.sft, unpaired=unpaired
        )
        inputs = {"policy": self.sft, "unpaired": unpaired, "reference": reference}
        self.add("kto", "kto", self.cfg.kto, **inputs)

    def train_on_draws(self, name: str, block: Drawing) -> None:
        """Train SFT's model on draws of its own, which `label` scores. The block names the stage."""
        label = replace(self.cfg.label, audit=None, known=None)  # both are of a pool
        block = replace(block, label=label, **block.unread)
        inputs = self.scorer(self.cfg.label)
        if block.replay:
            inputs = inputs | {"replayed": self.sft.inputs["data"]}
        self.add(name, block.block, block, policy=self.sft, data=self.data, **inputs)

    def control(self, role: str) -> None:
        """Train SFT's model on the chosen completions of each round's pairs, round by round."""
        control = self.sft
        for suffix in self.suffixes:
            pairs = self.nodes[f"pairs{suffix}"]
            chosen = self.add(f"select_control{suffix}", "select", self.cfg.select, pairs=pairs)
            block = control_block(self.cfg)
            control = self.add(f"{role}{suffix}", "sft", block, base=control, data=chosen)

    def control_pairs(self) -> None:
        """Train SFT's model by DPO on the control pairs of each round's candidates, round by round."""
        policy = self.sft
        block = replace(self.cfg.pairs, control=self.cfg.control_pairs)
        for suffix in self.suffixes:
            judged = self.nodes[f"label{suffix}"]
            pairs = self.nodes[f"pairs{suffix}"]
            pairs = self.add(f"pairs_control{suffix}", "pairs", block, judged=judged, pairs=pairs)
            policy = self.learn_pairs(
                f"control_pairs{suffix}", f"reference_control{suffix}", policy, pairs
            )

    def models(self) -> Graph:
        """Return the evaluated models by role."""
        cfg = self.cfg
        if cfg.align is Align.none and cfg.sft.train:
            return {Role.base: self.base, Role.policy: self.sft}
        if cfg.align is Align.none:
            # nothing is trained: the evaluation compares the given model with another folder or hub model
            other = self.add(
                "other", "base", other_model_block(cfg, cfg.eval.judged.outside_models[0])
            )
            return {Role.other: other, Role.policy: self.sft}
        models: Graph = {Role.base: self.base, Role.sft: self.sft}
        models |= {role: self.nodes[role] for role in cfg.controls}
        if cfg.control_pairs:
            models[Role.control_pairs] = self.nodes["control_pairs"]
        models |= {arm: self.nodes[arm] for arm in cfg.arms}
        return models | {Role.policy: self.nodes[cfg.align]}

    def titles(self, models: Graph) -> dict[str, str]:
        """Return the models' titles for the report by role."""
        return title_models(self.cfg, models)

    def evaluation_sets(self, models: Graph) -> Graph:
        """Return what the evaluation reads beside models and their answers: the data, sets of its own, the labels of
        which some are held out, and all other labels that a model was trained on."""
        sets = {"data": self.data, **self.evaluation_data}
        if self.cfg.learns_from_labels:
            sets[self.cfg.label_block] = self.nodes[self.cfg.label_block]
        trained_on = {n.fingerprint: n for model in models.values() for n in model.lineage}
        trained_labels = [n for n in trained_on.values() if n.stage in ("pairs", "unpaired")]
        further = [node for node in trained_labels if node not in sets.values()]
        return sets | {f"{node.stage}_{i}": node for i, node in enumerate(further, 1)}


def control_block(cfg: Config) -> SFT:
    """Return the block of SFT that is the control: with DPO's settings where SFT has them, and the control's learning
    rate."""
    block = cfg.sft if isinstance(cfg.sft, SFT) else SFT(template=cfg.sft.template)
    shared_keys = vars(block).keys() & vars(cfg.dpo).keys()
    settings: dict[str, Any] = {key: getattr(cfg.dpo, key) for key in shared_keys}
    shared_arguments = vars(SFTArguments()).keys() & vars(cfg.dpo.trainer).keys()
    settings["trainer"] = SFTArguments(
        **{key: vars(cfg.dpo.trainer)[key] for key in shared_arguments}
    )
    settings |= {
        "learning_rate": cfg.control_learning_rate,
        "packing": False,
        "control": True,
        # its last step is published, as DPO's is, and not the best by validation
        "evaluations": 0,
    }
    return replace(block, **settings)


def with_seed(cfg: Config, seed: int) -> Config:
    """Return the configuration with another seed. A stage whose seed differs from the run's keeps its seed."""
    blocks: dict[str, Any] = {}
    for name, block in seeded_blocks(cfg).items():
        if block.seed == cfg.seed:
            blocks[name] = replace(block, seed=seed)
    return replace(cfg, seed=seed, **blocks)


def seeded_blocks(cfg: Config) -> dict[str, Any]:
    """Return the blocks of this run that have a seed."""
    blocks = {name: vars(cfg)[name] for name in SEEDED_BLOCKS}
    return {name: block for name, block in blocks.items() if "seed" in vars(block)}


def demonstration_sampler(cfg: Config) -> DrawnCandidates:
    """Return the block of the sampler that answers the prompts of demonstrations. Those of a file are other prompts."""
    if not isinstance(cfg.sample, DrawnCandidates):
        # a file holds answers to other prompts
        runtime = SamplingRuntime(processes=cfg.launch.processes, nodes=cfg.launch.nodes)
        return HF(precision=cfg.precision, seed=cfg.seed, runtime=runtime)
    if isinstance(cfg.sample, OpenAI) and not cfg.selects_by_label:
        return cfg.sample.with_sampler(HF, max_failed=None)
    return cfg.sample


def requested_nodes(cfg: Config, nodes: Graph) -> list[Node]:
    """Return the nodes that `stage` asks for, without controls, which are trained after the objective. Raise
    UserError if there are none."""
    stage = STAGES[cfg.stage].shown_by or cfg.stage
    of_stage = [node for node in nodes.values() if stage_to_type(node) == stage]
    requested = list[Node]()
    for node in of_stage:
        is_control = isinstance(node.config, SFT | Drawing) and node.config.control
        if not is_control:
            requested.append(node)
    if not requested:
        problem = f"stage={cfg.stage}: this configuration does not have the stage {cfg.stage}"
        raise UserError(f"{problem}. {way_to_stage(cfg, cfg.stage)}")
    return requested


def way_to_stage(cfg: Config, stage: str) -> str:
    """Return the sentence that tells why a run does not have a stage, or which setting adds it."""
    if stage == Role.control:
        return "Set control=true."
    if cfg.standalone:
        return cfg.standalone.way_to_models
    if not cfg.learns_from_pairs and stage in PREFERENCE_STAGES:
        return f"align={cfg.align} leaves preferences out. Set align=dpo."
    return STAGES[stage].absent or f"{cfg.label.option} does not need this stage."
