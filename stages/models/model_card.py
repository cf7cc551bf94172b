"""The model card (README.md) of published weights: origin, training steps, results, use, and code that loads them.

A card continues the card of the model from which training started: base and steps accumulate."""

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import metadata_load

from stages.config.blocks.training import Training, Untrained
from stages.config.choices import Adapter, Split
from stages.config.errors import visible
from stages.config.installation import read_beside
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

UNTRAINED = "A causal language model: {base} without further training, with the chat template in this folder."
STEP = "1. "  # Markdown numbers the items of a list
TEXTS: dict[str, str] = read_beside(__file__)
TEXT, LAST_STEP, LICENCE, CHAT, SCORE = (
    TEXTS[name] for name in ("text", "last_step", "licence", "chat", "score")
)


def write_card(
    model: Path, cfg: Training | Untrained, inputs: dict[str, Path], figures: dict[str, Any]
) -> None:
    """Write `README.md` into a model folder that has its contract, and copy the files of the base's licence there.
    `figures` are the stage's measurements."""
    objective = cfg.objective
    trained = isinstance(cfg, Training)
    # An SFT model that is not trained has data as an input, but the card does not describe it.
    manifests = {
        role: manifest_of(folder) for role, folder in inputs.items() if trained or role == "base"
    }
    header, steps = read_earlier_steps(manifests, inputs)
    made_from = ", ".join(f"`{m['stage']} {m['fingerprint']}`" for m in manifests.values())
    split = Split.preference if objective.name == "grpo" else Split.sft
    data_line = data_message(manifests, inputs, split) if trained else "not trained here"
    data_line = " ".join(data_line.split())  # names from a file begin no line of their own
    template = f". {figures['template']}" if "template" in figures else ""
    steps.append(
        f"{STEP}`{objective.name} {model.parent.stem}` <- {made_from}: {data_line}{template}"
    )
    start = inputs["base" if "base" in manifests else "policy"] / "model"
    licence = read_licence(start)
    copy_licence_files(start, model)
    header |= licence | {
        "library_name": "transformers",
        "pipeline_tag": "text-classification" if objective.scores else "text-generation",
        "tags": ["plumbline", *(["trl", objective.name] if trained else [])],
    }
    origin = cfg.card if isinstance(cfg, Training) else UNTRAINED
    text = TEXT.format(
        title=model_name(objective.name, model.parent.stem, licence),
        origin=origin.format(base=header.get("base_model", "the base below")),
        steps="\n".join(steps),
        last_step=last_step_text(cfg, figures) if isinstance(cfg, Training) else "",
        use=SCORE if objective.scores else CHAT,
        end_of_turn=load_json(model / "contract.json", require_keys("end_of_turn"))["end_of_turn"][
            "token"
        ],
        licence=LICENCE.format(sentences=sentences)
        if (sentences := licence_message(licence))
        else "",
    )
    content = visible(f"---\n{yaml.safe_dump(header)}---\n{text}", "\n\t")
    (model / "README.md").write_text(content, encoding="utf-8")


def model_name(stage: str, fingerprint: str, licence: dict[str, Any]) -> str:
    """Return the name of a published model, which begins as the licence of its base demands."""
    begins = duties(licence).get("begins")
    return " ".join([*([begins] if begins else []), "Plumbline", stage, fingerprint])


def last_step_text(cfg: Training, figures: dict[str, Any]) -> str:
    """Return the section of a card about the last training: its settings and its figures."""
    settings = {
        key: vars(cfg)[key] for key in TEXTS["settings"].split() if vars(cfg).get(key) is not None
    }
    if cfg.adapter in (Adapter.lora, Adapter.qlora):
        settings["lora"] = {"rank": cfg.lora.rank, "alpha": cfg.lora.alpha}
    numbers = {name: value for name, value in figures.items() if isinstance(value, int | float)}
    return LAST_STEP.format(
        settings=", ".join(f"{key}={value}" for key, value in settings.items()),
        figures="\n".join(
            f"| {name} | {signed(value, '{:z.4g}')} |" for name, value in numbers.items()
        ),
    )


