"""The graph of the whole pipeline: the nodes of a run, and the inputs of each. Start reading here.

Each stage is one function, `run(cfg, inputs, out) -> metrics`, in `stages/STAGE.py`. `cfg` is the stage's block of the
configuration, `inputs` maps the role of each input to its folder, and `out` is the folder that the stage fills.
A node is one such computation: a stage, its block and its input nodes. Their hash is the node's fingerprint, the name
of the node's folder in the store. This file only describes nodes. `build.py` runs those that the store does not have.

    base, data → sft → sample → label → pairs → reference, dpo      a further round of DPO samples from this DPO model
    base, data → sft → sample → label → unpaired → reference, kto   with `align=kto`: completions one by one
    base, data → sft → grpo                                         with `align=grpo`: `label` scores its completions
    `arms` trains further objectives from the same SFT, which the evaluation answers with beside the policy
    base, sft, dpo → answer → eval → report                         with `eval.judged`, versus and label before eval"""

from collections.abc import Callable
from dataclasses import fields, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from stages.config.blocks.arguments import SFTArguments
from stages.config.blocks.data import Data, Form, Source
from stages.config.blocks.labels import Label, PreferenceFile, Verifier
from stages.config.blocks.models import Model
from stages.config.blocks.runtimes import SamplingRuntime
from stages.config.blocks.sampling import HF, Drawn, OpenAI
from stages.config.blocks.training import OBJECTIVES, SFT, ScoredGRPO, Training
from stages.config.choices import Adapter, Align, Demonstrations, DPOReference, Role, Split
from stages.config.errors import UserError
from stages.config.installation import read_beside
from stages.config.schema import Config, Target
from stages.pipeline.evaluation_graph import WAITING, other_model_block, wire_evaluation
from stages.pipeline.provenance import target_stage
from stages.pipeline.subgraphs import (
    MakeNode,
    set_reading,
    wire_judged,
    wire_judgements,
    wire_labels,
    wire_sources,
)
from stages.store import source_files
from stages.store.node import Built, Graph, Node
from stages.store.sealed_json import load_json, require_keys
from stages.store.source_files import locate

# The version of each stage is part of its nodes' fingerprints. Raise it when the stage computes something else.
VERSIONS = {
    "base": 7,
    "source": 16,
    "data": 14,
    "select": 11,
    "sft": 18,
    "sample": 15,
    "pool": 3,
    "label": 21,
}
VERSIONS |= {
    "pairs": 11,
    "unpaired": 3,
    "reference": 10,
    "dpo": 13,
    "kto": 4,
    "grpo": 11,
    "reward": 4,
}
VERSIONS |= {"answer": 15, "versus": 6, "benchmark": 3, "eval": 33, "examine": 1, "report": 31}

# The stage to suggest after each stage, on the command line.
NEXT = {
    "base": "sft",
    "source": "data",
    "data": "sft",
    "select": "sft",
    "sample": "label",
    "pool": "label",
}
NEXT |= {
    "label": "pairs",
    "pairs": "reference",
    "reference": "dpo",
    "unpaired": "kto",
    "answer": "eval",
}
NEXT |= {"versus": "eval", "benchmark": "eval", "eval": "report"}
NEXT |= {objective.name: objective.next for objective in OBJECTIVES.values()}
INSTEAD = {"dpo": "kto", "kto": "grpo"}  # what a run trains that does not train this

# by stage, the settings that add nodes of it to the graph
MISSING_STAGES: dict[str, str] = read_beside(__file__)
# Stages that align=none and align=grpo leave out.
PREFERENCE_STAGES = ["sample", "pool", "label", "pairs", "unpaired", "reference", "dpo"]
# Data that only the evaluation reads, beside its suites, with the setting that lists the sources of each.
EVALUATION_SETS = {
    "outside": "outside",
    "judged_prompts": "eval.judged.source",
    "retained": "eval.retention",
}
# keys of sampling that demonstrations have of their own
OF_SELECT = ("candidates_per_prompt", "temperatures", "max_new_tokens")
NOT_OF_SELECT = ("prompts", "prompts_per_round", "pool")
ADAPTER = "adapter_config.json"  # of peft, in the folder of an adapter

