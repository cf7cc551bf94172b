"""Tests of the contract on real tokenizers, with templates that fulfil it and templates that break it."""

import json
import shutil
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from stages.config.blocks.models import Template, TemplateFile
from stages.config.choices import Spelled
from stages.models import chat_templates
from stages.models.contract import (
    Contract,
    load_contract,
    load_or_derive_contract,
)
from stages.models.loading import load_tokenizer
from stages.models.rendering import GOLDEN, ContractError
from stages.store.records import Message

CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


OWN = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}: {{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
)


def byte_level(special: list[str], **options: object) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer, trained here, without a chat template."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    text = ["Name a colour. Be brief. 2 + 2? User Assistant System ### the quick brown fox"] * 3
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    backend.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **options)


def with_bos() -> PreTrainedTokenizerFast:
    """Return a tokenizer that puts <s> before every text, as Llama's do."""
    tokenizer = byte_level(
        ["<s>", "</s>", "<unk>"], bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    return tokenizer


def establish(
    tokenizer: PreTrainedTokenizerBase, kind: str, path: Path | None = None, train: bool = True
) -> Contract:
    """Return the contract for a model whose embedding has a spare row."""
    return chat_templates.establish_contract(
        tokenizer,
        TemplateFile(path=str(path)) if path else Template(kind),
        train,
        len(tokenizer) + 1,
    )


@pytest.fixture
def model(built: Path, tmp_path: Path) -> Path:
    """Return the folder of an SFT model."""
    shutil.copytree(next((built / "sft").glob("*/model")), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("tokenizer", "kind", "end"),
    [
        (byte_level(CHATML, eos_token="<|endoftext|>"), "auto", "<|im_end|>"),
        (byte_level(["</s>", "<unk>"], eos_token="</s>"), "auto", "</s>"),
        (with_bos(), "plain", "</s>"),
    ],
)
def test_the_end_of_turn_is_trained_and_padding_ends_nothing(
    tokenizer: PreTrainedTokenizerBase, kind: str, end: str, tmp_path: Path
) -> None:
    contract = establish(tokenizer, kind)
    for messages in GOLDEN:
        answers = "".join(m["content"] + end for m in messages if m["role"] == "assistant")
        assert trained_text(contract, messages) == answers, "the words and their end of turn"
        prompt = contract.prompt(messages[:-1])
        assert contract.example(messages)[0][: len(prompt)] == prompt
    assert tokenizer.pad_token_id not in contract.stop_ids
    assert tokenizer.eos_token == end
    contract.save(tmp_path)
    loaded = load_contract(tmp_path)
    assert (loaded.facts(), loaded.golden()) == (contract.facts(), contract.golden())


TRL = Path(str(files("trl"))) / "chat_templates"
PHI = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>", "<unk>"]


@pytest.mark.parametrize("train", [True, False])
def test_an_eos_after_the_whole_conversation_is_no_end_of_turn(train: bool) -> None:
    """Check the templates of Phi-3, where each turn ends with <|end|>."""
    tokenizer = byte_level(PHI, eos_token="<|endoftext|>")
    tokenizer.chat_template = (TRL / f"phi3{'_training' * train}.jinja").read_text()
    contract = establish(tokenizer, "auto", train=train)
    assert [tokenizer.decode([i]) for i in contract.stop_ids] == ["<|end|>", "<|endoftext|>"]
    assert trained_text(contract, [*GOLDEN[0], *GOLDEN[0]]) == "Blue.<|end|>" * 2


def test_who_has_a_template_that_cannot_be_used_is_told_one_that_fits() -> None:
    tokenizer = byte_level(["<start_of_turn>", "<end_of_turn>", "<unk>"], eos_token="<end_of_turn>")
    tokenizer.chat_template = "{{ raise_exception('not today') }}"
    with pytest.raises(ContractError, match=r"not today.* One that fits: template=gemma"):
        establish(tokenizer, "auto")


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (
            "zephyr",
            "<s><|system|>\nBe brief.</s>\n<|user|>\n2 + 2?\n</s>\n<|assistant|>\n4</s>\n<|user|>\n",
        ),
        ("tulu", "<s><|system|>\nBe brief.\n<|user|>\n2 + 2?\n\n<|assistant|>\n4</s>\n<|user|>\n"),
    ],
)
def test_published_templates_are_rendered_as_published(kind: str, text: str) -> None:
    contract = establish(with_bos(), kind)
    assert contract.tokenizer.decode(contract.prompt(GOLDEN[1][:4])).startswith(text)
    assert contract.tokenizer.decode(contract.prompt(GOLDEN[0][:1])).endswith("\n<|assistant|>\n")


