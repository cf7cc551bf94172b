"""Tests of `stage=export` for models: GGUF files that load as the same model, a push, and plain transformers."""

import json
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize, quantize
from huggingface_hub import constants, metadata_load
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    pipeline,
)

from stages import base
from stages.config.choices import GGUFType
from stages.config.errors import UserError
from stages.extras.export import gguf_file
from stages.models import hub, rendering
from stages.models.contract import load_contract
from stages.models.loading import load_model, load_tokenizer
from stages.pages.headline import uses_of_model
from stages.preflight import constraints
from stages.store.source_files import locate
from tests.helpers import TINY, Chain, inside, refused, settings

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1030,  # six rows more than the tokenizer has
    "max_position_embeddings": 256,
}


@pytest.fixture
def tuned(built: Path) -> Path:
    """The folder of a trained model with a contract."""
    return next((built / "dpo").glob("*/model"))


def saved(model: PreTrainedModel, tuned: Path, folder: Path) -> Path:
    """Save a model with random parameters, including biases and norms, with the tokenizer of the tiny model."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    load_tokenizer(tuned).save_pretrained(folder)
    return folder


def read(file: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    ).eval()


def logits(model: PreTrainedModel) -> torch.Tensor:
    ids = torch.randint(0, 1024, (3, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(ids).logits


def test_a_file_in_f32_is_the_same_model(tuned: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tied = LlamaForCausalLM(LlamaConfig(tie_word_embeddings=True, **SHAPE))
    qwen = Qwen3ForCausalLM(Qwen3Config(head_dim=128, **SHAPE))
    for model in (tied, qwen):
        name = model.config.model_type
        folder = saved(model, tuned, tmp_path / name)
        file = tmp_path / f"{name}-out" / "model.gguf"
        gguf_file.write_gguf(folder, file, GGUFType.f32, "a model")
        assert [p.name for p in file.parent.iterdir()] == ["model.gguf"]
        assert torch.allclose(logits(read(file)), logits(load_model(folder)), atol=1e-5, rtol=0)


def test_smaller_types_round_matrices_and_nothing_else(tuned: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    gguf_file.write_gguf(tuned, file, GGUFType.q8_0, "a model")
    kind = GGMLQuantizationType.Q8_0
    weights = load_model(tuned).state_dict()
    for name, exported_weights in read(file).state_dict().items():
        expected = weights[name].numpy()
        if expected.ndim == 2:
            expected = dequantize(quantize(expected, kind), kind)
        assert np.array_equal(exported_weights.numpy(), expected), name
    assert file.stat().st_size < 0.6 * (tuned / "model.safetensors").stat().st_size


@pytest.mark.extended
def test_the_command_writes_a_file_whose_tokenizer_and_template_are_the_folders(
    chain: Chain,
) -> None:
    ran = inside(
        *TINY, f"outputs={chain.root}", "stage=export", "export.model=sft", "export.dtype=f32"
    )
    assert ran.returncode == 0, ran.stderr
    folder = chain.folder("sft")
    file = chain.root / "export" / f"sft-{folder.name}-f32.gguf"
    assert str(file) in ran.stdout
    tokenizer = load_tokenizer(folder / "model")
    exported_tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    for messages in rendering.GOLDEN:
        for conversation, options in (
            (messages, {}),
            (messages[:-1], {"add_generation_prompt": True}),
        ):
            ids, expected = (
                t.apply_chat_template(conversation, **options)["input_ids"]
                for t in (exported_tokenizer, tokenizer)
            )
            assert ids == expected
    assert (exported_tokenizer.eos_token_id, exported_tokenizer.pad_token_id) == (
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    )
    # no tag that only transformers knows is left
    jinja2.Environment().parse(exported_tokenizer.chat_template)
    assert torch.equal(logits(read(file)), logits(load_model(folder / "model")))


@pytest.mark.slow
def test_an_export_of_llama_cpps_own_file_is_that_file(tmp_path: Path) -> None:
    """SmolLM2 from its GGUF file and back, cut to one layer: names, values and tokenizer are the converter's."""
    cfg = settings("model=embedded").model
    source = locate(str(cfg.path), "model.path")
    model, tokenizer = base.read_gguf(source, cfg)
    model.config.num_hidden_layers = 1
    model.model.layers = model.model.layers[:1]
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    gguf_file.write_gguf(tmp_path / "model", tmp_path / "model.gguf", GGUFType.f32, "SmolLM2")

    original = GGUFReader(source)
    written = GGUFReader(tmp_path / "model.gguf")
    tensors = {
        t.name: dequantize(t.data, t.tensor_type)
        for t in original.tensors
        if not t.name.startswith("blk.")
    }
    tensors |= {
        t.name: dequantize(t.data, t.tensor_type)
        for t in original.tensors
        if t.name.startswith("blk.0.")
    }
    assert {t.name for t in written.tensors} == set(tensors)
    for tensor in written.tensors:
        assert np.array_equal(tensor.data, tensors[tensor.name]), tensor.name
    # GPT-2's, as read
    changed = {"llama.block_count", "general.name", "general.file_type", "tokenizer.ggml.pre"}
    described = {name for name in original.fields if name.startswith(("llama.", "tokenizer."))}
    for name in described - changed:
        assert written.fields[name].contents() == original.fields[name].contents(), name