def read_earlier_steps(
    manifests: dict[str, Manifest], inputs: dict[str, Path]
) -> tuple[dict[str, Any], list[str]]:
    """Return header and steps of the policy's card, or of the base."""
    base = manifests.get("base")
    if base and base["stage"] == "base":
        header = {"base_model": base["config"]["path"]} if is_pinned(base["config"]) else {}
        if datasets := [source["path"] for source in sources_of(manifests) if is_pinned(source)]:
            header["datasets"] = datasets
        name = source_name(base["config"])
        return header, [f"{STEP}`base {base['fingerprint']}`: {name}, {base['metrics']['summary']}"]
    card = inputs["base" if base else "policy"] / "model" / "README.md"
    if not card.exists():  # an SFT checkpoint of the user's, not trained here
        return {}, []
    lines = card.read_text(encoding="utf-8").splitlines()
    return metadata_load(card) or {}, [line for line in lines if line.startswith(STEP)]


def data_message(manifests: dict[str, Manifest], inputs: dict[str, Path], split: Split) -> str:
    """Describe the training data in one line. `split`: the one of `data` that was trained on."""
    if "pairs" in manifests:
        pairs = manifests["pairs"]["metrics"]
        first_pair = next(stream(inputs["pairs"] / "pairs.parquet", Pair))
        # the pairs' file, or the models that wrote the answers
        policies = pairs.get("policies", {first_pair.chosen_policy: None})
        authors = [
            f"{name} ({uses['chosen']:,} chosen, {uses['rejected']:,} rejected)" if uses else name
            for name, uses in policies.items()
        ]
        source = f" of {', '.join(authors)}" if first_pair.labeler == "dataset" else ""
        return f"preference pairs{source}, {pairs['summary']}{licences.provenance_message(pairs)}"
    if "unpaired" in manifests:
        return f"single completions, {manifests['unpaired']['metrics']['summary']}"
    data, stated = manifests["data"], licences.provenance_message(manifests["data"]["metrics"])
    rows, held_out = (
        data["metrics"]["examples"].get(each, 0) for each in (split, Split.validation)
    )
    counts = f"{rows:,} examples, {held_out:,} more held out{stated}"
    if data["stage"] == "select":
        selected, mended = data["metrics"]["selected"], data["metrics"]["mended"]
        answers = f"{selected:,} of a model's own answers, {mended:,} of them mended"
        return (
            f"{'chosen completions of pairs' if 'pairs' in data['inputs'] else answers} ({counts})"
        )
    tasks = data["config"].get("tasks") or {}
    is_generated = tasks.get(split) or tasks.get(f"open_{split}")
    sources = ["generated instructions with checks"] if is_generated else []
    return f"{', '.join([*sources, *map(source_name, sources_of(manifests, split))])} ({counts})"


def sources_of(inputs: dict[str, Manifest], split: Split = Split.sft) -> list[dict[str, Any]]:
    """Return the sources that contribute rows to a split."""
    data: Manifest = inputs.get("data", {"config": {}, "metrics": {}})
    counted_sources = zip(
        data["config"].get("sources", []), data["metrics"].get("sources", []), strict=False
    )
    return [source for source, counts in counted_sources if counts["examples"].get(split)]


def is_pinned(source: dict[str, Any]) -> bool:
    """Return True if a source is a hub repository at a commit, and False if it is a local path."""
    return bool(COMMIT.fullmatch(source["revision"] or ""))


def source_name(source: dict[str, Any]) -> str:
    """Return a hub id in full, the last part of a local path, or "random weights"."""
    if source["path"] is None:
        return "random weights"
    return str(source["path"]) if is_pinned(source) else Path(source["path"]).name