def test_bos_is_rendered_once_where_the_tokenizer_adds_it() -> None:
    contract = establish(with_bos(), "plain")
    ids = contract.prompt(GOLDEN[0][:1])
    assert ids.count(contract.tokenizer.bos_token_id) == 1
    assert ids[0] == contract.tokenizer.bos_token_id


@pytest.mark.parametrize(
    ("jinja", "reason"),
    [
        ("{{ missing.field.deeper }}", "cannot render"),
        (
            "{% for m in messages %}{{ m['content'] + '<|im_end|>' }}{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>{% endif %}",
            "begins an answer with",
        ),
        ("{% for m in messages %}{{ m['role'] + '<|im_end|>' }}{% endfor %}", "leaves out"),
        (
            "<|im_start|><|im_start|>{% for m in messages %}{{ m['content'] + '<|im_end|>' }}{% endfor %}",
            "BOS (.*) is rendered twice",
        ),
    ],
)
def test_a_template_that_breaks_the_contract_is_refused(
    jinja: str, reason: str, tmp_path: Path
) -> None:
    file = tmp_path / "template.jinja"
    file.write_text(jinja)
    tokenizer = byte_level(CHATML, eos_token="<|endoftext|>", bos_token="<|im_start|>")
    with pytest.raises(ContractError, match=reason):
        establish(tokenizer, "file", file)


def test_a_tokenizer_without_a_template_is_told_to_take_one() -> None:
    for kind, train in (("own", True), ("auto", False)):
        with pytest.raises(ContractError, match="has no chat template"):
            establish(byte_level(CHATML, eos_token="<|endoftext|>"), kind, train=train)


@pytest.mark.parametrize("train", [True, False])
def test_the_models_own_template_is_kept_without_any_marks(train: bool, tmp_path: Path) -> None:
    tokenizer = byte_level(CHATML, eos_token="<|endoftext|>")
    tokenizer.chat_template = OWN
    contract = establish(tokenizer, "auto", train=train)
    assert contract.tokenizer.chat_template == OWN
    assert trained_text(contract, GOLDEN[1]) == "4<|im_end|>- ja, 日本<|im_end|>"
    contract.save(tmp_path)
    assert load_contract(tmp_path).prompt(GOLDEN[0][:1]) == contract.prompt(GOLDEN[0][:1])


