"""`stage=examine`: the faults of models that were trained elsewhere, and none of sound ones."""

import json
import shutil
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.store.manifest import manifest_of
from tests.extras.examine.planted_models import HELD_OUT as HELD_OUT_REQUESTS
from tests.extras.examine.planted_models import Planted
from tests.extras.examine.trained_elsewhere import (
    FAULTY,
    HELD_OUT,
    LONG,
    SOUND,
    Elsewhere,
    preferences,
    write_rows,
)
from tests.helpers import Chain, inside, refused

TOY = "package:stages/tasks/toy_preferences.jsonl"


def examine(
    root: Path, model: Path, before: Path, file: object = TOY, *more: str
) -> CompletedProcess[str]:
    """Run the command, whose exit code tells whether a fault was found."""
    models = f"examine.model={model}", f"examine.before={before}", f"label.path={file}"
    fixed = "tracker=none", "precision=fp32", "answer.max_new_tokens=24", f"outputs={root}"
    return inside("stage=examine", *models, *fixed, "examine.strict=true", *more)


def found(root: Path) -> dict[str, Any]:
    """Return what the last examination of a store found."""
    folder = (root / "latest" / "report").resolve()
    node = manifest_of(folder)["inputs"]["examine"]["fingerprint"]
    content: dict[str, Any] = json.loads((root / "examine" / node / "examination.json").read_text())
    return content


def broken_keys(root: Path) -> list[str]:
    """Return the keys of the last examined folder that break its answers."""
    folder = (root / "latest" / "report").resolve()
    node = manifest_of(folder)["inputs"]["diff"]["fingerprint"]
    return list(manifest_of(root / "diff" / node)["metrics"]["faults"])


def copy_of_sft(chain: Chain, tmp_path: Path, name: str) -> Path:
    """Return a copy of the chain's SFT model as another program would publish it."""
    folder = Path(shutil.copytree(chain.folder("sft") / "model", tmp_path / name))
    (folder / "contract.json").unlink()
    return folder


def test_a_sound_model_has_no_fault_and_its_page_shows_both(chain: Chain, tmp_path: Path) -> None:
    before = copy_of_sft(chain, tmp_path, "before")
    root = tmp_path / "examined"
    ran = examine(root, chain.folder("dpo") / "model", before, TOY, "examine.rows=2")
    assert ran.returncode == 0, ran.stderr
    content = found(root)
    assert content["faults"] == {}
    assert len(content["rows"]) == 4  # two rows, as either model reads them
    for row in content["rows"]:
        trained = [token["text"] for token in row["tokens"] if token["trained"]]
        assert trained[-1] == "<|im_end|>"
        assert "<|im_start|>" not in trained
    assert "<|im_end|>" in ran.stdout  # the rows are printed too
    assert content["sentence"] in (root / "report.html").read_text()


def with_other_stop(folder: Path) -> None:
    for name, key, value in (
        ("generation_config.json", "eos_token_id", 0),
        ("tokenizer_config.json", "eos_token", "<|endoftext|>"),
    ):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | {key: value}))


def with_another_part(folder: Path) -> None:
    """As of a model of images, whose other part the class of its text part has no place for."""
    tensors = load_file(folder / "model.safetensors")
    tensors["vision.tower.weight"] = torch.zeros(1000, 1000)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.extended
@pytest.mark.parametrize(
    ("fault", "change"), [("not_whole", with_another_part), ("stop_missing", with_other_stop)]
)
def test_a_fault_of_the_files_is_named(
    fault: str, change: Any, chain: Chain, tmp_path: Path
) -> None:
    before = copy_of_sft(chain, tmp_path, "before")
    after = copy_of_sft(chain, tmp_path, "after")
    change(after)
    ran = examine(tmp_path / "examined", after, before)
    assert ran.returncode == 1, ran.stderr
    faults = found(tmp_path / "examined")["faults"]
    assert {fault, "unchanged"} <= faults.keys() <= {fault, "unchanged", "moved_nothing"}
    assert all(seen in ran.stdout + ran.stderr for seen in faults.values())


def test_an_examination_needs_both_models_and_trains_nothing(tmp_path: Path) -> None:
    alone = refused("stage=examine", "examine.model=gpt2", f"label.path={TOY}")
    assert "examine.before" in alone
    trained = ["examine.model=a/b", "examine.before=a/c", f"label.path={TOY}", "sft=default"]
    assert "recipe=examine" in refused("stage=examine", *trained)


@pytest.mark.extended
def test_labels_that_are_reversed_in_one_language_are_found_by_its_column(tmp_path: Path) -> None:
    planted = Planted(tmp_path)
    after = planted.dpo("after", reversed_in=["de"])
    lines = list[str]()
    for request in HELD_OUT_REQUESTS:
        row = {"prompt": request.text, "chosen": request.answer, "rejected": request.other}
        lines.append(json.dumps(row | {"language": request.language}))
    file = tmp_path / "preferences.jsonl"
    file.write_text("\n".join(lines))
    root = tmp_path / "examined"
    ran = examine(root, after, planted.start, file)
    assert ran.returncode == 1, ran.stderr
    content = found(root)
    assert content["verdict"] == "faults"
    [finding] = [each for each in content["findings"] if each["is_fault"]]
    assert (finding["name"], finding["certain"]) == ("group_reversed", True)
    assert "language = de" in finding["seen"]
    assert finding["interval"]["high"] < 0.5
    assert len(finding["causes"]) > 1
    assert f"examine.model={after}" in finding["apart"]
    page = (root / "report.html").read_text()
    assert finding["seen"] in page
    assert "language = de: reversed" in page


@pytest.mark.slow
def test_planted_faults_are_named_and_sound_models_have_none(built: Path, tmp_path: Path) -> None:
    """By plain TRL: models with a fault each, and four without."""
    base = tmp_path / "base"
    shutil.copytree(Chain(built).folder("base") / "model", base)
    place = Elsewhere(tmp_path, base)
    rows = write_rows(preferences()[HELD_OUT], tmp_path / "rows.jsonl")
    long_rows = write_rows(preferences(long=True)[HELD_OUT], tmp_path / "long.jsonl")
    root = tmp_path / "examined"
    for fault, make, is_from_base in [*FAULTY, *SOUND]:
        folder = make(place)
        before = base if is_from_base else place.start
        ran = examine(root, folder, before, long_rows if make in LONG else rows)
        if fault == "no tensors":
            assert "in no file" in ran.stdout + ran.stderr
            continue
        content = found(root)
        names = [finding["name"] for finding in content["findings"]]
        certain = [finding for finding in content["findings"] if finding["certain"]]
        is_failed = bool(certain or broken_keys(root))
        assert ran.returncode == is_failed, (folder.name, names, ran.stderr[-500:])
        assert not fault or fault in names
        assert fault or not content["faults"]