SEEDED_BLOCKS = ("sample", *OBJECTIVES)  # may have a seed; its default is the run's seed

# from block and digest cache to pinned block and digests
Pin = Callable[[Any, Path], tuple[Any, dict[str, str]]]


def wire_graph(
    cfg: Config, cache: Path, pin: Pin = source_files.pin, is_built: Built = lambda node: True
) -> Graph:
    """Return all nodes of a configuration by name: the roots, a chain per seed, the evaluations and the report. `pin`
    replaces files and hub revisions in a block by fixed versions, and returns the files' digests; `cache` is the file
    that remembers these. `is_built` tells if a node is in the store: the report waits for no judgements of people."""

    def make_node(stage: str, block: Any, **inputs: Node) -> Node:
        block, digests = pin(set_reading(block, cfg.data), cache)
        not_neutral = block.not_neutral if isinstance(block, Training) else {}
        return Node(stage, VERSIONS[stage], block, inputs, digests, not_neutral)

    if cfg.without_model:
        return wire_imported_candidates(cfg, make_node)
    data = cfg.data
    if cfg.selects_by_label:
        data = replace(data, sources=[replace(s, answered_later=True) for s in data.sources])
    model = replace(cfg.model, key="examine.before") if cfg.align is Align.given else cfg.model
    roots = {"base": make_node("base", model), **wire_sources("data", data, make_node)}
    for name, setting in EVALUATION_SETS.items():  # they change no training
        if listed := attrgetter(setting)(cfg):
            split, form = ("sft", Form()) if name == "retained" else ("test", cfg.data.form)
            sources = [replace(source, splits={split: 1.0}) for source in listed]
            block = Data(seed=0, sources=sources, max_bad=cfg.data.max_bad, form=form, of=setting)
            roots = {**wire_sources(name, block, make_node), **roots}
    if cfg.eval.suites.names:
        block = Data(seed=0, max_bad=cfg.data.max_bad, of="eval", suites=cfg.eval.suites)
        roots = {"suites": make_node("data", block), **roots}
    if cfg.selects:  # all seeds share these demonstrations, as they share the base model
        roots |= wire_demonstrations(cfg, make_node, roots["base"], roots["data"])
    seed_nodes = Graph()
    for seed in cfg.seeds:
        chain = wire_chain(with_seed(cfg, seed), make_node, is_built, **roots)
        seed_nodes |= {f"{name}_seed_{seed}": node for name, node in chain.items()}
    nodes = seed_nodes | roots | wire_chain(cfg, make_node, is_built, **roots)
    policies = [
        node.inputs["policy"].fingerprint for node in nodes.values() if node.stage == "eval"
    ]
    if len({*policies}) < len(policies):
        own = ", ".join(
            f"{name}.seed" for name, block in seeded_blocks(cfg).items() if block.seed != cfg.seed
        )
        problem = (
            f"two of the runs make one policy, because its stages have seeds of their own: {own}"
        )
        raise UserError(f"seeds={cfg.seeds}: {problem}. Leave one of these out, or set seeds=[].")
    reported = {name: node for name, node in nodes.items() if not name.startswith(WAITING)}
    return nodes | {"report": make_node("report", cfg.report, **reported)}


def wire_imported_candidates(cfg: Config, make_node: MakeNode) -> Graph:
    """Return the nodes of a run that reads its candidates, or labelled candidates, from a file. It needs no model."""
    if cfg.label.brings_pool:
        return wire_judgements(cfg, make_node, make_node("label", cfg.label))
    pool = make_node("sample", cfg.sample)
    judged, label_nodes = wire_labels(cfg.label, make_node, pool)
    return {"sample": pool} | label_nodes | wire_judgements(cfg, make_node, judged)


