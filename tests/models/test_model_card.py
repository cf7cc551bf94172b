"""Tests of the model card: a header that the hub accepts, and the model's origin."""

import json
import logging
import shutil
from pathlib import Path

import pytest
from huggingface_hub import metadata_load
from transformers.integrations.gguf.reader import read_gguf_metadata

from stages import base
from stages.config.errors import UNSEEN
from stages.models import base_licence, model_card
from stages.models.contract import load_contract
from tests.helpers import Chain, build, nodes, settings


def test_a_card_tells_every_step_since_the_base(chain: Chain) -> None:
    path = chain.folder("dpo") / "model" / "README.md"
    text = path.read_text(encoding="utf-8")
    assert metadata_load(path) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["plumbline", "trl", "dpo"],
    }
    chain_nodes = nodes(chain.root)
    steps = [line for line in text.splitlines() if line.startswith("1. ")]
    assert len(steps) == 3
    for step, name in zip(steps, ("base", "sft", "dpo"), strict=True):
        node = chain_nodes[name]
        assert f"`{node}`" in step
        assert all(f"`{fingerprint}`" in step for fingerprint in node.inputs.values())
    metrics = chain.manifest("dpo")["metrics"]
    assert chain.manifest("pairs")["metrics"]["summary"] in steps[2]
    assert f"| eval_loss | {metrics['eval_loss']:.4g} |" in text
    assert f"beta={chain.manifest('dpo')['config']['beta']}" in text
    contract = load_contract(path.parent)
    assert f"`{contract.tokenizer.eos_token}`" in text


def test_the_hub_is_told_a_base_it_knows_and_nobody_where_files_lie(
    chain: Chain, tmp_path: Path
) -> None:
    base = chain.manifest("base")
    base["config"] |= {"path": "someone/model", "revision": "0123456789" * 4}
    data = chain.manifest("data")
    private = str(tmp_path / "private" / "letters\x1b\u202e.jsonl")
    data["config"]["sources"] = [
        {"path": "someone/dialogues", "revision": "a" * 40},
        {"path": private, "revision": None},
        {"path": "someone/preferences", "revision": "b" * 40},
    ]
    data["metrics"]["sources"] = [
        {"examples": {"sft": 9}},
        {"examples": {"sft": 3}},
        {"examples": {"preference": 5}},
    ]
    inputs = dict[str, Path]()
    for role, manifest in (("base", base), ("data", data)):
        inputs[role] = tmp_path / role
        inputs[role].mkdir()
        (inputs[role] / "manifest.json").write_text(json.dumps(manifest))
    model = chain.folder("sft") / "model"
    model_card.write_card(model, settings("recipe=tiny").sft, inputs, {"eval_loss": 0.5})
    header = metadata_load(model / "README.md")
    text = (model / "README.md").read_text(encoding="utf-8")
    assert (header["base_model"], header["datasets"]) == ("someone/model", ["someone/dialogues"])
    assert r"letters\x1b\u202e.jsonl" in text and not UNSEEN.search(text.replace("\n", ""))
    assert str(tmp_path) not in text
    assert "someone/preferences" not in text, "SFT learns from none of its rows"

    aligned = chain.folder("dpo") / "model"
    dpo_inputs = {role: chain.folder(role) for role in ("pairs", "reference")}
    dpo_inputs["policy"] = chain.folder("sft")
    model_card.write_card(aligned, settings("recipe=tiny").dpo, dpo_inputs, {})
    assert metadata_load(aligned / "README.md")["base_model"] == "someone/model"


@pytest.mark.extra("export")
def test_a_base_binds_what_is_trained_from_it_by_its_licence(
    built: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start = shutil.copytree(next((built / "base").glob("*/model")), tmp_path / "start")
    (start / "README.md").write_text("---\nlicense: llama3.1\ndatasets: [private]\n---\n# A base")
    (start / "LICENSE").write_text("the agreement")
    (start / "USE_POLICY.md").write_text("the policy")
    keys = ("model.random_init=null", f"model.path={start}")
    build(tmp_path, "stage=sft", *keys)
    sft = Chain(tmp_path).folder("sft", *keys)
    policy = shutil.copytree(Chain(built).folder("dpo"), tmp_path / "dpo") / "model"
    inputs = {"policy": sft} | {role: Chain(built).folder(role) for role in ("pairs", "reference")}
    model_card.write_card(policy, settings("recipe=tiny").dpo, inputs, {})
    for model in (sft / "model", policy):
        header, text = metadata_load(model / "README.md"), (model / "README.md").read_text()
        assert header["license"] == "llama3.1" and "private" not in text
        assert "\n# Llama Plumbline " in text and '"Built with Llama"' in text
        assert (model / "LICENSE").read_text() == "the agreement"
        assert (model / "USE_POLICY.md").read_text() == "the policy"
        assert (model / "NOTICE").read_text().startswith("Llama 3.1 is licensed under")

    caplog.set_level(logging.INFO)
    build(tmp_path, "stage=export", "export.model=sft", *keys)
    assert [line for line in caplog.messages if "llama3.1" in line and "begin with" in line]
    [file] = (tmp_path / "export").glob("*.gguf")
    metadata, _ = read_gguf_metadata(str(file))
    assert metadata["general.license"] == "llama3.1"
    assert metadata["general.name"].startswith("Llama ")
    assert base.read_gguf_licence(file) == {"license": "llama3.1"}


@pytest.mark.parametrize(
    ("card", "files", "stated", "begins"),
    [
        ("license: other\nlicense_name: Llama-4", [], {"license_name": "Llama-4"}, "Llama"),
        ("license: [mit, llama3]", ["LICENSE"], {"license": ["mit", "llama3"]}, "Llama 3"),
        ("license: apache-2.0", ["NOTICE"], {"license": "apache-2.0"}, None),
        ("", ["License.txt"], {"license": "other", "license_link": "License.txt"}, None),
        ("license: [", [], {}, None),
        ("license: mit\nlicense_link: null", [], {"license": "mit"}, None),
        ("language: en", ["NOTICE", "licence_checker.py"], {}, None),
    ],
)
def test_a_licence_is_what_the_card_or_a_file_states(
    card: str, files: list[str], stated: dict[str, object], begins: str | None, tmp_path: Path
) -> None:
    if card:
        (tmp_path / "README.md").write_text(f"---\n{card}\n---\n")
    for name in files:
        (tmp_path / name).touch()
    licence = base_licence.read_licence(tmp_path)
    assert stated.items() <= licence.items() and bool(licence) == bool(stated)
    assert base_licence.duties(licence).get("begins") == begins
