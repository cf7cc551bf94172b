"""An adapter is merged into the model that it names, or into the same weights under another name, which is typed."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from stages.config.blocks.models import Model
from stages.config.errors import UserError
from stages.models.adapter_folder import ADAPTER_WEIGHTS
from stages.preflight.model_files import require_adapter
from stages.store.source_files import ADAPTER_CONFIG
from tests.helpers import TINY, refused

NODE = "base/0123456789ab/model"
COMMIT = "0123456789" * 4
LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


def write_adapter(folder: Path, named: str | None, **fields: Any) -> Path:
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], **fields}
    content = config | {"base_model_name_or_path": named}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(content))
    tensors = {
        f"{LAYER}.lora_A.weight": torch.ones(2, 64),
        f"{LAYER}.lora_B.weight": torch.zeros(64, 2),
    }
    save_file(tensors, folder / ADAPTER_WEIGHTS)
    return folder


@pytest.mark.parametrize(
    ("named", "path"),
    [
        (None, "someone/base"),
        ("someone/base", "someone/base"),
        ("Someone/Base", "someone/base"),
        ("someone/base", f"/cache/models--someone--base/snapshots/{COMMIT}"),
        (f"/home/other/models--someone--base/snapshots/{COMMIT}", "someone/base"),
        ("someone/base", "/models/base/"),
        ("/elsewhere/base", "someone/base"),
        (NODE, f"/elsewhere/outputs/{NODE}"),
        ("docs/../docs", "docs"),
    ],
)
def test_names_of_one_model_are_taken(named: str | None, path: str, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", named)
    require_adapter(Model(path, None, adapter=str(folder)))


@pytest.mark.parametrize(
    ("named", "path"),
    [
        ("someone/base", "someone/other"),
        ("someone/base", "other/base"),
        ("someone/base", f"/cache/models--other--base/snapshots/{COMMIT}"),
        ("/elsewhere/first/model", "/elsewhere/second/model"),
        (NODE, "/outputs/base/ba9876543210/model"),
        ("checkpoints/of, mine", "someone/base"),
        ("base", None),
    ],
)
def test_another_model_is_refused_by_both_names_unless_it_is_typed(
    named: str, path: str | None, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "adapter", named)
    model = Model(path, None, adapter=str(folder))
    with pytest.raises(UserError) as error:
        require_adapter(model)
    line = str(error.value)
    assert named in line and (path or "random") in line and "model.path=" in line
    words = [word for word in shlex.split(line) if word.startswith("model.adapter_base=")]
    assert words[0].removeprefix("model.adapter_base=").strip('".') == named
    require_adapter(Model(path, None, adapter=str(folder), adapter_base=named))
    with pytest.raises(UserError, match="adapter_base"):
        require_adapter(Model(path, None, adapter=str(folder), adapter_base=f"{named}2"))


def test_an_adapter_of_a_store_names_the_place_of_its_base(tmp_path: Path) -> None:
    (tmp_path / NODE).mkdir(parents=True)
    folder = write_adapter(tmp_path / "sft" / "ba9876543210" / "adapter", NODE)
    with pytest.raises(UserError, match=f"model.path={tmp_path / NODE}"):
        require_adapter(Model("someone/other", None, adapter=str(folder)))


def test_it_is_told_before_anything_is_built(built: Path, tmp_path: Path) -> None:
    base = shutil.copytree(next((built / "base").glob("*/model")), tmp_path / "model")
    folder = write_adapter(tmp_path / "adapter", "someone/base")
    typed = (*TINY, "stage=base", f"outputs={tmp_path / 'outputs'}", "model.random_init=null")
    typed += (f"model.path={base}", f"model.adapter={folder}")
    line = refused(*typed)
    assert f"model.adapter={folder}" in line and "model.adapter_base=someone/base" in line
    line = refused(*typed, "model.adapter=null", "model.adapter_base=someone/base")
    assert "model.adapter=FOLDER" in line
    shutil.rmtree(folder)
    write_adapter(folder, None, r=10**9)
    assert f"{folder / ADAPTER_CONFIG}: r=1000000000" in refused(*typed)
    assert not (tmp_path / "outputs" / "base").exists()
