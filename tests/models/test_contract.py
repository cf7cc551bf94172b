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
from stages.config.errors import UserError
from stages.models import chat_templates
from stages.models.contract import (
    Contract,
    load_contract,
    load_or_derive_contract,
)
from stages.models.loading import load_tokenizer
from stages.models.rendering import GOLDEN, ContractError
from tests.helpers import refused

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
        ids, trained = contract.example(messages)
        words = tokenizer.decode([i for i, t in zip(ids, trained, strict=True) if t])
        answers = "".join(m["content"] + end for m in messages if m["role"] == "assistant")
        assert words == answers, "exactly the assistant's words and its end of turn are trained"
        assert ids[: len(contract.prompt(messages[:-1]))] == contract.prompt(messages[:-1])
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
    question, answer = GOLDEN[0]
    with pytest.raises(ContractError, match=r"spells <\|endoftext\|>, a control"):
        contract.example([question, {**answer, "content": "a <|endoftext|> b"}])
    assert contract.text(contract.completion([question], [answer])[1]) == answer["content"]
    ids, trained = contract.example([question, answer, *GOLDEN[0]])
    words = tokenizer.decode([i for i, t in zip(ids, trained, strict=True) if t])
    assert words == (answer["content"] + "<|end|>") * 2


def test_no_answer_is_trained_with_the_end_of_its_header() -> None:
    """TRL's template for Qwen 2.5 marks a line feed before each answer."""
    tokenizer = byte_level(CHATML, eos_token="<|im_end|>")
    tokenizer.chat_template = (TRL / "qwen2_5_training.jinja").read_text()
    contract = establish(tokenizer, "auto")
    ids, trained = contract.example([*GOLDEN[0], *GOLDEN[1][1:]])
    words = tokenizer.decode([i for i, t in zip(ids, trained, strict=True) if t])
    assert words == "Blue.<|im_end|>4<|im_end|>- ja, 日本<|im_end|>"


def test_a_date_in_a_template_is_the_same_on_every_day() -> None:
    tokenizer = byte_level(CHATML, eos_token="<|endoftext|>")
    form = "{% set form = '%d %b %Y' %}"
    for today in ("strftime_now('%d %b %Y')", 'strftime_now ( "%d %b %Y" )', "strftime_now(form)"):
        tokenizer.chat_template = f"{form}{{{{ {today} }}}}{OWN}"
        contract = establish(tokenizer, "auto", train=False)
        assert tokenizer.decode(contract.prompt(GOLDEN[0][:1])).startswith(
            "26 Jul 2024<|im_start|>"
        )


def test_of_several_templates_the_default_is_used(tmp_path: Path) -> None:
    tokenizer = byte_level(CHATML, eos_token="<|endoftext|>")
    tokenizer.chat_template = {"default": OWN, "tool_use": "{{ tools }}"}
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).chat_template == OWN


def test_who_has_a_template_that_cannot_be_used_is_told_one_that_fits() -> None:
    tokenizer = byte_level(["<start_of_turn>", "<end_of_turn>", "<unk>"], eos_token="<end_of_turn>")
    tokenizer.chat_template = "{{ raise_exception('not today') }}"
    with pytest.raises(ContractError, match=r"not today.* One that fits: template=gemma"):
        establish(tokenizer, "auto")


