"""Tests of hostile model folders: no code, no pickled weights and no file beside a GGUF file is read."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stages.config.choices import GGUFType
from stages.config.errors import UserError
from stages.models import safe_folder
from stages.models.loading import load_gguf, load_model
from tests.helpers import ROOT, TINY, Chain, inside, refused

HOSTILE = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class Config(LlamaConfig):
    model_type = "of_its_own"
class Model(LlamaForCausalLM):
    config_class = Config
class Tokenizer(PreTrainedTokenizerFast):
    pass
def generate(*args, **kwargs):
    pass
"""
# This Jinja template climbs from a string to a class that starts processes, unless its renderer prevents it.
CLIMBING = (
    "{% generation %}{% for c in ''.__class__.__mro__[1].__subclasses__() %}{% if c.__name__ == 'Popen' %}"
    "{{ c(['touch', 'MARKER']) }}{% endif %}{% endfor %}{% endgeneration %}"
)


def edit(file: Path, **changes: Any) -> None:
    content = dict[str, Any]()
    if file.exists():
        content = json.loads(file.read_text())
    file.write_text(json.dumps(content | changes))


def of_config(folder: Path) -> None:
    named = {"AutoConfig": "hostile.Config", "AutoModelForCausalLM": "hostile.Model"}
    edit(folder / "config.json", auto_map=named, model_type="of_its_own")


def of_tokenizer(folder: Path) -> None:
    edit(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": [None, "hostile.Tokenizer"]},
        tokenizer_class="X",
    )


def of_generation(folder: Path) -> None:
    (folder / "custom_generate").mkdir()
    shutil.copy(folder / "hostile.py", folder / "custom_generate" / "generate.py")


def of_attention(folder: Path) -> None:
    edit(folder / "config.json", _attn_implementation="someone/kernel")


def of_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(
        CLIMBING.replace("MARKER", str(folder.parent / "ran"))
    )


def folder_with(built: Path, tmp_path: Path, change: Callable[[Path], None]) -> tuple[Path, Path]:
    """Return a changed copy of the tiny base with a module that would write a file, and that file."""
    folder, marker = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(next((built / "base").glob("*/model")), folder)
    (folder / "hostile.py").write_text(HOSTILE.format(marker=str(marker)))
    change(folder)
    return folder, marker


def of_folder(folder: Path, tmp_path: Path) -> tuple[str, ...]:
    return (
        *TINY,
        f"outputs={tmp_path / 'outputs'}",
        "model.random_init=null",
        f"model.path={folder}",
        "stage=sft",
    )


@pytest.mark.extended
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (of_config, "config.json: auto_map names code"),
        (of_tokenizer, "tokenizer_config.json: auto_map names code"),
        (of_generation, "custom_generate: the model contains code"),
        (of_attention, "config.json: _attn_implementation=someone/kernel names code"),
        (of_template, "chat_template: line 1"),
    ],
)
def test_code_of_a_folder_is_not_run_though_a_y_is_typed(
    change: Callable[[Path], None], reason: str, built: Path, tmp_path: Path
) -> None:
    folder, marker = folder_with(built, tmp_path, change)
    ran = inside(*of_folder(folder, tmp_path), "template=own", typed="y\n" * 50)
    assert not marker.exists()
    assert ran.returncode == 1
    [line] = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
    assert reason in line and "[y/N]" not in ran.stdout + ran.stderr
    assert not list((tmp_path / "outputs" / "sft").glob("*[!l]"))  # only a .partial folder exists


def test_a_pipe_of_yes_is_no_consent(built: Path, tmp_path: Path) -> None:
    """Run the command in a shell, in a separate process, as a user would."""
    folder, marker = folder_with(built, tmp_path, of_config)
    command = [sys.executable, str(ROOT / "run.py"), *of_folder(folder, tmp_path)]
    with subprocess.Popen(["yes"], stdout=subprocess.PIPE) as yes:
        ran = subprocess.run(
            command, cwd=ROOT, stdin=yes.stdout, capture_output=True, text=True, check=False
        )
        yes.kill()
    assert (ran.returncode, marker.exists()) == (1, False)
    assert f"{folder / 'config.json'}: auto_map names code" in ran.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        (
            "model.safetensors.index.json",
            {"weight_map": {"a": "weights.bin"}},
            "weight_map names weights.bin",
        ),
        (
            "config.json",
            {"transformers_weights": "adapter_model.bin"},
            "transformers_weights names adapter_model.bin",
        ),
        ("adapter_config.json", {"peft_type": "LORA"}, "is an adapter, not a"),
    ],
)
def test_weights_that_are_no_safetensors_in_the_folder_are_refused(
    file: str, content: dict[str, Any], reason: str, chain: Chain, tmp_path: Path
) -> None:
    """The weights are pickled, beside a dummy safetensors file: torch would unpickle them."""
    folder = chain.folder("base") / "model"
    torch.save(load_file(folder / "model.safetensors"), folder / "weights.bin")
    shutil.copy(folder / "weights.bin", folder / "adapter_model.bin")
    shutil.move(folder / "model.safetensors", folder / "dummy.safetensors")
    edit(folder / file, **{"metadata": {}} | content)
    with pytest.raises(UserError) as refused:
        load_model(folder)
    assert f"{folder / file}" in str(refused.value) and reason in str(refused.value)


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "config.json", "a.gguf"],
)
def test_a_pointer_of_git_lfs_is_refused_before_anything_is_built(
    name: str, built: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(next((built / "base").glob("*/model")), folder)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 269060552\n"
    (folder / "pytorch_model.bin").write_text(pointer)  # which is not read
    safe_folder.validate_folder(folder)
    (folder / name).write_text(pointer)
    path = folder / name if name.endswith(".gguf") else folder
    line = refused(*of_folder(path, tmp_path))
    assert f"{folder / name}: is a pointer of Git LFS" in line
    assert "git lfs pull" in line
    assert not (tmp_path / "outputs" / "base").exists()


def test_what_lies_beside_a_gguf_file_is_not_read(built: Path, tmp_path: Path) -> None:
    """Check that a template beside the file is ignored: transformers would read it, and the fingerprint lacks it."""
    gguf_file = pytest.importorskip("stages.extras.export.gguf_file")
    file = tmp_path / "model.gguf"
    gguf_file.write_gguf(next((built / "sft").glob("*/model")), file, GGUFType.f32, "a model")
    _, before = load_gguf(file)
    (tmp_path / "chat_template.jinja").write_text("something else")
    (tmp_path / "hostile.py").write_text(HOSTILE.format(marker=str(tmp_path / "ran")))
    of_tokenizer(tmp_path)
    model, after = load_gguf(file)
    assert after.chat_template == before.chat_template
    assert after(" Größer als 3?").input_ids == before(" Größer als 3?").input_ids
    assert not (tmp_path / "ran").exists() and not model.config.name_or_path
