"""The settings that decide the result, from the manifests: compare them when two reports differ."""

import re
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any

from stages.config.choices import SIMPO
from stages.config.schema import POLICY_STAGES
from stages.store.manifest import Manifest

COMPUTING = {"sft": "SFT", "sample": "candidates", "dpo": "DPO", "kto": "KTO", "grpo": "GRPO"}
COMPUTING |= {"answer_policy": "answers", "eval": "evaluation"}


def model_nodes(nodes: dict[str, Manifest], roles: Iterable[str]) -> dict[str, str]:
    """Return the name of every evaluated model's node, by role."""
    names = {manifest["fingerprint"]: name for name, manifest in reversed(nodes.items())}
    return {role: names[nodes["eval"]["inputs"][role]["fingerprint"]] for role in roles}


def learns(model: Manifest) -> bool:
    """Return True if the model's stage trained it: False for a base, and for SFT with `sft=none`."""
    return model["stage"] != "base" and bool(model["settings"].get("train", True))


def subject(nodes: dict[str, Manifest], models: dict[str, str]) -> str:
    """Return a sentence that says what each model was trained on. `models`: title by role."""
    policy, title = nodes[model_nodes(nodes, models)["policy"]], models["policy"]
    if "other" in models:
        return f"{models['other']} and {title} are models without training here."
    before, start = models.get("sft", title), f"a model ({model(nodes['base'])}) without training here"
    if learns(nodes["sft"]):
        start = f"supervised fine-tuning: a model ({model(nodes['base'])}) trained on {learnt_from(nodes)}"
    if policy["stage"] == "grpo":
        method = f"group-relative policy optimisation, trains {before} further on its own answers"
        return f"{title}, {method} ({rollouts(policy)}). {before} is {start}."
    if policy["stage"] == "kto":
        labeler = nodes["label"]["settings"]["labeler"]
        labelled = f"{policy['metrics']['completions']:,} answers, labelled one by one by {labeler}"
        return f"{title}, Kahneman-Tversky optimisation, trains {before} further on {labelled}. {before} is {start}."
    if "pairs" not in policy["inputs"]:
        return f"{title} is {start}."
    full = {"DPO": ", direct preference optimisation,", "SimPO": ", simple preference optimisation,"}.get(title, "")
    aim = f"to prefer chosen to rejected answers ({pairs(nodes['pairs'], nodes['label'])})"
    return f"{title}{full} trains {before} further {aim}. {before} is {start}."


def settings(nodes: dict[str, Manifest], policy: Manifest, title: str, seeds: list[int]) -> dict[str, str]:
    """Return short descriptions of settings by name. `policy`: the policy's manifest, `title`: its title."""
    models = " against ".join(model(nodes[role]) for role in ("base", "other") if role in nodes)
    values = {"model": models, "precision": precision(nodes), "computed on": machines(nodes)}
    values["SFT"] = sft(nodes["sft"], learnt_from(nodes))
    if "sample" in nodes:
        values["candidates"] = candidates(nodes["sample"])
    if "pool" in nodes:
        values["candidates"] = pool(nodes["pool"])
    if "pairs" in policy["inputs"]:
        values["pairs"] = pairs(nodes["pairs"], nodes["label"])
    if policy["stage"] == "grpo":
        values["completions"] = rollouts(policy)
    if policy["stage"] in POLICY_STAGES:
        values[title] = objective(policy)
    if earlier := [role for role in nodes if re.fullmatch(r"pairs_\d+", role)]:
        values["rounds"] = f"{len(earlier) + 1}; candidates, labels, pairs and {title} are those of the last round"
    if "control" in nodes:
        values["control"] = training(nodes["control"])
    if "control_pairs" in nodes:
        values["control pairs"] = nodes["pairs_control"]["metrics"]["summary"]
    if seeds:
        values["seeds" if len(seeds) > 1 else "seed"] = ", ".join(map(str, seeds))
    return values


def model(base: Manifest) -> str:
    config, size = base["config"], f"{base['metrics']['parameters'] / 1e6:,.1f} M parameters"
    return f"{'random weights' if config['random_init'] else PurePath(config['path']).name}, {size}"


def precision(nodes: dict[str, Manifest]) -> str:
    """Return the precision, `bf16`, or the stages by precision if they differ."""
    stages: dict[str, list[str]] = {}
    for role, name in COMPUTING.items():
        if role in nodes and (kind := nodes[role]["settings"].get("precision")):
            stages.setdefault(kind, []).append(name)
    return next(iter(stages)) if len(stages) == 1 else "; ".join(f"{k}: {', '.join(n)}" for k, n in stages.items())