def test_where_system_turns_are_refused_their_text_leads_the_users() -> None:
    tokenizer = byte_level(CHATML, eos_token="<|im_end|>")
    refusal = "{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    tokenizer.chat_template = OWN.replace("<|im_start|>{{ m", f"{refusal}<|im_start|>{{{{ m", 1)
    text = tokenizer.decode(establish(tokenizer, "auto").prompt(GOLDEN[1][:2]))
    assert text.startswith("<|im_start|>user: Be brief.\n\n2 + 2?")


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


@pytest.mark.parametrize(("spare", "resize"), [(1, False), (0, True)])
def test_a_tokenizer_without_a_free_special_token_gets_a_new_one(spare: int, resize: bool) -> None:
    tokenizer = byte_level(["</s>"], eos_token="</s>")
    before = len(tokenizer)
    chat_templates.establish_contract(tokenizer, Template("plain", resize), True, before + spare)
    assert len(tokenizer) == before + 1
    assert tokenizer.pad_token_id == before


def test_an_embedding_without_a_row_to_spare_is_resized_on_request_only() -> None:
    tokenizer = byte_level(["</s>"], eos_token="</s>")
    with pytest.raises(ContractError, match=r"sft.template.resize=true"):
        chat_templates.establish_contract(tokenizer, Template("plain", False), True, len(tokenizer))


@pytest.mark.parametrize("template", ["", OWN.replace("m['content']", "m['content'] | trim")])
def test_white_space_before_an_answer_is_trained_and_behind_it_is_not(template: str) -> None:
    tokenizer = byte_level(CHATML, eos_token="<|endoftext|>")
    tokenizer.chat_template = template or None
    contract = establish(tokenizer, "auto")
    prompt = [{"role": "user", "content": "x"}]
    ids, answer = contract.completion(prompt, [{"role": "assistant", "content": "    yes \n"}])
    assert ids == contract.prompt(prompt)
    assert contract.text(answer).rstrip() == "    yes"


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
            "{% for m in messages %}<|im_start|>{{ m['role'] + ' ' + m['content'] + '<|im_end|>' }}{% endfor %}",
            "where add_generation_prompt is true",
        ),
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


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"{{ '\xe4' }}", "byte 4 is not UTF-8"), (b"x" * (2 << 20), "too many for a template")],
)
def test_a_file_that_is_no_template_is_told_before_work(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "template.jinja"
    path.write_bytes(content)
    line = refused(
        "recipe=tiny",
        "template=file",
        f"sft.template.path={path}",
        f"outputs={tmp_path / 'outputs'}",
    )
    assert line.startswith(f"sft.template.path={path}")
    assert reason in line
    with pytest.raises(UserError, match=reason):
        establish(byte_level(CHATML, eos_token="<|endoftext|>"), "file", path)


def test_own_needs_a_template() -> None:
    with pytest.raises(ContractError, match="has no chat template"):
        establish(byte_level(CHATML, eos_token="<|endoftext|>"), "own")


@pytest.mark.parametrize("train", [True, False])
def test_the_models_own_template_is_kept_without_any_marks(train: bool, tmp_path: Path) -> None:
    tokenizer = byte_level(CHATML, eos_token="<|endoftext|>")
    tokenizer.chat_template = OWN
    contract = establish(tokenizer, "auto", train=train)
    assert contract.tokenizer.chat_template == OWN
    ids, trained = contract.example(GOLDEN[1])
    words = tokenizer.decode([i for i, t in zip(ids, trained, strict=True) if t])
    assert words == "4<|im_end|>- ja, 日本<|im_end|>"
    contract.save(tmp_path)
    assert load_contract(tmp_path).prompt(GOLDEN[0][:1]) == contract.prompt(GOLDEN[0][:1])


@pytest.mark.parametrize(
    ("jinja", "reason"),
    [
        (None, "the tokenizer has no chat template"),
        (OWN.replace("assistant: ", "assistant, please: "), "begins an answer with"),
    ],
)
def test_a_model_that_breaks_the_contract_is_refused(jinja: str | None, reason: str) -> None:
    tokenizer = byte_level(CHATML, eos_token="<|endoftext|>")
    tokenizer.chat_template = jinja
    with pytest.raises(ContractError, match=reason):
        establish(tokenizer, "auto", train=jinja is not None)


def test_a_conversation_that_the_template_refuses_costs_that_row() -> None:
    tokenizer = byte_level(CHATML, eos_token="<|endoftext|>")
    refusal = "{% if m['content'] == 'Two?' %}{{ raise_exception('no numbers') }}{% endif %}"
    tokenizer.chat_template = OWN.replace("<|im_start|>{{ m", f"{refusal}<|im_start|>{{{{ m", 1)
    contract = establish(tokenizer, "auto", train=False)
    asked = [{"role": "user", "content": "Two?"}, {"role": "assistant", "content": "Yes."}]
    with pytest.raises(ContractError, match="line 1: no numbers"):
        contract.example(asked)


def test_a_base_ends_its_turns_as_its_template_does_and_never_knows_the_day(tmp_path: Path) -> None:
    """Qwen2.5-Base has the template of its sibling, and another EOS."""
    tokenizer = byte_level(CHATML, eos_token="<|endoftext|>")
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}" + OWN
    tokenizer.save_pretrained(tmp_path)
    contract = load_or_derive_contract(tmp_path)
    assert tokenizer.convert_ids_to_tokens(contract.stop_ids) == ["<|im_end|>", "<|endoftext|>"]
    assert tokenizer.decode(contract.prompt(GOLDEN[0][:1])).startswith("26 Jul 2024<|im_start|>")


def test_a_base_whose_template_refuses_system_turns_is_asked_without_one(tmp_path: Path) -> None:
    tokenizer = byte_level(CHATML, eos_token="<|im_end|>")
    refusal = "{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    tokenizer.chat_template = OWN.replace("<|im_start|>{{ m", f"{refusal}<|im_start|>{{{{ m", 1)
    tokenizer.save_pretrained(tmp_path)
    contract = load_or_derive_contract(tmp_path)
    messages = [{"role": "system", "content": "Brief."}, {"role": "user", "content": "2?"}]
    text = tokenizer.decode(contract.prompt(messages))
    assert text == "<|im_start|>user: Brief.\n\n2?<|im_end|>\n<|im_start|>assistant: "
    tokenizer.chat_template = OWN
    tokenizer.save_pretrained(tmp_path)
    assert "<|im_start|>system: Brief." in tokenizer.decode(
        load_or_derive_contract(tmp_path).prompt(messages)
    )


def test_what_breaks_the_contract_is_told_in_its_place() -> None:
    contract = establish(byte_level(CHATML, eos_token="<|endoftext|>"), "auto")
    broken = [GOLDEN[0][0], {"role": "assistant", "content": "a<|im_end|>b"}]
    first, second, third = contract.all_stretches([GOLDEN[0], broken, GOLDEN[1]])
    assert (first, third) == (contract.stretches(GOLDEN[0]), contract.stretches(GOLDEN[1]))
    assert "spells <|im_end|>, a control token" in str(second)


@pytest.mark.parametrize("token", ["<|im_end|>", "<|im_start|>", "<|endoftext|>"])
def test_a_control_token_that_a_text_spells_is_text(token: str) -> None:
    tokenizer = byte_level(CHATML, eos_token="<|endoftext|>")
    contract = establish(tokenizer, "chatml")
    asked = {"role": "user", "content": f"What is {token}?"}
    prompt = contract.prompt([asked])
    plain = contract.prompt([{**asked, "content": "What is it?"}])
    controls = [i for i in prompt if i in tokenizer.added_tokens_decoder]
    assert controls == [i for i in plain if i in tokenizer.added_tokens_decoder]
    assert (
        tokenizer.decode(prompt)
        == f"<|im_start|>user\nWhat is {token}?<|im_end|>\n<|im_start|>assistant\n"
    )
    ids, trained = contract.example([asked, GOLDEN[0][1]])
    assert ids[: len(prompt)] == prompt
    assert (
        tokenizer.decode([i for i, t in zip(ids, trained, strict=True) if t]) == "Blue.<|im_end|>"
    )
    with pytest.raises(ContractError, match="a control token"):
        contract.example([GOLDEN[0][0], {"role": "assistant", "content": f"It is {token}."}])


def test_a_control_token_that_a_text_spells_is_dropped_or_kept_where_it_is_asked() -> None:
    tokenizer = byte_level(CHATML, eos_token="<|endoftext|>")
    asked = {"role": "user", "content": "What is <|im_start|>?"}
    dropping, keeping = (
        replace(establish(tokenizer, "chatml"), special=Spelled(word)) for word in ("drop", "keep")
    )
    for rendered in (dropping.prompt, lambda turns: dropping.example([*turns, GOLDEN[0][1]])):
        with pytest.raises(ContractError, match=r"spells .*im_start"):
            rendered([asked])
    begin = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert keeping.prompt([asked]).count(begin) == 3
    answer = {"role": "assistant", "content": "It is <|im_start|>."}
    ids, trained = keeping.example([GOLDEN[0][0], answer])
    assert begin in [i for i, mark in zip(ids, trained, strict=True) if mark]


TEXT = "Snow fell.\n\nThen it stopped. {yes/no}"
BOS_ONCE = "{{ bos_token }}" + OWN


def text_of(contract: Contract, text: str) -> tuple[list[str], list[bool]]:
    """Return the special tokens at the ends of a running text, and whether each of its tokens is trained."""
    ids, trained = contract.example([{"role": "assistant", "content": text}])
    inner = contract.tokenizer(text, add_special_tokens=False).input_ids
    start = len(ids) - len(inner) - 1
    assert ids[start:-1] == inner, "the text's own tokens, white space included"
    return contract.tokenizer.convert_ids_to_tokens([*ids[:start], ids[-1]]), trained


@pytest.mark.parametrize(
    ("special", "options", "template", "stops", "ends"),
    [
        # the base's own end of text, not the end of turn that its chat template gets
        (CHATML, {"eos_token": "<|endoftext|>"}, None, [], ["<|endoftext|>"]),
        # an instruct model's EOS ends a turn, and its generation config knows the end of text
        (CHATML, {"eos_token": "<|im_end|>"}, OWN, ["<|endoftext|>"], ["<|endoftext|>"]),
        (CHATML, {"eos_token": "<|im_end|>"}, OWN, [], ["<|im_end|>"]),
        # BOS of the template alone
        (
            ["<s>", *CHATML],
            {"bos_token": "<s>", "eos_token": "<|endoftext|>"},
            BOS_ONCE,
            [],
            ["<s>", "<|endoftext|>"],
        ),
        # SmolLM2's BOS is a mark of turns, GPT-2's is never written
        (
            CHATML,
            {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
            OWN,
            ["<|endoftext|>"],
            ["<|endoftext|>"],
        ),
        (
            CHATML,
            {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
            None,
            [],
            ["<|endoftext|>"],
        ),
    ],
)
def test_running_text_is_trained_between_bos_and_the_end_of_text_without_chat_marks(
    special: list[str],
    options: dict[str, str],
    template: str | None,
    stops: list[str],
    ends: list[str],
    tmp_path: Path,
) -> None:
    tokenizer = byte_level(special, **options)
    tokenizer.chat_template = template
    contract = chat_templates.establish_contract(
        tokenizer,
        Template("auto"),
        True,
        len(tokenizer) + 1,
        tokenizer.convert_tokens_to_ids(stops),
    )
    contract.save(tmp_path)
    for each in (contract, load_contract(tmp_path)):
        written, trained = text_of(each, TEXT)
        assert written == ends
        assert trained == [len(ends) == 1, *[True] * (len(trained) - 1)]


def test_a_tokenizer_that_ends_texts_itself_says_what_ends_them() -> None:
    tokenizer = byte_level(["<s>", "<end>", *CHATML], bos_token="<s>", eos_token="<|im_end|>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A <end>", special_tokens=[("<s>", 0), ("<end>", 1)]
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end>"]})
    contract = establish(tokenizer, "chatml")
    ids, _ = contract.example([{"role": "assistant", "content": TEXT}])
    assert ids == tokenizer(TEXT).input_ids


@pytest.mark.parametrize("special", [*Spelled])
def test_bos_and_end_of_text_come_once_whatever_a_text_spells(special: Spelled) -> None:
    contract = replace(establish(with_bos(), "plain"), special=special)
    tokenizer = contract.tokenizer
    expected = [*tokenizer(TEXT).input_ids, tokenizer.eos_token_id]
    for text in (TEXT, f"<s>{TEXT}", f"<s><s>{TEXT}</s>", f"{TEXT}</s>\n"):
        ids, trained = contract.example([{"role": "assistant", "content": text}])
        assert ids == expected
        assert trained == [False, *[True] * (len(ids) - 1)]
    inside = [{"role": "assistant", "content": "one</s>two"}]
    if special is Spelled.keep:
        assert contract.example(inside)[0].count(tokenizer.eos_token_id) == 2
    else:
        with pytest.raises(ContractError, match="special=keep"):
            contract.example(inside)
    with pytest.raises(ContractError, match="empty"):
        contract.example([{"role": "assistant", "content": "<s></s>"}])


def test_a_contract_of_before_ends_running_text_as_a_turn(model: Path) -> None:
    file = model / "contract.json"
    stored = json.loads(file.read_text())
    del stored["end_of_text"]
    file.write_text(json.dumps(stored))
    contract = load_contract(model)
    assert text_of(contract, TEXT)[0] == [contract.tokenizer.eos_token]


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


def test_a_private_character_of_a_text_changes_no_control_token() -> None:
    tokenizer = byte_level(CHATML, eos_token="<|endoftext|>")
    contract = establish(tokenizer, "chatml")
    plain, icon = (
        [i for i in contract.prompt([{"role": "user", "content": text}]) if i in contract.added]
        for text in ("an icon", "an icon \ue000")
    )
    assert plain == icon


@pytest.mark.parametrize(
    ("special", "spare", "expected"),
    [
        (["<fim_prefix>", "<reserved_1>", "<my_pad>"], 0, "<my_pad>"),
        (["<fim_prefix>", "<reserved_1>"], 8, "<reserved_1>"),
        (["<fim_prefix>"], 8, "<|pad|>"),
        (["<fim_prefix>"], 0, "<fim_prefix>"),
    ],
)
def test_padding_is_a_token_without_a_meaning(
    special: list[str], spare: int, expected: str
) -> None:
    tokenizer = byte_level(["</s>", *special], eos_token="</s>")
    cfg, rows = Template("plain", False), len(tokenizer) + spare
    chat_templates.establish_contract(tokenizer, cfg, True, rows)
    assert tokenizer.pad_token == expected