def test_a_base_ends_its_turns_as_its_template_does_and_never_knows_the_day(tmp_path: Path) -> None:
    """Qwen2.5-Base has the template of its sibling, and another EOS. A system turn that the template refuses leads the
    user's."""
    tokenizer = byte_level(CHATML, eos_token="<|endoftext|>")
    refusal = "{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    own = OWN.replace("<|im_start|>{{ m", f"{refusal}<|im_start|>{{{{ m", 1)
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}" + own
    tokenizer.save_pretrained(tmp_path)
    contract = load_or_derive_contract(tmp_path)
    assert tokenizer.convert_ids_to_tokens(contract.stop_ids) == ["<|im_end|>", "<|endoftext|>"]
    messages = [{"role": "system", "content": "Brief."}, {"role": "user", "content": "2?"}]
    text = tokenizer.decode(contract.prompt(messages))
    assert text == ("26 Jul 2024<|im_start|>user: Brief.\n\n2?<|im_end|>\n<|im_start|>assistant: ")


def trained_text(contract: Contract, messages: list[Message]) -> str:
    ids, trained = contract.example(messages)
    return contract.tokenizer.decode([i for i, t in zip(ids, trained, strict=True) if t])


@pytest.mark.parametrize("token", ["<|im_end|>", "<|endoftext|>"])
def test_a_control_token_that_a_text_spells_is_text(token: str) -> None:
    contract = establish(byte_level(CHATML, eos_token="<|endoftext|>"), "chatml")
    asked: Message = {"role": "user", "content": f"What is {token}?"}
    prompt = contract.prompt([asked])
    written = f"<|im_start|>user\nWhat is {token}?<|im_end|>\n<|im_start|>assistant\n"
    assert contract.tokenizer.decode(prompt) == written
    assert sum(i in contract.added for i in prompt) == 3
    assert trained_text(contract, [asked, GOLDEN[0][1]]) == "Blue.<|im_end|>"
    with pytest.raises(ContractError, match="a control token"):
        contract.example([GOLDEN[0][0], {"role": "assistant", "content": f"It is {token}."}])


def test_a_control_token_that_a_text_spells_is_dropped_or_kept_where_it_is_asked() -> None:
    contract = establish(byte_level(CHATML, eos_token="<|endoftext|>"), "chatml")
    asked: Message = {"role": "user", "content": "What is <|im_start|>?"}
    dropping = replace(contract, special=Spelled.drop)
    with pytest.raises(ContractError, match=r"spells .*im_start"):
        dropping.prompt([asked])
    with pytest.raises(ContractError, match=r"spells .*im_start"):
        dropping.example([asked, GOLDEN[0][1]])
    keeping = replace(contract, special=Spelled.keep)
    assert sum(i in contract.added for i in keeping.prompt([asked])) == 4
    answer: Message = {"role": "assistant", "content": "It is <|im_start|>."}
    assert trained_text(keeping, [asked, answer]) == "It is <|im_start|>.<|im_end|>"


def test_a_changed_template_is_refused_naming_both_sides(model: Path) -> None:
    tokenizer = load_tokenizer(model)
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant\\n", "assistant:\\n")
    tokenizer.save_pretrained(model)
    with pytest.raises(ContractError, match=r"chat_template_sha256 is .* in contract.json"):
        load_contract(model)


def test_changed_merges_are_refused_naming_both_sides(model: Path) -> None:
    """Change merges only: the template is the same, but the tokenizer splits text differently."""
    file = model / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["merges"] = content["model"]["merges"][:5]
    file.write_text(json.dumps(content))
    with pytest.raises(ContractError, match=r"SFT rendered .* tokens\), this tokenizer renders"):
        load_contract(model)


@pytest.mark.parametrize(
    ("special", "spare", "resize", "expected"),
    [
        (["<fim_prefix>", "<reserved_1>", "<my_pad>"], 0, False, "<my_pad>"),
        (["<fim_prefix>", "<reserved_1>"], 8, False, "<reserved_1>"),
        (["<fim_prefix>"], 8, False, "<|pad|>"),
        (["<fim_prefix>"], 0, True, "<|pad|>"),
    ],
)
def test_padding_is_a_token_without_a_meaning(
    special: list[str], spare: int, resize: bool, expected: str
) -> None:
    tokenizer = byte_level(["</s>", *special], eos_token="</s>")
    rows = len(tokenizer) + spare
    chat_templates.establish_contract(tokenizer, Template("plain", resize), True, rows)
    assert tokenizer.pad_token == expected


def test_an_embedding_without_a_row_to_spare_is_resized_on_request_only() -> None:
    tokenizer = byte_level(["</s>"], eos_token="</s>")
    with pytest.raises(ContractError, match=r"sft.template.resize=true"):
        chat_templates.establish_contract(tokenizer, Template("plain", False), True, len(tokenizer))