def machines(nodes: dict[str, Manifest]) -> str:
    computed = [nodes[role] for role in COMPUTING if role in nodes]
    devices = dict.fromkeys(str(m["metrics"].get("device") or m["device"]).upper() for m in computed)
    return f"{', '.join(devices)}; {', '.join(dict.fromkeys(m['processor'] for m in computed))}"


def learnt_from(nodes: dict[str, Manifest]) -> str:
    """Return the number of SFT's demonstrations and their origin."""
    if "select" not in nodes:
        return f"{nodes['data']['metrics']['examples'].get('sft', 0):,} demonstrations"
    rows, held_out = (nodes["select"]["metrics"]["examples"].get(split, 0) for split in ("sft", "validation"))
    own = nodes["select"]["metrics"]["selected"] - held_out + nodes["data"]["metrics"]["examples"].get("validation", 0)
    demonstrations = f"{rows - own:,} demonstrations, " if rows > own else ""
    return f"{demonstrations}{own:,} answers sampled from the base"


def sft(manifest: Manifest, rows: str) -> str:
    return f"{rows}; {training(manifest)}" if learns(manifest) else "none: the model is unchanged"


def candidates(manifest: Manifest) -> str:
    s = manifest["settings"]
    if s.get("file"):
        return f"from {PurePath(manifest['config']['file']).name}"
    drawn = f"{s['candidates_per_prompt']} for each of {manifest['metrics']['prompts']:,} prompts"
    return f"{drawn}, temperature {', '.join(map(short, s['temperatures']))}, {s['max_new_tokens']} tokens at most"


def pool(manifest: Manifest) -> str:
    """Return the number of candidates of each source."""
    metrics = manifest["metrics"]
    counts = ", ".join(f"{count:,} of {name}" for name, count in metrics["sources"].items())
    return f"{counts}; for {metrics['prompts']:,} prompts"


def pairs(manifest: Manifest, label: Manifest) -> str:
    """Return the number of pairs, and either their labeler and strategy or their file."""
    metrics = manifest["metrics"]
    how = f"labels by {label['metrics']['labeler']}, strategy {manifest['settings']['strategy']}"
    if "pool" not in label["inputs"]:
        how = f"from {PurePath(label['config']['path']).name}"
    return f"{metrics['pairs'] - metrics['held_out']:,} training pairs, {metrics['held_out']:,} held out; {how}"


def rollouts(manifest: Manifest) -> str:
    """Return the number of a training's own completions, and who scores them."""
    s = manifest["settings"]
    labeler = "label.own" if "own" in s["label"] else s["label"]["labeler"]
    drawn = f"{s['completions']} for each of {manifest['metrics']['prompts']:,} prompts"
    limits = f"temperature {short(s['temperature'])}, {s['max_new_tokens']} tokens at most"
    return f"{drawn}, {limits}; scores by {labeler}"


def objective(manifest: Manifest) -> str:
    """Return the loss and beta of an objective, if it has them, and its training settings."""
    s, clauses = manifest["settings"], []
    if losses := s.get("loss_type"):
        losses = [losses] if isinstance(losses, str) else losses
        weights = s.get("loss_weights") or [1.0] * len(losses)
        parts = [loss if w == 1 else f"{short(w)} × {loss}" for loss, w in zip(losses, weights, strict=True)]
        clauses.append(f"loss {' + '.join(parts)}")
    if (beta := s.get("beta")) is not None:
        clauses.append(f"beta {short(beta)}")
    if losses == [SIMPO]:
        clauses.append(f"margin {short(s.get('simpo_gamma', beta / 2))}")
    return ", ".join([*clauses, training(manifest)])


def training(manifest: Manifest) -> str:
    s = manifest["settings"]
    weights = "all weights" if s["adapter"] == "none" else f"{s['adapter']}, rank {s['lora']['rank']}"
    rows = ("packed row" if s.get("packing") else "row") + "s" * (s["batch_size"] > 1)
    epochs = "1 epoch" if s["epochs"] == 1 else f"{short(s['epochs'])} epochs"
    steps = manifest["metrics"].get("steps")
    counted = f"{steps:,} steps of {s['batch_size']} {rows}" if steps else f"batches of {s['batch_size']} {rows}"
    return f"learning rate {short(s['learning_rate'])}, {epochs}, {counted}, {weights}"


def short(number: Any) -> str:
    """Return a number in few characters: `3e-5`, `0.1`, `2`."""
    if 0 < number < 0.01:
        digits, _, exponent = f"{number:e}".partition("e")
        return f"{float(digits):g}e{int(exponent)}"
    return f"{number:g}"
