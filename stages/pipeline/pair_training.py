"""The nodes that train on pairs: DPO in rounds, and the controls that are trained beside it."""

from dataclasses import replace

from stages.config import trl_arguments
from stages.config.blocks.training import SFT
from stages.config.choices import Adapter, DPOReference
from stages.config.schema import Config, Target
from stages.pipeline.subgraphs import MakeNode, wire_judged, wire_judgements
from stages.store.node import Graph, Node


def wire_dpo(cfg: Config, make_node: MakeNode, base: Node, data: Node, sft: Node, scored_by: Graph) -> Graph:
    """Return the nodes of every round of DPO, and of a reward model on the last pairs if that is the target."""
    nodes, policy = Graph(), sft
    earlier = list[Node]()  # the labels of earlier rounds; more than one round is iterative DPO
    for suffix in round_suffixes(cfg):
        models = {"base": base, "sft": sft}
        judged, round_nodes = wire_judged(cfg, make_node, earlier, policy, data, models, scored_by)
        earlier.append(judged)
        round_nodes |= wire_judgements(cfg, make_node, judged)
        pairs = round_nodes["pairs"]
        round_nodes |= wire_pair_training(cfg, make_node, base, sft, policy, pairs)
        policy = round_nodes["dpo"]
        nodes |= {f"{name}{suffix}": node for name, node in round_nodes.items()}
    if cfg.stage == Target.reward and not cfg.reward.source.path:
        nodes["reward"] = make_node("reward", cfg.reward, policy=sft, judged=judged, pairs=pairs)
    return nodes


def wire_pair_training(cfg: Config, make_node: MakeNode, base: Node, sft: Node, policy: Node, pairs: Node) -> Graph:
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


def wire_control_pairs(cfg: Config, make_node: MakeNode, base: Node, sft: Node, nodes: Graph) -> Graph:
    """Return the nodes of DPO on the control pairs of each round's candidates, round by round."""
    policy, new_nodes = sft, Graph()
    for suffix in round_suffixes(cfg):
        block, inputs = replace(cfg.pairs, control=cfg.control_pairs), {"pairs": nodes[f"pairs{suffix}"]}
        pairs = make_node("pairs", block, judged=nodes[f"label{suffix}"], **inputs)
        trained = wire_pair_training(cfg, make_node, base, sft, policy, pairs)
        policy = trained.pop("dpo")
        new_nodes |= {f"{name}_control{suffix}": node for name, node in {"pairs": pairs, **trained}.items()}
        new_nodes[f"control_pairs{suffix}"] = policy
    return new_nodes


def control_block(cfg: Config) -> SFT:
    """Return the block of the control: SFT on the chosen completions alone, with DPO's settings and order of rows."""
    dpo_settings = {name: getattr(cfg.dpo, name) for name in vars(cfg.sft) if name in vars(cfg.dpo)}
    arguments = trl_arguments.allowed_arguments("sft")
    dpo_settings["trainer"] = {key: cfg.dpo.trainer[key] for key in cfg.dpo.trainer if key in arguments}
    control_settings = {"train": True, "learning_rate": cfg.control_learning_rate, "packing": False, "control": True}
    # Without evaluations its last step is published, as DPO's is, and not the best by validation.
    return replace(cfg.sft, **dpo_settings | control_settings | {"evaluations": 0})


def round_suffixes(cfg: Config) -> list[str]:
    """Return the end of the names of each round's nodes. The last round's nodes have the plain names."""
    return [f"_{number}" for number in range(1, cfg.rounds)] + [""]