def test_a_weight_too_large_for_the_type_is_refused_by_name(tuned: Path, tmp_path: Path) -> None:
    large = load_model(tuned)
    large.model.layers[0].mlp.up_proj.weight.data[0, 0] = 70_000.0
    folder = saved(large, tuned, tmp_path / "model")
    with pytest.raises(UserError, match=r"up_proj\.weight .*export\.dtype=f32"):
        gguf_file.write_gguf(folder, tmp_path / "f16.gguf", GGUFType.f16, "m")
    gguf_file.write_gguf(folder, tmp_path / "f32.gguf", GGUFType.f32, "m")


def test_what_gguf_would_lose_or_has_no_name_for_is_refused(tuned: Path, tmp_path: Path) -> None:
    def refused(model: PreTrainedModel, message: str) -> None:
        folder = saved(model, tuned, tmp_path / str(len(list(tmp_path.iterdir()))))
        with pytest.raises(UserError, match=message):
            gguf_file.write_gguf(folder, tmp_path / "out" / "model.gguf", GGUFType.f16, "a model")
        assert not list((tmp_path / "out").glob("*"))

    refused(
        Gemma3ForCausalLM(Gemma3TextConfig(head_dim=16, **SHAPE)),
        "not written for gemma3_text models, only for llama, mistral, qwen2, qwen3",
    )
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    refused(
        LlamaForCausalLM(LlamaConfig(rope_parameters=scaled, **SHAPE)),
        "GGUF would lose rope_parameters",
    )
    refused(
        LlamaForCausalLM(LlamaConfig(attention_bias=True, **SHAPE)),
        "GGUF would lose attention_bias",
    )
    torch.manual_seed(0)
    folder = saved(LlamaForCausalLM(LlamaConfig(**SHAPE)), tuned, tmp_path / "unigram")
    words = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    with pytest.raises(UserError, match="not with Unigram"):
        gguf_file.write_gguf(folder, tmp_path / "out" / "model.gguf", GGUFType.f16, "a model")


