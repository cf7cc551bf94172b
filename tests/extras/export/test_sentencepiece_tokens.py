"""Tests of GGUF files with SentencePiece's pieces: read by transformers, and by llama.cpp's rule, they give the ids of the
folder."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader, TokenType
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerBase,
)

from stages.config.choices import GGUFType
from stages.config.errors import UserError
from stages.extras.export.gguf_file import write_gguf
from stages.models.loading import load_model, load_tokenizer
from tests.helpers import refused
from tests.models.piece_tokenizers import INST, LEGACY, NEVER, REPLACE, metaspace, pieces
from tests.stages.test_true_bases import mistral

TURNS = (
    "{%- for m in messages -%}{{- '<s>' ~ m.role ~ '\\n' ~ m.content ~ '</s>\\n' -}}{%- endfor -%}"
)
LOWER = {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, REPLACE]}}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def save(folder: Path, tokenizer: PreTrainedTokenizerBase, kind: str = "llama") -> Path:
    """Save a model with this tokenizer, and rows that no token has."""
    torch.manual_seed(0)
    fields = SIZES | {"vocab_size": len(tokenizer) + 5}
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**fields))
    else:
        model = MistralForCausalLM(MistralConfig(**fields, sliding_window=64))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def fields_of(file: Path) -> dict[str, Any]:
    reader = GGUFReader(file)
    return {
        name.removeprefix("tokenizer.ggml."): field.contents()
        for name, field in reader.fields.items()
    }


@pytest.mark.parametrize(
    ("rule", "template", "adds_space"),
    [
        (LEGACY, INST, True),
        (LEGACY, TURNS, True),
        (metaspace("first"), INST, False),  # none stands after <s> in training
        (metaspace("always"), TURNS, True),
        (metaspace("always"), "", True),
        (NEVER, INST, False),
    ],
)
def test_a_file_with_pieces_gives_the_ids_of_the_folder(
    rule: dict[str, Any], template: str, adds_space: bool, tmp_path: Path
) -> None:
    folder = save(tmp_path / "model", pieces(rule, template))
    file = tmp_path / "file" / "model.gguf"
    write_gguf(folder, file, GGUFType.f32, "m")
    fields = fields_of(file)
    assert fields["model"] == "llama" and fields["add_space_prefix"] is adds_space
    types = [TokenType(number) for number in fields["token_type"]]
    assert types[:3] == [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
    assert types[3:259] == [TokenType.BYTE] * 256 and types[-5:] == [TokenType.UNUSED] * 5
    tokenizer = load_tokenizer(folder)
    from_file = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    if "Metaspace" in str(rule) or rule is LEGACY:
        for text in ("Name a fruit", "Größer  als 3? 日本 😀", "apple\n\n0123"):
            assert from_file(text).input_ids == tokenizer(text).input_ids
    weights = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    ).state_dict()
    for name, expected in load_model(folder).state_dict().items():
        assert torch.equal(weights[name], expected), name


def test_sentencepieces_own_model_is_read_with_mistrals_window_as_context(tmp_path: Path) -> None:
    tokenizer = mistral(tmp_path / "tokenizer")
    folder = save(tmp_path / "model", tokenizer, "mistral")
    file = tmp_path / "file" / "model.gguf"
    write_gguf(folder, file, GGUFType.f32, "m")
    fields = fields_of(file)
    assert fields["model"] == "llama" and fields["llama.context_length"] == 64
    from_file = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    text = "Name a fruit that starts with A. Größer als 日本?"
    assert from_file(text).input_ids == tokenizer(text).input_ids
    ids = torch.arange(3, 40)[None]
    read = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    with torch.no_grad():
        assert torch.allclose(read(ids).logits, load_model(folder)(ids).logits, atol=1e-5)


def test_what_llama_cpp_would_split_otherwise_is_refused_with_a_way_out(tmp_path: Path) -> None:
    folder = save(tmp_path / "lower", pieces(LOWER, INST))
    with pytest.raises(UserError, match=r"export\.format=gguf: .*export\.format=hub"):
        write_gguf(folder, tmp_path / "file" / "model.gguf", GGUFType.f32, "m")
    tokenizer = pieces(LEGACY, INST)
    folder = save(tmp_path / "other_order", tokenizer)
    definition = json.loads((folder / "tokenizer.json").read_text())
    # without its merge this piece is never made here, but llama.cpp makes each that it knows
    definition["model"]["merges"].remove(["▁", "a"])
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    with pytest.raises(UserError, match=r"export\.format=gguf: .*export\.format=hub"):
        write_gguf(folder, tmp_path / "file" / "model.gguf", GGUFType.f32, "m")
    assert not list((tmp_path / "file").glob("*.gguf"))


@pytest.mark.extra("export")
def test_an_export_is_tried_before_anything_is_trained(tmp_path: Path) -> None:
    folder = save(tmp_path / "lower", pieces(LOWER, INST))
    (tmp_path / "outputs").mkdir()  # which the command only reads
    typed = ["recipe=tiny", "tracker=none", "model=before", f"model.path={folder}"]
    typed += [f"outputs={tmp_path / 'outputs'}", "stage=export", "export.model=sft"]
    line = refused(*typed)
    assert "export.format=gguf" in line and "export.format=hub" in line
    assert not (tmp_path / "outputs" / "sft").exists()
