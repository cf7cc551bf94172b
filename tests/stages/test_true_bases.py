"""True bases: no chat template, every family's vocabulary and BOS policy, and an end of turn that has to be learnt."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sentencepiece import SentencePieceTrainer
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    GemmaTokenizer,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
)
from trl.chat_template_utils import gemma3_chat_template

from stages.config.blocks.models import Template
from stages.models import chat_templates
from stages.models.contract import Contract, load_contract, load_or_derive_contract
from stages.models.rendering import GOLDEN
from stages.store.records import Message
from stages.tasks.generator import generate
from tests.helpers import build, slow_but

SIZE = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
}


@cache
def lines() -> list[str]:
    """Text of generated instructions, a line each, as SentencePiece reads its corpus."""
    examples = generate(0, {"sft": 300}, families=["sentiment", "classify_noun", "odd_one_out"])
    texts = list[str]()
    for example in examples:
        for message in example.conversation:
            texts += message["content"].split("\n")
    return texts


def byte_level(special: list[str]) -> Tokenizer:
    """A byte-level BPE: GPT-2's, Llama-3's, Qwen's kind."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(lines(), trainer)
    return backend


def llama3(folder: Path) -> PreTrainedTokenizerBase:
    """BOS before every text, turn tokens, no pad token."""
    bos = "<|begin_of_text|>"
    eos = "<|end_of_text|>"
    turns = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    backend = byte_level([bos, eos, "<|reserved_special_token_0|>", *turns])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos)


def qwen3(folder: Path) -> PreTrainedTokenizerBase:
    """No BOS at all, ChatML's tokens, and EOS as pad token."""
    backend = byte_level(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|vision_pad|>"]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


def gemma3(folder: Path) -> PreTrainedTokenizerBase:
    """SentencePiece's BPE with bytes to fall back on, line feeds as tokens of their own, a pad token."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    bytes_as_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=[*special, *bytes_as_tokens, "\n", "\n\n"],
        show_progress=False,
    )
    backend.train_from_iterator(lines(), trainer)
    trained = json.loads(backend.to_str())["model"]
    merges = [tuple(merge) for merge in trained["merges"]]
    tokenizer = GemmaTokenizer(vocab=trained["vocab"], merges=merges, add_bos_token=True)
    tokenizer.add_tokens([AddedToken(turn, special=True) for turn in special[-2:]])
    tokenizer.add_tokens([AddedToken(feed, normalized=False) for feed in ("\n", "\n\n")])
    return tokenizer


def mistral(folder: Path) -> PreTrainedTokenizerBase:
    """A `tokenizer.model` of SentencePiece's and nothing beside it: BOS before every text, no pad token."""
    written = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines()),
        model_writer=written,
        model_type="bpe",
        vocab_size=700,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    names = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps({**names, "add_bos_token": True}))
    return AutoTokenizer.from_pretrained(folder)


@dataclass
class Family:
    """A kind of base model, and the contract that SFT should derive from its tokenizer."""

    tokenizer: Callable[[Path], PreTrainedTokenizerBase]
    config: Callable[..., PreTrainedConfig]
    shape: dict[str, Any]
    turn: str  # how a rendered user turn begins
    end: str  # the end of turn
    pad: str
    bos: int  # how often BOS is rendered
    spare: int = 0  # rows of the embedding without a token


FAMILIES = {
    "llama3": Family(
        llama3,
        LlamaConfig,
        {"tie_word_embeddings": False},
        "<|start_header_id|>user<|end_header_id|>",
        "<|eot_id|>",
        "<|reserved_special_token_0|>",
        bos=1,
    ),
    "qwen3": Family(
        qwen3,
        Qwen3Config,
        {"tie_word_embeddings": True},
        "<|im_start|>user",
        "<|im_end|>",
        "<|vision_pad|>",
        bos=0,
        spare=64,
    ),
    "gemma3": Family(
        gemma3,
        Gemma3TextConfig,
        {"tie_word_embeddings": True, "sliding_window": 16, "query_pre_attn_scalar": 16},
        "<start_of_turn>user",
        "<end_of_turn>",
        "<pad>",
        bos=1,
    ),
    "mistral": Family(
        mistral,
        MistralConfig,
        {"tie_word_embeddings": False, "sliding_window": 24},
        "### User:",
        "</s>",
        "<unk>",
        bos=1,
    ),
}


