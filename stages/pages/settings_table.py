"""The settings that decide the result, from the manifests: compare them when two reports differ."""

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

from stages.config.choices import Align
from stages.config.installation import read_beside
from stages.config.stage_table import DRAWING, POLICY_STAGES
from stages.pages.control_name import CONTROL
from stages.pages.objectives import objective_of
from stages.store.manifest import Manifest

KEYS: dict[str, list[str]] = read_beside(__file__)
# roles of nodes that run a model
COMPUTING = ("sft", "sample", *POLICY_STAGES, "answer_policy", "eval")


def model_nodes(nodes: dict[str, Manifest], roles: Iterable[str]) -> dict[str, str]:
    """Return the name of every evaluated model's node, by role."""
    names = {manifest["fingerprint"]: name for name, manifest in reversed(nodes.items())}
    return {role: names[nodes["eval"]["inputs"][role]["fingerprint"]] for role in roles}


def learns(model: Manifest) -> bool:
    """Return True if the model's stage trained it: False for a base, and for SFT with `sft=none`."""
    return model["stage"] != "base" and bool(model["settings"].get("train", True))


def is_trained_elsewhere(nodes: Mapping[str, Manifest]) -> bool:
    """Return True if the policy of a run was trained elsewhere (`align=given`): its node has that name."""
    return Align.given in nodes


def subject(nodes: dict[str, Manifest], models: dict[str, str]) -> str:
    """Return a sentence that says what each model was trained on. `models`: title by role."""
    policy, title = nodes[model_nodes(nodes, models)["policy"]], models["policy"]
    if is_trained_elsewhere(nodes):
        return f"{title} was trained elsewhere, from {models['sft']}. Neither is trained here."
    if "other" in models:
        return f"{models['other']} and {title} are models without training here."
    before = models.get("sft", title)
    start = f"a model ({model(nodes['base'])}) without training here"
    if learns(nodes["sft"]):
        start = f"supervised fine-tuning: a model ({model(nodes['base'])}) trained on {learnt_from(nodes)}"
    if policy["stage"] in DRAWING:
        return f"{title} trains {before} further on its own answers ({rollouts(policy)}). {before} is {start}."
    if "unpaired" in policy["inputs"]:
        labeler = nodes["label"]["settings"]["labeler"]
        labelled = f"{policy['metrics']['completions']:,} answers, labelled one by one by {labeler}"
        return f"{title}, Kahneman-Tversky optimisation, trains {before} further on {labelled}. {before} is {start}."
    if "pairs" not in policy["inputs"]:
        return f"{title} is {start}."
    full = {
        "DPO": ", direct preference optimisation,",
        "SimPO": ", simple preference optimisation,",
    }.get(title, "")
    aim = f"to prefer chosen to rejected answers ({pairs(nodes['pairs'], nodes['label'])})"
    return f"{title}{full} trains {before} further {aim}. {before} is {start}."


def settings(
    nodes: dict[str, Manifest], titles: dict[str, str], seeds: list[int]
) -> dict[str, str]:
    """Return short descriptions of settings by name. `titles`: those of the models by role."""
    aligned = {
        titles[role]: nodes[n]
        for role, n in model_nodes(nodes, titles).items()
        if role != "control_pairs"
    }
    aligned = {title: m for title, m in aligned.items() if m["stage"] in POLICY_STAGES}
    models = " against ".join(model(nodes[role]) for role in ("base", "other") if role in nodes)
    values = {
        "model": models,
        "computed on": machines(nodes),
        "SFT": "none: the model is unchanged",
    }
    if learns(nodes["sft"]):
        values["SFT"] = f"{learnt_from(nodes)}; {keys(nodes['sft'])}"
    if "sample" in nodes:
        values["candidates"] = keys(nodes["sample"])
    if "pool" in nodes:
        values["candidates"] = nodes["pool"]["metrics"]["summary"]
    if by_pairs := next((title for title, m in aligned.items() if "pairs" in m["inputs"]), None):
        values["pairs"] = f"{pairs(nodes['pairs'], nodes['label'])}; {keys(nodes['pairs'])}"
    by_labels = next((title for title, m in aligned.items() if "unpaired" in m["inputs"]), None)
    if by_labels:
        learner = aligned[by_labels]
        values["labels"] = input_of(learner, "unpaired", nodes)["metrics"]["summary"]
    values |= {title: keys(m) for title, m in aligned.items()}
    if earlier := [role for role in nodes if re.fullmatch(r"pairs_\d+", role)]:
        values["rounds"] = (
            f"{len(earlier) + 1}; candidates, labels, pairs and {by_pairs} are those of the last round"
        )
        if by_labels:
            values["rounds"] += f"; {by_labels} learns from the first round's candidates alone"
    for role in titles:
        if role.startswith("control") and nodes[role]["stage"] == "sft":
            values[CONTROL if role == "control" else titles[role]] = keys(nodes[role])
    if "control_pairs" in nodes:
        values["control pairs"] = nodes["pairs_control"]["metrics"]["summary"]
    if seeds:
        values["seeds" if len(seeds) > 1 else "seed"] = ", ".join(map(str, seeds))
    return values


