"""The model card (README.md) of published weights: origin, training steps, results, use, and code that loads them.

A card continues the card of the model from which training started: base and steps accumulate."""

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import metadata_load
from jinja2 import Template

from stages.config.blocks.objective import Training
from stages.config.blocks.training import Untrained
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
    header, steps = read_earlier_steps(manifests, inputs, trained_split(cfg))
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
        steps=[*steps, describe_step(model.parent.stem, cfg, manifests, inputs)],
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
    manifests: dict[str, Manifest], inputs: dict[str, Path], split: Split
) -> tuple[dict[str, Any], list[str]]:
    """Return header and steps of the policy's card, or of the base."""
    base = manifests.get("base")
    if base and base["stage"] == "base":
        header = dict[str, Any]()
        if is_pinned(base["config"]):
            header["base_model"] = base["config"]["path"]
        datasets = [source["path"] for source in sources_of(manifests, split) if is_pinned(source)]
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
) -> str:
    """Return the line on a training: its node, those that it was made from, and its data."""
    made_from = ", ".join(f"`{m['stage']} {m['fingerprint']}`" for m in manifests.values())
    step = f"{STEP}`{cfg.objective.name} {fingerprint}` <- {made_from}"
    if isinstance(cfg, Untrained):
        return f"{step}: not trained here"
    data = data_message(manifests, trained_split(cfg))
    if "pairs" in inputs:
        data = f"preference pairs{file_of_pairs(inputs['pairs'])}, {data}"
    return f"{step}: {' '.join(data.split())}"  # names from a file begin no line of their own


def file_of_pairs(folder: Path) -> str:
    """Return " of FILE" if the pairs in a node's folder were read from a file, or with the model that wrote them."""
    first = next(stream(folder / "pairs.parquet", Pair))
    return f" of {first.chosen_policy}" if first.labeler == "dataset" else ""


def trained_split(cfg: Training | Untrained) -> Split:
    return Split.preference if cfg.objective.draws else Split.sft


def data_message(manifests: dict[str, Manifest], split: Split) -> str:
    """Describe the training data in one line: pairs, completions, or the sources of a `split` of the data."""
    for role in ("pairs", "unpaired", "data"):
        if role in manifests:
            metrics = manifests[role]["metrics"]
            break
    parts = [*map(source_name, sources_of(manifests, split))]
    for author, uses in metrics.get("policies", {}).items():
        parts.append(f"{author} ({uses['chosen']:,} chosen, {uses['rejected']:,} rejected)")
    return ", ".join([*parts, metrics["summary"]]) + licences.provenance_message(metrics)


def sources_of(manifests: dict[str, Manifest], split: Split) -> list[dict[str, Any]]:
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
    if is_pinned(source):
        return str(source["path"])
    return Path(source["path"]).name