def base_folder(family: Family, folder: Path) -> Path:
    """A base as it comes from the hub: random weights in bfloat16, a tokenizer, and no chat template."""
    tokenizer = family.tokenizer(folder)
    assert tokenizer.chat_template is None
    torch.manual_seed(0)
    config = family.config(
        vocab_size=len(tokenizer) + family.spare,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **SIZE,
        **family.shape,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    if not (folder / "tokenizer.model").exists():
        tokenizer.save_pretrained(folder)
    return folder


def only(root: Path, stage: str) -> Path:
    (manifest,) = root.glob(f"{stage}/*/manifest.json")
    return manifest.parent


@pytest.mark.parametrize("name", slow_but(FAMILIES, "llama3"))
def test_a_true_base_of_every_family_goes_through_the_pipeline(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    root = tmp_path / "outputs"
    base = base_folder(family, tmp_path / name)
    target = "stage=sample" if name == "llama3" else "stage=dpo"
    rates = ("sft.learning_rate=5e-3", "dpo.learning_rate=1e-3")
    build(root, f"model.path={base}", *rates, target, "sft.epochs=2")
    folder = only(root, "sft") / "model"
    contract = load_contract(folder)
    tokenizer = contract.tokenizer
    prompt = tokenizer.decode(contract.prompt(GOLDEN[0][:1]))
    assert prompt.removeprefix(str(tokenizer.bos_token)).startswith(family.turn)
    assert (tokenizer.eos_token, tokenizer.pad_token) == (family.end, family.pad)
    assert tokenizer.pad_token_id not in contract.stop_ids
    assert trained_words(contract, GOLDEN[0]) == GOLDEN[0][-1]["content"] + family.end
    before, after = (load_file(path / "model.safetensors") for path in (base, folder))
    assert {k: v.shape for k, v in before.items()} == {k: v.shape for k, v in after.items()}
    metrics = json.loads((only(root, "sample") / "manifest.json").read_text())["metrics"]
    assert metrics["stop_rate"] > 0.9, "the end of turn is learnt"


def trained_words(contract: Contract, messages: list[Message]) -> str:
    ids, trained = contract.example(messages)
    return contract.tokenizer.decode([i for i, t in zip(ids, trained, strict=True) if t])


@pytest.mark.parametrize("name", FAMILIES)
def test_bos_comes_once_where_the_tokenizer_adds_it_and_never_where_not(
    name: str, tmp_path: Path
) -> None:
    family = FAMILIES[name]
    base = base_folder(family, tmp_path / name)
    tokenizer = AutoTokenizer.from_pretrained(base)
    prompt_ids = load_or_derive_contract(base).prompt(GOLDEN[1][:2])
    contract = chat_templates.establish_contract(
        tokenizer, Template("auto", False), True, len(tokenizer) + family.spare
    )
    bos = tokenizer.bos_token_id
    for ids in (prompt_ids, contract.prompt(GOLDEN[1][:2]), contract.example(GOLDEN[0])[0][:-1]):
        assert ids.count(bos) == ids[:1].count(bos) == family.bos


@pytest.mark.parametrize("train", [True, False])
def test_a_line_feed_behind_gemmas_end_of_turn_is_no_end_of_turn(
    train: bool, tmp_path: Path
) -> None:
    """Its own template marks both as the assistant's; an instruct checkpoint's turn ends at the token before, or at
    those that its generation config names."""
    tokenizer = gemma3(tmp_path)
    tokenizer.chat_template = gemma3_chat_template
    more = tokenizer.convert_tokens_to_ids("<mask>")
    further_stops = [] if train else [more]
    contract = chat_templates.establish_contract(
        tokenizer, Template("auto", False), train, len(tokenizer), further_stops
    )
    assert trained_words(contract, GOLDEN[1]) == "4<end_of_turn>- ja, 日本<end_of_turn>"
    assert contract.example(GOLDEN[1])[0][-1] == contract.stop_ids[0]
    assert (more in contract.stop_ids) == (not train)