def wire_demonstrations(cfg: Config, make_node: MakeNode, base: Node, data: Node) -> Graph:
    """Return the nodes that select demonstrations for SFT from the base model's own answers. The base model answers
    the prompts that have no reference answer. A labeler scores its answers, and `select` keeps the best. By default,
    the labeler is the verifier, since generated requests carry checks, and no endpoint is asked. With
    `sft.demonstrations=selected`, the candidates' sampler and labeler work here too."""
    label: Label = cfg.label if cfg.selects_by_label else Verifier(block="select")
    sample = replace(demonstration_sampler(cfg), split=Split.sft)
    for key in OF_SELECT:
        setattr(sample, key, vars(cfg.select)[key])
    for key in NOT_OF_SELECT:
        setattr(sample, key, None)
    pool = make_node("sample", sample, policy=base, data=data)
    judged = make_node("label", label, pool=pool)
    select = make_node("select", cfg.select, judged=judged, data=data)
    return {"sample_base": pool, "label_base": judged, "select": select}


def demonstration_sampler(cfg: Config) -> Drawn:
    """Return the block of the sampler that answers the prompts of demonstrations. Those of a file are other prompts."""
    if not isinstance(cfg.sample, Drawn):
        runtime = SamplingRuntime(processes=cfg.launch.processes, nodes=cfg.launch.nodes)
        return HF(precision=cfg.precision, seed=cfg.seed, runtime=runtime)
    if isinstance(cfg.sample, OpenAI) and not cfg.selects_by_label:
        return cfg.sample.drawn_as(HF, max_failed=None)
    return cfg.sample


def wire_chain(
    cfg: Config, make_node: MakeNode, is_built: Built, base: Node, data: Node, **roots: Node
) -> Graph:
    """Return the nodes of one seed: SFT, a reward model, the objectives that train it further, the control and the
    evaluation. `roots` are further data by name: SFT learns from `select`, the selected demonstrations, if there are
    any, else from `data`, and the evaluation reads `EVALUATION_SETS` and `suites`."""
    block = cfg.sft
    if isinstance(block, SFT):
        demonstrations = Demonstrations.selected if "select" in roots else Demonstrations.given
        block = replace(block, demonstrations=demonstrations)
    given = {"given": make_node("base", given_model(cfg))} if cfg.align is Align.given else {}
    sft = make_node("sft", block, base=base, data=roots.get("select", data), **given)
    nodes = {"sft": sft}
    sets = {"data": data} | {n: roots[n] for n in roots if n in (*EVALUATION_SETS, "suites")}
    if cfg.reward.source.path:
        nodes |= wire_reward_model(cfg, make_node, sft)
    reward = {"reward": nodes["reward"]} if "reward" in nodes else {}
    models: Graph = {Role.base: base, Role.sft: sft}
    if cfg.align is Align.none:
        if cfg.sft.train:
            models = {Role.base: base, Role.policy: sft}
        else:
            # nothing is trained: the evaluation compares the given model with another folder or hub model
            nodes["other"] = make_node("base", other_model_block(cfg, cfg.eval.judged.folders[0]))
            models = {Role.other: nodes["other"], Role.policy: sft}
        return nodes | wire_evaluation(cfg, make_node, models, sets, reward, is_built)
    scored_by = reward if cfg.label.by_reward else {}
    wire = {
        Align.dpo: wire_dpo,
        Align.kto: wire_kto,
        Align.grpo: wire_grpo,
        Align.given: wire_given,
    }
    for align in cfg.objectives:
        nodes |= wire[align](cfg, make_node, base, data, sft, scored_by)
    if cfg.control:
        nodes |= wire_control(cfg, make_node, sft, nodes)
        models[Role.control] = nodes["control"]
    if cfg.control_pairs:
        nodes |= wire_control_pairs(cfg, make_node, base, sft, nodes)
        models[Role.control_pairs] = nodes["control_pairs"]
    models |= {arm: nodes[arm] for arm in cfg.arms} | {Role.policy: nodes[cfg.align]}
    if cfg.align is Align.given:
        del models[Role.base]  # its weights are those of the model before
    held_out = {cfg.label_block: nodes[cfg.label_block]} if cfg.by_labels else {}
    lineage = {node.fingerprint: node for model in models.values() for node in model.lineage}
    of_labels = (
        n
        for n in lineage.values()
        if n.stage in ("pairs", "unpaired") and n not in held_out.values()
    )
    sets |= held_out | {f"{node.stage}_{i}": node for i, node in enumerate(of_labels, 1)}
    policies = [nodes[name] for suffix in round_suffixes(cfg) if (name := f"dpo{suffix}") in nodes]
    rounds = [sft, *policies] if len(policies) > 1 else []
    nodes |= wire_evaluation(cfg, make_node, models, sets, reward, is_built, *rounds)
    if cfg.align is Align.given:
        nodes["examine"] = wire_examination(cfg, make_node, nodes)
    return nodes


