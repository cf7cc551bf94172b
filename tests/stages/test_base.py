"""The base: real weights from the embedded package, a local folder, the hub's cache, and a random tiny one."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gguf import GGUFWriter, RopeScalingType
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import PretrainedConfig, Qwen3_5Config, Qwen3_5ForConditionalGeneration

from stages import base
from stages.config.blocks.models import Model
from stages.config.choices import GGUFType
from stages.config.errors import UserError
from stages.models.loading import load_model, load_tokenizer
from stages.store import source_files
from tests.helpers import settings
from tests.rows import work


def build_base(cfg: Model, folder: Path) -> Path:
    base.run(cfg, {}, work(folder))
    return folder / "model"


@pytest.mark.slow
def test_the_embedded_model_speaks(tmp_path: Path) -> None:
    """SmolLM2-135M from its GGUF file: dequantised, saved and loaded again, it still knows English."""
    cfg = settings("model=embedded").model
    folder = build_base(cfg, tmp_path / "base")
    published = json.loads((folder / "config.json").read_text()) | {"_name_or_path": cfg.path}
    assert cfg.config == {key: published[key] for key in cfg.config}, (
        "what a plan reads before the file is converted"
    )
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(134.5e6, rel=0.01)
    ids = torch.tensor([tokenizer("The capital of France is").input_ids])
    with torch.no_grad():
        best = int(model(ids).logits[0, -1].argmax())
    assert tokenizer.decode([best]).strip() == "Paris"


@pytest.mark.extended
def test_a_gguf_that_scales_rotary_positions_is_refused(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refuse what transformers would read as another model."""
    gguf_file = pytest.importorskip("stages.extras.export.gguf_file")
    add = gguf_file.add_shape
    folder = next((built / "base").glob("*/model"))

    def add_scaling(writer: GGUFWriter, config: PretrainedConfig) -> None:
        add(writer, config)
        writer.add_rope_scaling_type(RopeScalingType.YARN)

    monkeypatch.setattr(gguf_file, "add_shape", add_scaling)
    gguf_file.write_gguf(folder, tmp_path / "scaled.gguf", GGUFType.f32, "a model")
    with pytest.raises(UserError, match=r"scaled.gguf: llama.rope.scaling.type scales"):
        build_base(
            settings("model=embedded", f"model.path={tmp_path / 'scaled.gguf'}").model, tmp_path
        )


def test_a_broken_gguf_is_told(tmp_path: Path) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF\x03\x00")
    with pytest.raises(UserError, match=r"broken.gguf: .* GGUF"):
        build_base(settings("model=embedded", f"model.path={file}").model, tmp_path / "base")


def test_pickled_weights_are_refused(built: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "config.json").write_text("{}")
    cfg = settings("model=tiny", "model.random_init=null", f"model.path={folder}").model
    with pytest.raises(UserError, match=r"has no \*\.safetensors"):
        build_base(cfg, tmp_path / "base")


def test_a_hub_id_is_pinned_to_the_commit_in_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    commit = "0123456789" * 4
    repository = tmp_path / "models--someone--something"
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "snapshots" / commit / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cfg = settings("model=smollm2_135m", "model.path=someone/something").model
    pinned, _ = source_files.pin(cfg, tmp_path / "digests.json")
    assert pinned.revision == commit
    unknown = replace(cfg, path="someone/else")
    with pytest.raises(UserError, match="nor in the hub's cache"):
        source_files.pin(unknown, tmp_path / "digests.json")


def test_a_model_of_text_and_images_is_not_published_without_a_part(
    built: Path, tmp_path: Path
) -> None:
    """transformers loads the text part alone, and says nothing of the vision tower."""
    tokenizer = load_tokenizer(next((built / "base").glob("*/model")))
    attention = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    linear = dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 2)
    linear |= dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 16)
    sizes = {"hidden_size": 32, "intermediate_size": 64}
    text = {"vocab_size": len(tokenizer), "num_hidden_layers": 4, **sizes, **attention, **linear}
    vision = {"depth": 1, "num_heads": 2, "out_hidden_size": 32, "patch_size": 4, **sizes}
    config = Qwen3_5Config(text_config=text, vision_config=vision)
    Qwen3_5ForConditionalGeneration(config).save_pretrained(tmp_path / "whole")
    tokenizer.save_pretrained(tmp_path / "whole")
    out = work(tmp_path / "out")
    with pytest.raises(UserError, match=r"model\.visual"):
        base.run(Model(str(tmp_path / "whole"), None, None), {}, out)


def damage(folder: Path, value: float) -> str:
    """Put three values into the first tensor of a folder, and return its name."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[0]
    tensors[name] = tensors[name].clone()
    tensors[name].flatten()[:3] = value
    save_file(tensors, file, {"format": "pt"})
    return name


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_by_file_and_name(
    value: float, built: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(next((built / "base").glob("*/model")), tmp_path / "model"))
    name = damage(folder, value)
    with pytest.raises(UserError) as refused:
        build_base(Model(str(folder), None), tmp_path / "base")
    line = str(refused.value)
    assert str(folder / "model.safetensors") in line and name in line and " 3 of " in f" {line}"
    assert "learning rate" not in line


@pytest.mark.extended
def test_a_gguf_with_weights_that_are_not_finite_is_refused(built: Path, tmp_path: Path) -> None:
    gguf_file = pytest.importorskip("stages.extras.export.gguf_file")
    folder = Path(shutil.copytree(next((built / "sft").glob("*/model")), tmp_path / "model"))
    name = damage(folder, float("nan"))
    gguf_file.write_gguf(folder, tmp_path / "nan.gguf", GGUFType.f32, "a model")
    with pytest.raises(UserError, match=rf"nan.gguf: 3 of .*{name}"):
        build_base(Model(str(tmp_path / "nan.gguf"), None), tmp_path / "base")


def test_an_adapter_that_is_not_finite_or_too_large_is_refused(built: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    model = load_model(next((built / "base").glob("*/model")))
    get_peft_model(
        model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    ).save_pretrained(folder)
    file = folder / "adapter_model.safetensors"
    tensors = {name: torch.ones_like(tensor) for name, tensor in load_file(file).items()}
    save_file(tensors, file)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 1e300}))
    cfg = replace(settings("model=tiny").model, adapter=str(folder))
    with pytest.raises(UserError, match=r"model\.adapter=.*q_proj.*lora_alpha"):
        build_base(cfg, tmp_path / "large")
    name = sorted(tensors)[0]
    tensors[name][0, 0] = float("nan")
    save_file(tensors, file)
    with pytest.raises(UserError) as refused:
        build_base(cfg, tmp_path / "nan")
    assert str(file) in str(refused.value) and name in str(refused.value)
