"""The settings that decide what comes out, from the manifests: what two reports that differ should be read by."""

import re
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any

from stages.store.manifest import Manifest

COMPUTING = {"sft": "SFT", "sample": "candidates", "dpo": "DPO", "answer_policy": "answers", "eval": "evaluation"}


def model_nodes(nodes: dict[str, Manifest], roles: Iterable[str]) -> dict[str, str]:
    """The name of the node of every evaluated model, by role."""
    names = {manifest["fingerprint"]: name for name, manifest in reversed(nodes.items())}
    return {role: names[nodes["eval"]["inputs"][role]["fingerprint"]] for role in roles}


def learns(model: Manifest) -> bool:
    """Return whether the stage of a model trained it: a base is as it came, and so is an SFT under `sft=none`."""
    return model["stage"] != "base" and bool(model["settings"].get("train", True))


def subject(nodes: dict[str, Manifest], models: dict[str, str]) -> str:
    """Return what was trained on what, in a sentence to read a verdict with. `models`: role and title."""
    policy, title = nodes[model_nodes(nodes, models)["policy"]], models["policy"]
    if "other" in models:
        return f"{models['other']} and {title} are models as they came."
    start = f"{model(nodes['base'])}, {f'trained on {learnt_from(nodes)}' if learns(nodes['sft']) else 'as it came'}"
    if "pairs" not in policy["inputs"]:
        return f"{title} is {start}."
    learnt = pairs(nodes["pairs"], nodes["label"])
    return f"{title} is {models['sft']} trained further on pairs ({learnt}); {models['sft']} is {start}."


def settings(nodes: dict[str, Manifest], policy: Manifest, title: str, seeds: list[int]) -> dict[str, str]:
    """Names and values in a few words each. `policy`: the manifest of the policy, `title` its name."""
    models = " against ".join(model(nodes[role]) for role in ("base", "other") if role in nodes)
    told = {"model": models, "precision": precision(nodes), "computed on": machines(nodes)}
    told["SFT"] = sft(nodes["sft"], learnt_from(nodes))
    if "sample" in nodes:
        told["candidates"] = candidates(nodes["sample"])
    if "pool" in nodes:
        told["candidates"] = pool(nodes["pool"])
    if "pairs" in policy["inputs"]:
        told["pairs"] = pairs(nodes["pairs"], nodes["label"])
        told[title] = objective(policy)
    earlier = [role for role in nodes if re.fullmatch(r"pairs_\d+", role)]
    if earlier:
        told["rounds"] = f"{len(earlier) + 1}; candidates, labels, pairs and {title} are told of the last"
    if "control" in nodes:
        told["control"] = training(nodes["control"])
    if seeds:
        told["seeds" if len(seeds) > 1 else "seed"] = ", ".join(map(str, seeds))
    return told


def model(base: Manifest) -> str:
    config, size = base["config"], f"{base['metrics']['parameters'] / 1e6:,.1f} M parameters"
    if config["random_init"]:
        return f"random weights, {size}"
    return f"{PurePath(config['path']).name}, {size}"


def precision(nodes: dict[str, Manifest]) -> str:
    """`bf16`, or which stage computed in which."""
    found: dict[str, list[str]] = {}
    for role, name in COMPUTING.items():
        if role in nodes and (kind := nodes[role]["settings"].get("precision")):
            found.setdefault(kind, []).append(name)
    return next(iter(found)) if len(found) == 1 else "; ".join(f"{kind}: {', '.join(n)}" for kind, n in found.items())


def machines(nodes: dict[str, Manifest]) -> str:
    computed = [nodes[role] for role in COMPUTING if role in nodes]
    devices = dict.fromkeys(str(m["metrics"].get("device") or m["device"]).upper() for m in computed)
    return f"{', '.join(devices)}; {', '.join(dict.fromkeys(m['processor'] for m in computed))}"


def learnt_from(nodes: dict[str, Manifest]) -> str:
    """How many demonstrations SFT had, and whose."""
    if "select" not in nodes:
        return f"{nodes['data']['metrics']['examples'].get('sft', 0):,} demonstrations"
    rows, held_out = (nodes["select"]["metrics"]["examples"].get(split, 0) for split in ("sft", "validation"))
    own = nodes["select"]["metrics"]["selected"] - held_out + nodes["data"]["metrics"]["examples"].get("validation", 0)
    given = f"{rows - own:,} demonstrations, " if rows > own else ""
    return f"{given}{own:,} answers of the base's own"


def sft(manifest: Manifest, rows: str) -> str:
    if not manifest["settings"].get("train", True):
        return "none: the model as it came"
    return f"{rows}; {training(manifest)}"


def candidates(manifest: Manifest) -> str:
    s = manifest["settings"]
    if s.get("file"):
        return f"of {PurePath(manifest['config']['file']).name}"
    temperatures = ", ".join(map(short, s["temperatures"]))
    return (
        f"{s['candidates_per_prompt']} for each of {manifest['metrics']['prompts']:,} prompts, temperature "
        f"{temperatures}, {s['max_new_tokens']} tokens at most"
    )


def pool(manifest: Manifest) -> str:
    """How many of each source."""
    made = manifest["metrics"]
    told = ", ".join(f"{count:,} of {name}" for name, count in made["sources"].items())
    return f"{told}; for {made['prompts']:,} prompts"


def pairs(manifest: Manifest, label: Manifest) -> str:
    """How many, and how the two were chosen among candidates, or from which file they came."""
    made = manifest["metrics"]
    how = f"labels by {label['metrics']['labeler']}, strategy {manifest['settings']['strategy'].replace('_', ' ')}"
    if "pool" not in label["inputs"]:
        how = f"of {PurePath(label['config']['path']).name}"
    return f"{made['pairs'] - made['held_out']:,} trained, {made['held_out']:,} held out; {how}"


def objective(manifest: Manifest) -> str:
    """Loss and beta, where an objective has them, and its training."""
    s, told = manifest["settings"], []
    if losses := s.get("loss_type"):
        weights = s.get("loss_weights") or [1.0] * len(losses)
        parts = [loss if w == 1 else f"{short(w)} × {loss}" for loss, w in zip(losses, weights, strict=True)]
        told.append(f"loss {' + '.join(parts)}")
    if (beta := s.get("beta")) is not None:
        told.append(f"beta {short(beta)}")
    return ", ".join([*told, training(manifest)])


def training(manifest: Manifest) -> str:
    s = manifest["settings"]
    weights = "all weights" if s["adapter"] == "none" else f"{s['adapter']}, rank {s['lora']['rank']}"
    rows = ("packed row" if s.get("packing") else "row") + "s" * (s["batch_size"] > 1)
    epochs = "1 epoch" if s["epochs"] == 1 else f"{short(s['epochs'])} epochs"
    steps = manifest["metrics"].get("steps")
    counted = f"{steps:,} steps of {s['batch_size']} {rows}" if steps else f"batches of {s['batch_size']} {rows}"
    return f"learning rate {short(s['learning_rate'])}, {epochs}, {counted}, {weights}"


def short(number: Any) -> str:
    """`3e-5`, `0.1`, `2`"""
    if 0 < number < 0.01:
        digits, _, exponent = f"{number:e}".partition("e")
        return f"{float(digits):g}e{int(exponent)}"
    return f"{number:g}"