def wire_dpo(
    cfg: Config, make_node: MakeNode, base: Node, data: Node, sft: Node, scored_by: Graph
) -> Graph:
    """Return the nodes of every round of DPO, and of a reward model on the last pairs if that is the target."""
    nodes, policy = Graph(), sft
    earlier = list[Node]()  # the labels of earlier rounds; more than one round is iterative DPO
    for suffix in round_suffixes(cfg):
        judged, round_nodes = wire_judged(
            cfg, make_node, earlier, policy, data, {"base": base, "sft": sft}, scored_by
        )
        earlier.append(judged)
        round_nodes |= wire_judgements(cfg, make_node, judged)
        pairs = round_nodes["pairs"]
        round_nodes |= wire_pair_training(cfg, make_node, base, sft, policy, pairs)
        policy = round_nodes["dpo"]
        nodes |= {f"{name}{suffix}": node for name, node in round_nodes.items()}
    if cfg.stage == Target.reward and not cfg.reward.source.path:
        nodes["reward"] = make_node("reward", cfg.reward, policy=sft, judged=judged, pairs=pairs)
    return nodes


def wire_pair_training(
    cfg: Config, make_node: MakeNode, base: Node, sft: Node, policy: Node, pairs: Node
) -> Graph:
    """Return the nodes that train a policy on pairs: the reference, unless the loss needs none, and DPO."""
    # DPO with a continued adapter trains the SFT's LoRA, whose frozen weights are those of the base model.
    inputs = {"frozen": base} if cfg.dpo.adapter is Adapter.continued else {}
    nodes = Graph()
    if not cfg.dpo.reference_free:
        scoring = replace(cfg.reference, weights=cfg.dpo.start_weights, forward=cfg.dpo.forward)
        model = policy if cfg.dpo.reference is DPOReference.previous else sft
        nodes["reference"] = make_node("reference", scoring, reference=model, pairs=pairs)
    return nodes | {"dpo": make_node("dpo", cfg.dpo, policy=policy, pairs=pairs, **nodes, **inputs)}


def wire_control(cfg: Config, make_node: MakeNode, sft: Node, nodes: Graph) -> Graph:
    """Return the nodes of the control: SFT on the chosen completions of each round's pairs, round by round."""
    control, new_nodes = sft, Graph()
    for suffix in round_suffixes(cfg):
        chosen = make_node("select", cfg.select, pairs=nodes[f"pairs{suffix}"])
        control = make_node("sft", control_block(cfg), base=control, data=chosen)
        new_nodes |= {f"select_control{suffix}": chosen, f"control{suffix}": control}
    return new_nodes


