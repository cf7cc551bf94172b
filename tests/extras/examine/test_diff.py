"""Stage `diff`: `stage=examine` compares folders key by key, also without preferences and where a model cannot be run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.browser import page_faults
from tests.extras.examine.tiny_folders import Tensors, adapter, trained, write_keys, write_start
from tests.helpers import inside, refused

TOY = "package:stages/tasks/toy_preferences.jsonl"
FIXED = ("stage=examine", "tracker=none", "precision=fp32", "answer.max_new_tokens=8")


def with_nan(tensors: Tensors) -> None:
    tensors["model.norm.weight"][0] = torch.nan


@pytest.fixture
def before(tmp_path: Path) -> Path:
    return write_start(tmp_path / "before")


@pytest.fixture
def repeating(before: Path) -> Path:
    """A trained model that is told to avoid repetitions."""
    folder = trained(before, before.parent / "repeating")
    write_keys(folder / "generation_config.json", repetition_penalty=3.0)
    return folder


@pytest.fixture
def without_numbers(before: Path) -> Path:
    """A model of which one weight is NaN."""
    return trained(before, before.parent / "without_numbers", with_nan)


def examine(root: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Return the exit code of an examination, and its reply."""
    ran = inside(*FIXED, f"outputs={root}", *arguments, "--json")
    reply: dict[str, Any] = json.loads(ran.stdout)
    return ran.returncode, reply


def keys_by_level(reply: dict[str, Any], level: str) -> list[str]:
    return [row["key"] for row in reply["result"]["differences"] if row["level"] == level]


def test_folders_are_compared_without_preferences(
    before: Path, repeating: Path, tmp_path: Path
) -> None:
    root = tmp_path / "examined"
    code, reply = examine(root, f"model.path={before}", f"examine.model={repeating}")
    assert (code, reply["result"]["faults"], reply["result"]["verdict"]) == (0, [], None)
    assert keys_by_level(reply, "changes") == ["generation.repetition_penalty"]
    page = (root / "report.html").read_text()
    assert all(text in page for text in ("repetition_", "3.0", "label.path=FILE"))
    assert not (root / "base").exists()  # no model is built


@pytest.mark.extended
def test_several_models_share_one_table(
    before: Path, repeating: Path, without_numbers: Path, tmp_path: Path
) -> None:
    models = f"examine.model={repeating},{without_numbers}"
    code, reply = examine(
        tmp_path / "examined", f"examine.before={before}", models, "examine.strict=true"
    )
    assert (code, reply["result"]["faults"]) == (1, ["weights: NaN or infinite"])
    assert reply["result"]["verdict"] == "faults"
    rows = {row["key"]: row["values"] for row in reply["result"]["differences"]}
    assert rows["generation.repetition_penalty"] == ["not set", "3.0", "not set"]
    assert rows["weights: NaN or infinite"][:2] == ["none", "none"]
    line = refused(
        *FIXED, models.replace("=", "='") + "'", f"examine.before={before}", f"label.path={TOY}"
    )
    assert f"examine.model={repeating}" in line


@pytest.mark.extended
def test_an_adapter_names_its_base(before: Path, tmp_path: Path) -> None:
    folder = adapter(before, tmp_path / "adapter")
    code, reply = examine(tmp_path / "examined", f"examine.model={folder}")
    assert (code, keys_by_level(reply, "changes")) == (0, [])
    assert "adapter: scale" in keys_by_level(reply, "differs")
    assert "examine.before" in refused(*FIXED, f"examine.model={before}")


@pytest.mark.extended
def test_a_model_that_cannot_be_run_has_a_page(
    before: Path, without_numbers: Path, tmp_path: Path
) -> None:
    root = tmp_path / "examined"
    models = f"examine.before={before}", f"examine.model={without_numbers}", f"label.path={TOY}"
    code, reply = examine(root, *models, "examine.strict=true")
    assert (code, keys_by_level(reply, "breaks")) == (1, ["weights: NaN or infinite"])
    assert "model.norm.weight" in reply["error"]
    page = (root / "report.html").read_text()
    assert reply["error"].partition("model.safetensors")[2] in page
    assert "weights: NaN" in page
    assert page_faults(root / "report.html", tmp_path) == []


@pytest.mark.extended
def test_weights_that_are_cut_off_have_a_page(before: Path, tmp_path: Path) -> None:
    folder = trained(before, tmp_path / "cut")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    root = tmp_path / "examined"
    models = f"examine.before={before}", f"examine.model={folder}", f"label.path={TOY}"
    code, reply = examine(root, *models)
    assert (code, reply["result"]["faults"]) == (1, ["weights: files"])
    page = (root / "report.html").read_text()
    assert "weights: files" in page
    assert reply["error"].partition("config.json")[2] in page


@pytest.mark.extended
def test_an_adapter_that_contradicts_itself_has_a_page(before: Path, tmp_path: Path) -> None:
    folder = adapter(before, tmp_path / "adapter")
    write_keys(folder / "adapter_config.json", r=3)
    root = tmp_path / "examined"
    models = f"examine.before={before}", f"examine.model={folder}", f"label.path={TOY}"
    code, reply = examine(root, *models)
    assert (code, keys_by_level(reply, "breaks")) == (1, ["adapter"])
    assert "r=3" in reply["error"]
    assert "r=3" in (root / "report.html").read_text()
