"""The model card: a header that the hub takes, and where the model comes from."""

import json
from pathlib import Path

from huggingface_hub import metadata_load

from stages.models import card
from stages.models.contract import load
from tests.helpers import Chain, nodes, settings


def test_a_card_tells_every_step_since_the_base(chain: Chain) -> None:
    path = chain.folder("dpo") / "model" / "README.md"
    header, text = metadata_load(path), path.read_text(encoding="utf-8")
    assert header == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["plumbline", "trl", "dpo"],
    }
    made = nodes(chain.root)
    steps = [line for line in text.splitlines() if line.startswith("1. ")]
    assert len(steps) == 3
    for step, name in zip(steps, ("base", "sft", "dpo"), strict=True):
        node = made[name]
        assert f"`{node}`" in step
        assert all(f"`{given}`" in step for given in node.inputs.values())
    metrics = chain.manifest("dpo")["metrics"]
    assert chain.manifest("pairs")["metrics"]["summary"] in steps[2]
    assert f"| eval_loss | {metrics['eval_loss']:.4g} |" in text
    assert f"beta={chain.manifest('dpo')['config']['beta']}" in text
    terms = load(path.parent)
    assert f"`{terms.tokenizer.eos_token}`" in text


def with_config(node: Path, manifest: dict[str, object], changes: dict[str, object]) -> Path:
    """A node's folder with this manifest, its configuration changed."""
    node.mkdir()
    config = {**manifest["config"], **changes}
    (node / "manifest.json").write_text(json.dumps({**manifest, "config": config}))
    return node


def test_the_hub_is_told_a_base_it_knows_and_nobody_where_files_lie(chain: Chain, tmp_path: Path) -> None:
    sources = [
        {"path": "someone/dialogues", "revision": "a" * 40},
        {"path": str(tmp_path / "private" / "letters.jsonl"), "revision": None},
    ]
    inputs = {
        "base": with_config(
            tmp_path / "base", chain.manifest("base"), {"path": "someone/model", "revision": "0123456789" * 4}
        ),
        "data": with_config(tmp_path / "data", chain.manifest("data"), {"sources": sources}),
    }
    model = chain.folder("sft") / "model"
    card.write(model, "sft", settings("recipe=tiny").sft, inputs, {"eval_loss": 0.5})
    header, text = metadata_load(model / "README.md"), (model / "README.md").read_text(encoding="utf-8")
    assert (header["base_model"], header["datasets"]) == ("someone/model", ["someone/dialogues"])
    assert "letters.jsonl" in text and "private" not in text and str(tmp_path) not in text

    aligned = chain.folder("dpo") / "model"
    given = {role: chain.folder(role) for role in ("pairs", "reference")} | {"policy": chain.folder("sft")}
    card.write(aligned, "dpo", settings("recipe=tiny").dpo, given, {})
    after = metadata_load(aligned / "README.md")
    assert (after["base_model"], after["tags"]) == ("someone/model", ["plumbline", "trl", "dpo"])