def wire_control_pairs(
    cfg: Config, make_node: MakeNode, base: Node, sft: Node, nodes: Graph
) -> Graph:
    """Return the nodes of DPO on the control pairs of each round's candidates, round by round."""
    policy, new_nodes = sft, Graph()
    for suffix in round_suffixes(cfg):
        block = replace(cfg.pairs, control=cfg.control_pairs)
        inputs = {"pairs": nodes[f"pairs{suffix}"]}
        pairs = make_node("pairs", block, judged=nodes[f"label{suffix}"], **inputs)
        trained = wire_pair_training(cfg, make_node, base, sft, policy, pairs)
        policy = trained.pop("dpo")
        new_nodes |= {
            f"{name}_control{suffix}": node for name, node in {"pairs": pairs, **trained}.items()
        }
        new_nodes[f"control_pairs{suffix}"] = policy
    return new_nodes


def control_block(cfg: Config) -> SFT:
    """Return the block of the control: SFT on the chosen completions alone, with DPO's settings and order of rows."""
    block = cfg.sft if isinstance(cfg.sft, SFT) else SFT(template=cfg.sft.template)
    dpo_settings = {name: vars(cfg.dpo)[name] for name in vars(block) if name in vars(cfg.dpo)}
    of_sft = vars(SFTArguments()).keys() & vars(cfg.dpo.trainer).keys()
    dpo_settings["trainer"] = SFTArguments(**{key: vars(cfg.dpo.trainer)[key] for key in of_sft})
    control_settings = {
        "learning_rate": cfg.control_learning_rate,
        "packing": False,
        "control": True,
    }
    # Without evaluations its last step is published, as DPO's is, and not the best by validation.
    return replace(block, **dpo_settings | control_settings | {"evaluations": 0})


def round_suffixes(cfg: Config) -> list[str]:
    """Return the end of the names of each round's nodes. The last round's nodes have the plain names."""
    return [f"_{number}" for number in range(1, cfg.rounds)] + [""]


def wire_grpo(
    cfg: Config, make_node: MakeNode, base: Node, data: Node, sft: Node, scored_by: Graph
) -> Graph:
    """Return the node of GRPO, whose own completions `label` scores. `scored_by`: a reward model of this run."""
    label = replace(cfg.label, audit=None, known=None)  # both are of a pool, which GRPO has not
    block = ScoredGRPO(**vars(cfg.grpo), label=label)
    return {"grpo": make_node("grpo", block, policy=sft, data=data, **scored_by)}


def wire_kto(
    cfg: Config, make_node: MakeNode, base: Node, data: Node, sft: Node, scored_by: Graph
) -> Graph:
    """Return the nodes of KTO. Beside DPO it reads the first round's labels. `scored_by`: a reward model."""
    judged, nodes = wire_judged(
        cfg, make_node, [], sft, data, {"base": base, "sft": sft}, scored_by
    )
    unpaired = make_node("unpaired", cfg.unpaired, judged=judged)
    scoring = replace(cfg.reference, weights=cfg.kto.start_weights)
    reference = make_node("reference", scoring, reference=sft, unpaired=unpaired)
    kto = make_node("kto", cfg.kto, policy=sft, unpaired=unpaired, reference=reference)
    if cfg.by_pairs:
        return {"unpaired_kto": unpaired, "reference_kto": reference, "kto": kto}
    return nodes | {"label": judged, "unpaired": unpaired, "reference": reference, "kto": kto}


def wire_given(
    cfg: Config, make_node: MakeNode, base: Node, data: Node, sft: Node, scored_by: Graph
) -> Graph:
    """Return the nodes of a policy that was trained elsewhere, under its own template, and of preferences. All of them
    are held out, if no control is trained on them."""
    judged, nodes = wire_judged(
        cfg, make_node, [], sft, data, {"base": base, "sft": sft}, scored_by
    )
    pairs = cfg.pairs if cfg.control else replace(cfg.pairs, validation_fraction=1.0)
    nodes |= wire_judgements(replace(cfg, pairs=pairs), make_node, judged)
    found = sft.inputs["given"]
    given = make_node("sft", cfg.sft, base=found, data=data, given=base)
    return nodes | {"found": found, "given": given}