@pytest.mark.extended
@pytest.mark.parametrize("typed", [TINY, ()])
def test_a_push_sends_the_folder_privately_with_what_the_evaluation_found(
    typed: tuple[str, ...], chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = "hf_never_to_be_seen"
    pushed: dict[str, Any] = {}

    class Api:
        def __init__(self, token: str):
            pushed["token"] = token

        def create_repo(self, repo: str, **options: object) -> str:
            pushed.update(options, repo=repo)
            return f"https://hub/{repo}"

        def create_commit(self, repo: str, operations: list[Any], **_: object) -> None:
            pushed["files"] = {each.path_in_repo: each.path_or_fileobj for each in operations}

    monkeypatch.setattr(hub, "HfApi", Api)
    monkeypatch.setenv("HF_TOKEN", token)
    line = ("stage=export", "export.format=hub", "export.repo=someone/something")
    ran = inside(*typed, f"outputs={chain.root}", *line)
    assert ran.returncode == 0, ran.stderr
    assert (pushed["token"], pushed["repo"]) == (token, "someone/something")
    assert (pushed["private"], pushed["repo_type"]) == (True, "model")
    files = pushed["files"]

    model = chain.folder("dpo") / "model"
    assert set(files) == {path.name for path in model.iterdir()}
    for name in set(files) - {"README.md"}:
        assert Path(files[name]) == model / name
    card = files["README.md"].decode()
    assert card.startswith((model / "README.md").read_text(encoding="utf-8"))
    results = json.loads((chain.folder("eval") / "results.json").read_text())
    assert results["verdict"] in card
    rate = results["primary"]["policy"]
    assert f"{rate['mean']:.1%} ({rate['low']:.1%} to {rate['high']:.1%})" in card
    (chain.root / "card.md").write_text(card, encoding="utf-8")
    assert metadata_load(chain.root / "card.md") == metadata_load(model / "README.md")
    leaks = [p for p in chain.root.rglob("*") if p.is_file() and token.encode() in p.read_bytes()]
    assert not leaks and token not in ran.stdout + ran.stderr


@pytest.mark.parametrize(
    ("arguments", "token", "message"),
    [
        ((), "hf_x", "needs export.repo=user/name"),
        (("export.repo=a/b",), None, "a token that can write: HF_TOKEN"),
        (
            ("export.repo=a/b", "export.model=base"),
            "hf_x",
            "export.model=base was not trained here",
        ),
        (("export.repo=a/b",), "hf_x", "nothing was pushed. ConnectError: [Errno 111]"),
    ],
)
def test_a_push_that_cannot_be_is_told_in_one_line(
    arguments: tuple[str, ...],
    token: str | None,
    message: str,
    chain: Chain,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # no server listens there
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    line = refused(*TINY, f"outputs={chain.root}", "stage=export", "export.format=hub", *arguments)
    assert message in line and "hf_x" not in line


def test_a_published_folder_chats_in_transformers_as_it_is(tuned: Path) -> None:
    """Without Plumbline's code, the model ends its turn with the contract's stop token."""
    model = AutoModelForCausalLM.from_pretrained(tuned)
    tokenizer = AutoTokenizer.from_pretrained(tuned)
    chat = pipeline("text-generation", model=model, tokenizer=tokenizer)
    conversation = [{"role": "user", "content": "Name a colour."}]
    options = {"do_sample": False, "max_new_tokens": 64}
    [generated] = chat(conversation, return_tensors=True, **options)
    ids = generated["generated_token_ids"]
    contract = load_contract(tuned)
    completion = ids[len(contract.prompt(conversation)) :]
    assert ids[: -len(completion)] == contract.prompt(conversation)
    assert len(completion) < 64 and completion[-1] == contract.stop_ids[0]
    [turn] = chat(conversation, **options)
    assert turn["generated_text"][-1] == {"role": "assistant", "content": contract.text(completion)}


@pytest.mark.parametrize(
    "line", [("stage=export", "export.model=sft"), ("stage=chat", "chat.model=sft")]
)
def test_settings_that_only_sft_could_build_are_enough_for_its_model(line: tuple[str, str]) -> None:
    typed = ("data=file", "data.path=docs/examples/demonstrations.jsonl")
    constraints.validate_config(settings(*TINY, *typed, *line))
    with pytest.raises(UserError, match="sample needs 1 prompts"):
        constraints.validate_config(settings(*TINY, *typed, "stage=report"))


@pytest.mark.parametrize(
    ("typed", "way_out"),
    [
        ("export.repo=user/name stage=export", "export.format=hub"),
        ("export.dtype=f16 stage=export export.format=dataset", "export.format=gguf"),
        ("export.repo=a/../b", "Type export.repo=user/name"),
        ("stage=export export.format=hub export.repo=a/b.git", "Type export.repo=user/name"),
    ],
)
def test_settings_that_do_not_fit_are_refused(typed: str, way_out: str) -> None:
    assert way_out in refused(*TINY, *typed.split())


def test_a_name_of_the_hub_is_let_through() -> None:
    constraints.validate_config(settings(*TINY, "export.repo=some-one/my_model.v2"))


def test_a_report_suggests_it() -> None:
    assert "python run.py stage=export" in [typed for _, typed in uses_of_model("python run.py")]
