"""True bases: no chat template, every family's vocabulary and BOS policy, and an end of turn that has to be learnt."""

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
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

import stages.base
from stages import answer
from stages.config.blocks.models import Template, TemplateFile
from stages.config.errors import UserError
from stages.models import chat_templates
from stages.models.contract import load_contract, load_or_derive_contract
from stages.models.loading import load_model, save_model
from stages.models.rendering import GOLDEN
from stages.objectives.sft import apply_contract
from stages.tasks.generator import generate
from tests.helpers import QLORA, build, settings, slow_but
from tests.rows import work

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
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
    texts = [
        text for e in examples for text in [*(m["content"] for m in e.messages), e.reference or ""]
    ]
    return [line for text in texts for line in text.split("\n")]


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
    bos, eos = "<|begin_of_text|>", "<|end_of_text|>"
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


def gpt2(folder: Path) -> PreTrainedTokenizerBase:
    """One special token for everything; it is BOS by name, and the tokenizer adds none."""
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level([end]), bos_token=end, eos_token=end, unk_token=end
    )


def gemma3(folder: Path) -> PreTrainedTokenizerBase:
    """SentencePiece's BPE with bytes to fall back on, line feeds as tokens of their own, a pad token."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(
        vocab_size=800, special_tokens=[*special, *BYTES, "\n", "\n\n"], show_progress=False
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


def unigram(folder: Path) -> PreTrainedTokenizerBase:
    """SentencePiece's unigram model: it has a BOS that it does not add."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [decoders.Metaspace(), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=700,
        special_tokens=["<unk>", "<s>", "</s>", *BYTES],
        unk_token="<unk>",
        show_progress=False,
    )
    backend.train_from_iterator(lines(), trainer)
    state = json.loads(backend.to_str())
    state["model"]["byte_fallback"] = True
    backend = Tokenizer.from_str(json.dumps(state))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


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
    "unigram": Family(
        unigram, LlamaConfig, {"tie_word_embeddings": True}, "### User:", "</s>", "<unk>", bos=0
    ),
    "gpt2": Family(
        gpt2,
        LlamaConfig,
        {"tie_word_embeddings": True},
        "### User:",
        "<|endoftext|>",
        "<|pad|>",
        bos=0,
        spare=8,
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


def built_from(base: Path, root: Path, *overrides: str) -> None:
    build(
        root, f"model.path={base}", "sft.learning_rate=5e-3", "dpo.learning_rate=1e-3", *overrides
    )


def only(root: Path, stage: str) -> Path:
    (manifest,) = root.glob(f"{stage}/*/manifest.json")
    return manifest.parent


def stop_rates(root: Path) -> dict[str, float]:
    """The share of answers that end by themselves, by the stage of the model that gave them."""
    manifests = [json.loads(path.read_text()) for path in root.glob("answer/*/manifest.json")]
    return {m["inputs"]["model"]["stage"]: m["metrics"]["stop_rate"] for m in manifests}


@pytest.mark.parametrize("name", slow_but(FAMILIES, "llama3"))
def test_a_true_base_of_every_family_goes_through_the_pipeline(name: str, tmp_path: Path) -> None:
    family, root = FAMILIES[name], tmp_path / "outputs"
    base = base_folder(family, tmp_path / name)
    built_from(base, root, "stage=eval", "sft.epochs=2")
    for stage in ("sft", "dpo"):
        folder = only(root, stage) / "model"
        contract = load_contract(folder)
        prompt = contract.prompt(GOLDEN[0][:1])
        assert (
            contract.tokenizer.decode(prompt)
            .removeprefix(str(contract.tokenizer.bos_token))
            .startswith(family.turn)
        )
        assert (contract.tokenizer.eos_token, contract.tokenizer.pad_token) == (
            family.end,
            family.pad,
        )
        assert contract.tokenizer.pad_token_id not in contract.stop_ids
        for messages in (GOLDEN[0], GOLDEN[1][3:]):
            ids, trained = contract.example(messages)
            words = contract.tokenizer.decode([i for i, t in zip(ids, trained, strict=True) if t])
            assert words == messages[-1]["content"] + family.end, (
                "exactly the answer and its end are trained"
            )
        before, after = (load_file(path / "model.safetensors") for path in (base, folder))
        assert {k: v.shape for k, v in before.items()} == {k: v.shape for k, v in after.items()}, (
            "no row was added"
        )
    rates = stop_rates(root)
    assert rates["base"] < 0.2
    assert min(rates["sft"], rates["dpo"]) > 0.9, "the end of turn is learnt"


@pytest.mark.parametrize("name", FAMILIES)
def test_bos_comes_once_where_the_tokenizer_adds_it_and_never_where_not(
    name: str, tmp_path: Path
) -> None:
    family = FAMILIES[name]
    base = base_folder(family, tmp_path / name)
    tokenizer = AutoTokenizer.from_pretrained(base)
    prompt_tokens = load_or_derive_contract(base).prompt(GOLDEN[1][:2])
    contract = chat_templates.establish_contract(
        tokenizer, Template("auto", False), True, len(tokenizer) + family.spare
    )
    bos = tokenizer.bos_token_id
    for ids in (prompt_tokens, contract.prompt(GOLDEN[1][:2]), contract.example(GOLDEN[0])[0][:-1]):
        assert ids.count(bos) == ids[:1].count(bos) == family.bos
        assert tokenizer("a").input_ids[:1].count(bos) == family.bos


@pytest.mark.extended
def test_a_vocabulary_without_a_free_token_is_refused(tmp_path: Path) -> None:
    base = base_folder(replace(FAMILIES["gpt2"], spare=0), tmp_path / "gpt2")
    with pytest.raises(UserError, match=r"free for padding: all 600 rows"):
        built_from(base, tmp_path / "outputs", "stage=sft")


@pytest.mark.extended
@pytest.mark.parametrize("adapter", [*slow_but(["none", "lora"], "lora"), QLORA])
def test_it_is_widened_by_one_row_on_request_whatever_is_trained(
    adapter: str, tmp_path: Path
) -> None:
    """Tied embeddings, too: an adapter leaves the new row frozen, and nothing but padding reads it."""
    base, root = (
        base_folder(replace(FAMILIES["gpt2"], spare=0), tmp_path / "gpt2"),
        tmp_path / "outputs",
    )
    built_from(
        base,
        root,
        "stage=sample",
        "sft.template.resize=true",
        "sft.epochs=1",
        f"sft.adapter={adapter}",
    )
    model = AutoModelForCausalLM.from_pretrained(only(root, "sft") / "model")
    assert model.get_input_embeddings().weight.shape == (601, 64)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_line_feed_behind_gemmas_end_of_turn_is_no_end_of_turn(tmp_path: Path) -> None:
    """Its own template marks both as the assistant's; an instruct checkpoint's turn ends at the token before."""
    for train in (True, False):
        tokenizer = gemma3(tmp_path)
        tokenizer.chat_template = gemma3_chat_template
        contract = chat_templates.establish_contract(
            tokenizer, Template("auto", False), train, len(tokenizer)
        )
        assert tokenizer.eos_token == "<end_of_turn>"
        ids, trained = contract.example(GOLDEN[1])
        words = tokenizer.decode([i for i, t in zip(ids, trained, strict=True) if t])
        assert words == "4<end_of_turn>- ja, 日本<end_of_turn>"
        assert ids[-1] == contract.stop_ids[0]


def test_an_instruct_checkpoints_further_stop_tokens_stay(tmp_path: Path) -> None:
    """Its generation config names them: a sampled end of text would else be no end."""
    for train in (False, True):
        tokenizer = gemma3(tmp_path)
        tokenizer.chat_template = gemma3_chat_template
        more = tokenizer.convert_tokens_to_ids("<mask>")
        contract = chat_templates.establish_contract(
            tokenizer, Template("auto", False), train, len(tokenizer), [more] * (not train)
        )
        assert (more in contract.stop_ids) == (not train)
        assert tokenizer.pad_token_id not in contract.stop_ids


def test_a_template_of_ones_own_must_begin_with_bos_where_the_tokenizer_does(
    tmp_path: Path,
) -> None:
    file = tmp_path / "template.jinja"
    file.write_text((chat_templates.TEMPLATES / "plain.jinja").read_text())
    tokenizer = llama3(tmp_path)
    with pytest.raises(UserError, match=r"with \{\{ bos_token \}\}"):
        chat_templates.establish_contract(
            tokenizer, TemplateFile(path=str(file)), True, len(tokenizer)
        )
    file.write_text("{{ bos_token }}" + file.read_text())
    chat_templates.establish_contract(tokenizer, TemplateFile(path=str(file)), True, len(tokenizer))


def test_a_template_of_tokens_that_the_vocabulary_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"template=gemma: .*<end_of_turn>"):
        chat_templates.establish_contract(llama3(tmp_path), Template("gemma", False), True, 600)