def wire_examination(cfg: Config, make_node: MakeNode, nodes: Graph) -> Node:
    """Return the node that looks for faults in a policy that was trained elsewhere."""
    block = replace(cfg.examine, strict=False)
    inputs = {name: nodes[name] for name in ("sft", "given", "pairs", "eval")}
    return make_node(
        "examine", block, base=nodes["sft"].inputs["base"], found=nodes["found"], **inputs
    )


def given_model(cfg: Config) -> Model:
    """Return the block of a model that was trained elsewhere. An adapter stands on the model that it names, if that is
    on this machine, else on the model before."""
    path, key = str(cfg.examine.model), "examine.model"
    place = locate(path, key)
    if place is None or not (place / ADAPTER).is_file():
        return Model(path, None, key=key)
    named = load_json(place / ADAPTER, require_keys()).get("base_model_name_or_path")
    is_here = named is not None and Path(named).is_dir()
    return Model(named if is_here else cfg.model.path, None, adapter=path, key=key)


def wire_reward_model(cfg: Config, make_node: MakeNode, sft: Node) -> Graph:
    """Return the nodes of a reward model trained on `reward.source`, preferences that DPO does not train on."""
    source, label_keys = cfg.reward.source, {key.name for key in fields(PreferenceFile)}
    source_settings = {
        key.name: getattr(source, key.name) for key in fields(Source) if key.name in label_keys
    }
    label_block = PreferenceFile(
        max_failed=cfg.label.max_failed, block="reward.source", **source_settings
    )
    judged = make_node("label", label_block)
    pairs = make_node("pairs", replace(cfg.reward.pairs, key="reward.pairs"), judged=judged)
    reward = make_node("reward", cfg.reward, policy=sft, judged=judged, pairs=pairs)
    return {"label_reward": judged, "pairs_reward": pairs, "reward": reward}


def with_seed(cfg: Config, seed: int) -> Config:
    """Return the configuration with another seed. A stage whose seed differs from the run's keeps its seed."""
    blocks = {name: replace(block) for name, block in seeded_blocks(cfg).items()}
    for block in blocks.values():
        block.seed = seed if block.seed == cfg.seed else block.seed
    return replace(cfg, seed=seed, **blocks)


def seeded_blocks(cfg: Config) -> dict[str, Any]:
    """Return the blocks with a seed of this run."""
    blocks = {name: vars(cfg)[name] for name in SEEDED_BLOCKS}
    return {name: block for name, block in blocks.items() if "seed" in vars(block)}


def requested_nodes(cfg: Config, nodes: Graph) -> list[Node]:
    """Return the nodes that `stage` asks for. `stage=sample` and `stage=label` ask for preferences, without
    demonstrations and compared answers; `stage=sft` not for the control, which is trained after DPO."""
    # the page shows what an examination found
    stage = Target.report if cfg.stage == Target.examine else cfg.stage
    of_stage = [node for node in nodes.values() if target_stage(node) == stage]
    requested = [
        node for node in of_stage if not (isinstance(node.config, SFT) and node.config.control)
    ]
    if not requested:
        way_out = way_to_stage(cfg, cfg.stage)
        raise UserError(
            f"stage={cfg.stage}: this configuration does not have the stage {cfg.stage}. {way_out}"
        )
    return requested


def way_to_stage(cfg: Config, stage: str) -> str:
    """Return the sentence that tells how a run gets a stage that it does not have."""
    if not cfg.by_pairs and stage in PREFERENCE_STAGES:
        return f"align={cfg.align} leaves preferences out. Set align=dpo."
    return MISSING_STAGES.get(stage, f"label={cfg.label.labeler} does not need this stage.")