def input_of(node: Manifest, role: str, nodes: dict[str, Manifest]) -> Manifest:
    """Return the manifest of an input of a node, which is among these nodes."""
    fingerprint = node["inputs"][role]["fingerprint"]
    return next(each for each in nodes.values() if each["fingerprint"] == fingerprint)


def keys(manifest: Manifest) -> str:
    """Return the keys of a node's block that decide its result, as one types them: `learning_rate=3e-5, epochs=1`."""
    config = manifest["config"]
    stage = manifest["stage"]
    shown: list[str] = KEYS.get(stage) or objective_of(stage)["settings"]
    names = [key for key in shown if config.get(key) is not None]
    return ", ".join(f"{key}={as_typed(config[key])}" for key in names)


def model(base: Manifest) -> str:
    config, size = base["config"], f"{base['metrics']['parameters'] / 1e6:,.1f} M parameters"
    return f"{'random weights' if config['random_init'] else PurePath(config['path']).name}, {size}"


def machines(nodes: dict[str, Manifest]) -> str:
    computed = [nodes[role] for role in COMPUTING if role in nodes]
    devices = dict.fromkeys(
        str(m["metrics"].get("device") or m["device"]).upper() for m in computed
    )
    return f"{', '.join(devices)}; {', '.join(dict.fromkeys(m['processor'] for m in computed))}"


def learnt_from(nodes: dict[str, Manifest]) -> str:
    """Return the number of SFT's demonstrations and their origin."""
    if "select" not in nodes:
        return f"{nodes['data']['metrics']['examples'].get('sft', 0):,} demonstrations"
    rows, held_out = (
        nodes["select"]["metrics"]["examples"].get(split, 0) for split in ("sft", "validation")
    )
    own = (
        nodes["select"]["metrics"]["selected"]
        - held_out
        + nodes["data"]["metrics"]["examples"].get("validation", 0)
    )
    demonstrations = f"{rows - own:,} demonstrations, " if rows > own else ""
    return f"{demonstrations}{own:,} answers sampled from the base"


def pairs(manifest: Manifest, label: Manifest) -> str:
    """Return the number of pairs, and either their labeler and strategy or their file."""
    metrics = manifest["metrics"]
    how = f"labels by {label['metrics']['labeler']}, strategy {manifest['settings']['strategy']}"
    if "pool" not in label["inputs"]:
        how = f"from {PurePath(label['config']['path']).name}"
    return f"{metrics['pairs'] - metrics['held_out']:,} training pairs, {metrics['held_out']:,} held out; {how}"


def rollouts(manifest: Manifest) -> str:
    """Return the number of a training's own completions, and who scores them."""
    s, metrics = manifest["settings"], manifest["metrics"]
    labeler = s["label"]["labeler"]
    drawn = (
        f"{s['completions']} for each of {metrics['prompts'] - metrics['prompts_unseen']:,} prompts"
    )
    return f"{drawn}, temperature {s['temperature']:g}, {s['max_new_tokens']} tokens at most; scores by {labeler}"


def as_typed(value: Any) -> str:
    """Return a value as one types it on the command line: `3e-5`, `[sigmoid,sft]`."""
    if isinstance(value, list):
        return f"[{','.join(map(as_typed, value))}]"
    return f"{value:g}".replace("e-0", "e-") if isinstance(value, float) else str(value)
