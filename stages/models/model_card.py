"""The model card (README.md) of published weights: origin, training steps, results, use, and code that loads them.

A card continues the card of the model from which training started: base and steps accumulate."""

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import metadata_load
from jinja2 import Template

from stages.config.blocks.training import Training, Untrained
from stages.config.choices import Split
from stages.config.errors import visible
from stages.models.base_licence import (
    copy_licence_files,
    duties,
    licence_message,
    read_licence,
)
from stages.store import licences
from stages.store.manifest import COMMIT, Manifest, manifest_of
from stages.store.numbers import signed
from stages.store.records import Pair, stream
from stages.store.sealed_json import load_json, require_keys

CARD = Path(__file__).with_name("model_card.md.jinja")
STEP = "1. "  # Markdown numbers the items of a list


def write_card(
    model: Path, cfg: Training | Untrained, inputs: dict[str, Path], figures: dict[str, Any]
) -> None:
    """Write `README.md` into a model folder that has its contract, and copy the files of the base's licence there.
    `figures` are the stage's measurements."""
    manifests = {role: manifest_of(folder) for role, folder in inputs.items()}
    is_trained = isinstance(cfg, Training)
    if not is_trained:  # its data was read, but nothing learnt from it
        manifests = {"base": manifests["base"]}
    header, steps = read_earlier_steps(manifests, inputs)
    start = inputs["base" if "base" in manifests else "policy"] / "model"
    copy_licence_files(start, model)
    licence = read_licence(start)
    objective = cfg.objective
    header |= licence | {
        "library_name": "transformers",
        "pipeline_tag": "text-classification" if objective.scores else "text-generation",
        "tags": ["plumbline", "trl", objective.name] if is_trained else ["plumbline"],
    }
    contract = load_json(model / "contract.json", require_keys("end_of_turn"))
    card = Template(CARD.read_text(encoding="utf-8"), trim_blocks=True).render(
        header=yaml.safe_dump(header),
        base=header.get("base_model", "the base below"),
        title=model_name(objective.name, model.parent.stem, licence),
        steps=[*steps, describe_step(model.parent.stem, cfg, manifests, inputs, figures)],
        cfg=cfg,
        settings=vars(cfg),
        is_trained=is_trained,
        figures=figures,
        signed=signed,
        scores=objective.scores,
        end_of_turn=contract["end_of_turn"]["token"],
        licence=licence_message(licence),
    )
    (model / "README.md").write_text(visible(card, "\n\t"), encoding="utf-8")


def model_name(stage: str, fingerprint: str, licence: dict[str, Any]) -> str:
    """Return the name of a published model, which begins as the licence of its base demands."""
    begins = duties(licence).get("begins", "")
    return f"{begins} Plumbline {stage} {fingerprint}".strip()


def read_earlier_steps(
    manifests: dict[str, Manifest], inputs: dict[str, Path]
) -> tuple[dict[str, Any], list[str]]:
    """Return header and steps of the policy's card, or of the base."""
    base = manifests.get("base")
    if base and base["stage"] == "base":
        header = {"base_model": base["config"]["path"]} if is_pinned(base["config"]) else {}
        datasets = [source["path"] for source in sources_of(manifests) if is_pinned(source)]
        if datasets:
            header["datasets"] = datasets
        name = source_name(base["config"])
        return header, [f"{STEP}`base {base['fingerprint']}`: {name}, {base['metrics']['summary']}"]
    card = inputs["base" if base else "policy"] / "model" / "README.md"
    if not card.exists():  # an SFT checkpoint of the user's, not trained here
        return {}, []
    lines = card.read_text(encoding="utf-8").splitlines()
    return metadata_load(card) or {}, [line for line in lines if line.startswith(STEP)]


def describe_step(
    fingerprint: str,
    cfg: Training | Untrained,
    manifests: dict[str, Manifest],
    inputs: dict[str, Path],
    figures: dict[str, Any],
) -> str:
    """Return the line on a training: its node, those that it was made from, and its data."""
    objective = cfg.objective.name
    split = Split.preference if objective == "grpo" else Split.sft
    if isinstance(cfg, Untrained):
        data = "not trained here"
    elif "pairs" in manifests:
        data = pairs_message(manifests["pairs"], inputs["pairs"])
    elif "unpaired" in manifests:
        data = f"single completions, {manifests['unpaired']['metrics']['summary']}"
    else:
        data = data_message(manifests, split)
    made_from = ", ".join(f"`{m['stage']} {m['fingerprint']}`" for m in manifests.values())
    data = " ".join(data.split())  # names from a file begin no line of their own
    step = f"{STEP}`{objective} {fingerprint}` <- {made_from}: {data}"
    if "template" in figures:
        step += f". {figures['template']}"
    return step


def pairs_message(manifest: Manifest, folder: Path) -> str:
    """Describe pairs in one line. `folder`: of the node that made them."""
    pairs = manifest["metrics"]
    source = ""
    first_pair = next(stream(folder / "pairs.parquet", Pair))
    if first_pair.labeler == "dataset":
        # the pairs' file, or the models that wrote the answers
        source = f" of {first_pair.chosen_policy}"
        if "policies" in pairs:
            authors = [
                f"{name} ({uses['chosen']:,} chosen, {uses['rejected']:,} rejected)"
                for name, uses in pairs["policies"].items()
            ]
            source = f" of {', '.join(authors)}"
    return f"preference pairs{source}, {pairs['summary']}{licences.provenance_message(pairs)}"


def data_message(manifests: dict[str, Manifest], split: Split) -> str:
    """Describe the training data in one line. `split`: the one of `data` that was trained on."""
    data = manifests["data"]
    metrics = data["metrics"]
    rows = metrics["examples"].get(split, 0)
    held_out = metrics["examples"].get(Split.validation, 0)
    stated = licences.provenance_message(metrics)
    sources = list[str]()
    tasks = data["config"].get("tasks") or {}
    if data["stage"] == "select" and "pairs" in data["inputs"]:
        sources.append("chosen completions of pairs")
    elif data["stage"] == "select":
        mended = f"{metrics['mended']:,} of them mended"
        sources.append(f"{metrics['selected']:,} of a model's own answers, {mended}")
    else:
        if tasks.get(split) or tasks.get(f"open_{split}"):
            sources.append("generated instructions with checks")
        sources += map(source_name, sources_of(manifests, split))
    return f"{', '.join(sources)} ({rows:,} examples, {held_out:,} more held out{stated})"


def sources_of(manifests: dict[str, Manifest], split: Split = Split.sft) -> list[dict[str, Any]]:
    """Return the sources that contribute rows to a split."""
    if "data" not in manifests:
        return []
    data = manifests["data"]
    sources = data["config"].get("sources", [])
    counts = data["metrics"].get("sources", [])
    read = zip(sources, counts, strict=False)
    return [source for source, count in read if count["examples"].get(split)]


def is_pinned(source: dict[str, Any]) -> bool:
    """Return True if a source is a hub repository at a commit, and False if it is a local path."""
    return bool(COMMIT.fullmatch(source["revision"] or ""))


def source_name(source: dict[str, Any]) -> str:
    """Return a hub id in full, the last part of a local path, or "random weights"."""
    if source["path"] is None:
        return "random weights"
    return str(source["path"]) if is_pinned(source) else Path(source["path"]).name
