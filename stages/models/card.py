"""The model card beside published weights: from what, by what, with what result, for what, and how to load it.

A card carries on from the card of the model that its training started from: base and steps accumulate.
"""

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import metadata_load

from stages.config.blocks.training import Training
from stages.store import licences
from stages.store.kept import having, load_json
from stages.store.numbers import signed
from stages.store.pinning import COMMIT
from stages.store.store import Manifest, manifest_of

METHODS = {
    "sft": "A causal language model from {base}, by supervised fine-tuning.",
    "dpo": "A causal language model from {base}, by direct preference optimization (arXiv:2305.18290).",
    "reward": "A reward model from {base}, by the loss of Bradley and Terry (arXiv:2203.02155).",
}
TASKS = {"reward": "text-classification"}  # else text-generation

SETTINGS = (
    "loss_type loss_weights beta margin learning_rate epochs batch_size max_length packing precision seed".split()
)
STEP = "1. "  # Markdown counts for itself
TEXT = """\
# {title}

{origin}

## How it was made

{steps}

Settings of the last step: {settings}.

| figure | value |
| --- | --- |
{figures}

## Use

Meant for research into fine-tuning and preference optimization, on requests like those it was trained on.
It can be wrong, biased or unsafe, as its base can: nothing was done about that, and it was measured on nothing else.

Conversations go through the chat template in this folder; a turn ends with `{end_of_turn}`. `contract.json` holds
what both render to.

{use}
"""
CHAT = """\
```python
from transformers import pipeline

chat = pipeline("text-generation", model="FOLDER")  # this folder, or where it was pushed to
print(chat([{"role": "user", "content": "Name a colour."}], max_new_tokens=64)[0]["generated_text"][-1])
```

`vllm serve FOLDER` and `transformers serve FOLDER` answer chat requests with it, `transformers chat FOLDER` asks the
latter.
"""
SCORE = """\
```python
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")  # this folder, or where it was pushed to
model = AutoModelForSequenceClassification.from_pretrained("FOLDER")
said = [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Blue."}]
text = tokenizer.apply_chat_template(said, tokenize=False).rstrip()  # up to the end of turn
ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
with torch.no_grad():
    print(model(ids).logits.item())
```

Rewards of answers to the same prompt are compared: their difference is the log-odds that one is the better. By itself
a reward says nothing.
"""
USE = {"reward": SCORE}  # else CHAT


def write(model: Path, stage: str, cfg: Training, inputs: dict[str, Path], figures: dict[str, Any]) -> None:
    """Write `README.md` into a model folder that holds its contract. `figures` are what the stage measured."""
    given = {role: manifest_of(folder) for role, folder in inputs.items()}
    header, steps = before(given, inputs)
    made_from = ", ".join(f"`{m['stage']} {m['fingerprint']}`" for m in given.values())
    steps.append(f"{STEP}`{stage} {model.parent.stem}` <- {made_from}: {trained_on(given)}")
    header |= {
        "library_name": "transformers",
        "pipeline_tag": TASKS.get(stage, "text-generation"),
        "tags": ["plumbline", "trl", stage],
    }
    settings = {key: vars(cfg)[key] for key in SETTINGS if vars(cfg).get(key) is not None}
    text = TEXT.format(
        title=f"Plumbline {stage} {model.parent.stem}",
        origin=METHODS[stage].format(base=header.get("base_model", "the base below")),
        steps="\n".join(steps),
        settings=", ".join(f"{key}={value}" for key, value in settings.items()),
        figures="\n".join(
            f"| {name} | {signed(value, '{:z.4g}')} |"
            for name, value in figures.items()
            if isinstance(value, int | float)
        ),
        use=USE.get(stage, CHAT),
        end_of_turn=load_json(model / "contract.json", having("end_of_turn"))["end_of_turn"]["token"],
    )
    (model / "README.md").write_text(f"---\n{yaml.safe_dump(header)}---\n{text}", encoding="utf-8")


def before(given: dict[str, Manifest], inputs: dict[str, Path]) -> tuple[dict[str, Any], list[str]]:
    """Header and steps so far: of the policy's card, or of the base."""
    base = given.get("base")
    if base and base["stage"] == "base":
        hub = {"base_model": base["config"]["path"]} if on_hub(base["config"]) else {}
        if sets := [source["path"] for source in given["data"]["config"].get("sources", []) if on_hub(source)]:
            hub["datasets"] = sets
        return hub, [f"{STEP}`base {base['fingerprint']}`: {name_of(base['config'])}, {base['metrics']['summary']}"]
    card = inputs["base" if base else "policy"] / "model" / "README.md"
    if not card.exists():  # an SFT checkpoint of the user's, not trained here
        return {}, []
    lines = card.read_text(encoding="utf-8").splitlines()
    return metadata_load(card) or {}, [line for line in lines if line.startswith(STEP)]


def trained_on(given: dict[str, Manifest]) -> str:
    """The training data in one line."""
    if "pairs" in given:
        pairs = given["pairs"]["metrics"]
        return f"preference pairs, {pairs['summary']}{licences.told(pairs)}"
    data, stated = given["data"], licences.told(given["data"]["metrics"])
    if data["stage"] == "select":
        return f"{data['metrics']['summary']}{stated}"
    made = ["generated instructions with checks"] if data["config"]["tasks"]["sft"] else []
    sources = [name_of(source) for source in data["config"]["sources"]]
    return f"{', '.join(made + sources)} ({data['metrics']['summary']}{stated})"


def on_hub(named: dict[str, Any]) -> bool:
    """A hub repository is pinned to a commit; a local path is not."""
    return bool(COMMIT.fullmatch(named["revision"] or ""))


def name_of(named: dict[str, Any]) -> str:
    """A hub id as it is, the name of a local file or folder without where it lies, or that weights are random."""
    if named["path"] is None:
        return "random weights"
    return str(named["path"]) if on_hub(named) else Path(named["path"]).name