@pytest.mark.slow
def test_real_weights_stripped_to_a_true_base_learn_to_stop(tmp_path: Path) -> None:
    """SmolLM2 as its base is published: no chat template, and <|endoftext|> for BOS, EOS and padding alike."""
    stages.base.run(settings("model=embedded").model, {}, work(tmp_path))
    base, root = tmp_path / "model", tmp_path / "outputs"
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = None
    tokenizer.bos_token = tokenizer.eos_token = tokenizer.pad_token = end = "<|endoftext|>"
    for file in (*base.glob("chat_template*"), base / "generation_config.json"):
        file.unlink()
    tokenizer.save_pretrained(base)
    config = json.loads((base / "config.json").read_text())
    ids = {f"{name}_token_id": tokenizer.eos_token_id for name in ("bos", "eos", "pad")}
    (base / "config.json").write_text(json.dumps({**config, **ids}))

    sizes = (
        "sft.epochs=1",
        "sft.learning_rate=3e-4",
        "sft.batch_size=4",
        "sft.evaluations=1",
        "precision=auto",
    )
    built_from(
        base, root, "stage=sft", "template=plain", "data.tasks.sft=64", "data.tasks.test=8", *sizes
    )
    rates = {}
    for stage in ("base", "sft"):
        out = work(tmp_path / stage)
        inputs = {"data": only(root, "data"), "model": only(root, stage)}
        rates[stage] = answer.run(settings("answer.max_new_tokens=24").answer, inputs, out)[
            "stop_rate"
        ]
    assert load_contract(only(root, "sft") / "model").tokenizer.eos_token == end
    assert rates["sft"] > 0.9 > rates["base"] + 0.5, rates


def test_a_base_with_a_sampling_config_that_transformers_refuses_is_saved_after_training(
    built: Path, tmp_path: Path
) -> None:
    """Vicuna's has a temperature and no `do_sample`: transformers saves such a file only unchanged."""
    folder = tmp_path / "base"
    shutil.copytree(next((built / "base").glob("*/model")), folder)
    (folder / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 1, "temperature": 0.9, "top_p": 0.6})
    )
    contract = load_contract(next((built / "sft").glob("*/model")))
    model = apply_contract(load_model(folder), contract, 0)
    save_model(model, tmp_path / "trained")
    saved = json.loads((tmp_path / "trained" / "generation_config.json").read_text())
    assert saved["eos_token_id"] == contract.stop_ids and "temperature" not in saved
