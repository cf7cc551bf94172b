"""Faults that models and adapters of the field have, planted one by one: each is a row with what it does, and nothing else
raises an alarm."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer

from stages.extras.examine.folders.comparison import folder_differences
from stages.extras.examine.folders.difference import Difference, Level
from stages.extras.examine.folders.embedding_rows import untrained_rows
from stages.extras.examine.folders.model_folder import ModelFolder
from tests.extras.examine.tiny_folders import (
    Tensors,
    adapter,
    train_a_little,
    trained,
    write_keys,
    write_start,
)

QUERY = "model.layers.0.self_attn.q_proj.weight"
EMBEDDING = "model.embed_tokens.weight"
HEADS = 2
HEAD = "lm_head.weight"
Files = Callable[[Path], None]
Weights = Callable[[Tensors], None]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of chats whose norms were trained."""
    folder = write_start(tmp_path_factory.mktemp("field") / "start")
    tensors = load_file(folder / "model.safetensors")
    torch.manual_seed(1)
    for name, weight in tensors.items():
        if "norm" in name:
            weight += 0.1 * torch.randn_like(weight)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def differences(start: Path, model: Path, on: Path | None = None) -> dict[str, Difference]:
    both = ModelFolder("start", start), ModelFolder("model", model, on)
    return {each.key: each for each in folder_differences(*both)}


def alarms(by_key: dict[str, Difference]) -> set[str]:
    return {key for key, each in by_key.items() if each.level is not Level.differs}


# --- files


def keys(file: str, **values: Any) -> Files:
    """Return what writes keys of a JSON file."""

    def write(folder: Path) -> None:
        write_keys(folder / file, **values)

    return write


def without(file: str) -> Files:
    def remove(folder: Path) -> None:
        (folder / file).unlink()

    return remove


def strips_behind_turns(folder: Path) -> None:
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    for token in content["added_tokens"]:
        if token["content"] == "<|im_end|>":
            token["rstrip"] = True
    file.write_text(json.dumps(content))


def without_generation_prompt(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text().replace("add_generation_prompt", "never_defined"))


def with_stale_shard(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    other = {name: weight + 1 for name, weight in tensors.items()}
    save_file(other, folder / "model-00001-of-00001.safetensors", {"format": "pt"})


def cut_off(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


def with_pointer(folder: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n"
    (folder / "model.safetensors").write_text(text)


def untied_without_head(folder: Path) -> None:
    write_keys(folder / "config.json", tie_word_embeddings=False)


def with_new_tokens(folder: Path) -> None:
    """Add four tokens, for which the weights have rows already."""
    add_tokens(folder, folder)
    padded(folder)


def add_tokens(tokenizer_of: Path, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    tokenizer.add_tokens(["<a>", "<b>", "<c>", "<d>"])
    tokenizer.save_pretrained(folder)


def padded(folder: Path) -> None:
    rows = len(load_file(folder / "model.safetensors")[EMBEDDING])
    write_keys(folder / "config.json", vocab_size=rows)


# --- weights


def new_rows(kind: str) -> Weights:
    """Return what appends four rows to the embedding."""

    def append(tensors: Tensors) -> None:
        old = tensors[EMBEDDING]
        rows = {
            "zero": torch.zeros(4, old.shape[1]),
            "mean": old.mean(0).repeat(4, 1),
            "copy": old[5].repeat(4, 1),
            "trained": old[:4] + 0.5 * torch.randn(4, old.shape[1]),
        }
        tensors[EMBEDDING] = torch.cat([old, rows[kind]])

    return append


def replaced(change: Callable[[Tensor], Tensor], part: str = QUERY) -> Weights:
    """Return what replaces all tensors with a part in their names."""

    def replace(tensors: Tensors) -> None:
        for name, weight in tensors.items():
            if part in name:
                tensors[name] = change(weight).contiguous()

    return replace


def for_other_rotary_positions(weight: Tensor) -> Tensor:
    halves = weight.view(HEADS, 2, -1, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape)


def as_eight_bits(weight: Tensor) -> Tensor:
    steps = weight.abs().amax(1, keepdim=True) / 127
    return (weight / steps).round() * steps


def exchanged(first: str, second: str) -> Weights:
    """Return what exchanges the tensors of two parts of a model."""

    def exchange(tensors: Tensors) -> None:
        for name in list(tensors):
            if first in name:
                other = name.replace(first, second)
                tensors[name], tensors[other] = tensors[other], tensors[name]

    return exchange


def overflown(tensors: Tensors) -> None:
    tensors[QUERY][0, 0] = 1e5
    for name, weight in tensors.items():
        tensors[name] = weight.half()


def prefixed(tensors: Tensors) -> None:
    for name in list(tensors):
        tensors[f"module.{name}"] = tensors.pop(name)


@dataclass(frozen=True)
class Fault:
    """A planted fault: what is done to weights and files, and the key that names it with its level and a part of the
    model's value. `also`: further keys that show it."""

    key: str
    level: Level
    text: str
    files: Files = lambda folder: None
    weights: Weights = lambda tensors: None
    also: tuple[str, ...] = ()


BREAKS, CHANGES = Level.breaks, Level.changes
UNTRAINED = "weights: untrained rows"
TURNED = ("weights: turned",)
FIT = "weights: and config.json"
FAULTS = {
    "rows of new tokens are zero": Fault(
        UNTRAINED, CHANGES, "zero: <a>", with_new_tokens, new_rows("zero")
    ),
    "rows of new tokens are the mean": Fault(
        UNTRAINED, CHANGES, "mean of all rows: <a>", with_new_tokens, new_rows("mean")
    ),
    "rows of new tokens are copies": Fault(
        UNTRAINED, CHANGES, "copies of another row: <a>", with_new_tokens, new_rows("copy")
    ),
    "vocab_size is not that of the rows": Fault(
        FIT, BREAKS, "[320, 32]", keys("config.json", vocab_size=320)
    ),
    "other heads in config.json": Fault(
        FIT,
        BREAKS,
        "asks for",
        keys("config.json", num_attention_heads=4, num_key_value_heads=4),
        also=("config.num_attention_heads", "config.num_key_value_heads"),
    ),
    "the head was not saved": Fault(
        "weights: head", BREAKS, "neither tied nor in the file", untied_without_head
    ),
    "a quantisation is left in config.json": Fault(
        "config.quantization_config.quant_method",
        CHANGES,
        "bitsandbytes",
        keys("config.json", quantization_config={"quant_method": "bitsandbytes"}),
    ),
    "a shard of another save": Fault(
        "weights: in two files", CHANGES, "model-00001-of-00001", with_stale_shard
    ),
    "an overflow of float16": Fault("weights: NaN or infinite", BREAKS, QUERY, weights=overflown),
    "names of a wrapper": Fault(
        "weights: missing", BREAKS, EMBEDDING, weights=prefixed, also=("weights: not in the start",)
    ),
    "transposed": Fault(
        "weights: moved", BREAKS, "transposed", weights=replaced(Tensor.t), also=TURNED
    ),
    "heads in the order of another library": Fault(
        "weights: moved",
        BREAKS,
        "rotary",
        weights=replaced(for_other_rotary_positions, "q_proj.weight"),
        also=TURNED,
    ),
    "layers exchanged": Fault(
        "weights: moved",
        BREAKS,
        "is the start's model.layers.1",
        weights=exchanged("layers.0.", "layers.1."),
        also=TURNED,
    ),
    "gate and up exchanged": Fault(
        "weights: moved",
        BREAKS,
        "up_proj",
        weights=exchanged("gate_proj", "up_proj"),
        also=TURNED,
    ),
    "rows of the embedding moved by one": Fault(
        "weights: moved",
        BREAKS,
        "+1",
        weights=replaced(lambda weight: weight.roll(1, 0), EMBEDDING),
        also=TURNED,
    ),
    "a layer was not loaded": Fault(
        "weights: turned",
        CHANGES,
        "1 of 15",
        weights=replaced(lambda weight: 0.02 * torch.randn_like(weight)),
    ),
    "norms were not loaded": Fault(
        "weights: one value", CHANGES, "5 of", weights=replaced(torch.ones_like, "norm")
    ),
    "one was added to norms": Fault(
        "weights: length", CHANGES, "5 of 28", weights=replaced(lambda weight: weight + 1, "norm")
    ),
    "matrices were scaled": Fault(
        "weights: length",
        CHANGES,
        "1.5 times",
        weights=replaced(lambda weight: 1.5 * weight, "proj.weight"),
    ),
    "white space behind turns is lost": Fault(
        "tokenizer: flags",
        CHANGES,
        "rstrip True",
        strips_behind_turns,
        also=("tokenizer: reads",),
    ),
    "no beginning of an answer": Fault(
        "template: a prompt", CHANGES, "im_end", without_generation_prompt
    ),
    "a template that is cut off": Fault(
        "template: a prompt",
        BREAKS,
        "refused",
        lambda folder: (folder / "chat_template.jinja").write_text("{% if messages %}"),
    ),
    "weights that are cut off": Fault("weights: files", BREAKS, "model.safetensors", cut_off),
    "a pointer in place of weights": Fault("weights: files", BREAKS, "git lfs pull", with_pointer),
    "the template is lost": Fault(
        "template: a prompt", CHANGES, "not set", without("chat_template.jinja")
    ),
    "another template in the other file": Fault(
        "template: two copies",
        CHANGES,
        "characters",
        keys("tokenizer_config.json", chat_template="{{ messages }}"),
    ),
    "generate is told no stop": Fault(
        "stops: of generate",
        CHANGES,
        "nothing",
        keys("generation_config.json", eos_token_id=None),
    ),
    "generate is told another stop": Fault(
        "stops: of generate",
        CHANGES,
        "<|endoftext|>",
        keys("generation_config.json", eos_token_id=0),
    ),
    "weights of 8 bits": Fault(
        "weights: values side by side",
        CHANGES,
        "of 32",
        weights=replaced(as_eight_bits, "proj.weight"),
    ),
    "the special tokens are lost": Fault(
        "tokenizer: eos_token", CHANGES, "not set", without("tokenizer_config.json")
    ),
    "marks are read as text": Fault(
        "tokenizer: reads",
        CHANGES,
        "|",
        keys("tokenizer_config.json", split_special_tokens=True),
    ),
    "tokens without rows": Fault(
        "tokenizer: without a row", BREAKS, "<a>", lambda folder: add_tokens(folder, folder)
    ),
    "a pad token that is none": Fault(
        FIT, BREAKS, "num_embeddings", keys("config.json", pad_token_id=999)
    ),
    "a new head that nothing trained": Fault(
        "weights: head",
        CHANGES,
        "from the embedding",
        keys("config.json", tie_word_embeddings=False),
        lambda tensors: tensors.update({HEAD: torch.randn_like(tensors[EMBEDDING])}),
    ),
    "settings of answers that are damaged": Fault(
        "generation_config.json",
        BREAKS,
        "JSON object",
        lambda folder: (folder / "generation_config.json").write_text("[]"),
    ),
    "fewer layers": Fault(
        "config.num_hidden_layers", CHANGES, "1", keys("config.json", num_hidden_layers=1)
    ),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_of_the_field_is_a_row_of_its_own(kind: str, start: Path, tmp_path: Path) -> None:
    fault = FAULTS[kind]
    folder = trained(start, tmp_path / "model", train_a_little, fault.weights)
    fault.files(folder)
    by_key = differences(start, folder)
    assert by_key[fault.key].level is fault.level
    assert fault.text in by_key[fault.key].model
    assert alarms(by_key) == {fault.key, *fault.also}


SOUND: dict[str, tuple[Files, Weights]] = {
    "padding is the end": (
        keys("tokenizer_config.json", pad_token="<|im_end|>"),
        lambda tensors: None,
    ),
    "an embedding that is filled up": (padded, new_rows("zero")),
    "new tokens that were trained": (with_new_tokens, new_rows("trained")),
    "weights in bfloat16": (
        lambda folder: None,
        replaced(Tensor.bfloat16, "weight"),
    ),
    "the start's type in config.json": (
        keys("config.json", dtype="bfloat16", use_cache=False),
        lambda tensors: None,
    ),
}


@pytest.mark.parametrize("kind", SOUND)
def test_what_sound_programs_write_raises_no_alarm(kind: str, start: Path, tmp_path: Path) -> None:
    files, weights = SOUND[kind]
    folder = trained(start, tmp_path / "model", train_a_little, weights)
    files(folder)
    assert alarms(differences(start, folder)) == set()


def without_tensors(part: str) -> Files:
    """Return what removes tensors from an adapter."""

    def remove(folder: Path) -> None:
        file = folder / "adapter_model.safetensors"
        tensors = {name: each for name, each in load_file(file).items() if part not in name}
        save_file(tensors, file, {"format": "pt"})

    return remove


CONFIG = "adapter_config.json"
ADAPTERS: dict[str, tuple[dict[str, Any], Files, str, Level]] = {
    "alpha eight times as large": ({}, keys(CONFIG, lora_alpha=64), "adapter: change", CHANGES),
    "half of its layers": (
        {},
        without_tensors("layers.1."),
        "adapter: layers without it",
        CHANGES,
    ),
    "DoRA forgotten": (
        {"use_dora": True},
        keys(CONFIG, use_dora=False),
        "adapter: magnitudes",
        CHANGES,
    ),
    "magnitudes forgotten": ({}, keys(CONFIG, use_dora=True), "adapter: magnitudes", CHANGES),
    "a base that was changed": (
        {},
        keys(CONFIG, init_lora_weights="pissa"),
        "adapter: init_lora_weights",
        CHANGES,
    ),
    "embedding not saved": (
        {"modules_to_save": ["embed_tokens"]},
        without_tensors("embed_tokens"),
        "adapter",
        BREAKS,
    ),
    "B not saved": ({}, without_tensors("lora_B"), "adapter", BREAKS),
    "another kind": ({}, keys(CONFIG, peft_type="IA3"), "adapter", BREAKS),
}


def test_a_tensor_of_one_number_is_compared_as_any_other(start: Path, tmp_path: Path) -> None:
    def with_a_number(tensors: Tensors) -> None:
        tensors["model.logit_scale"] = torch.tensor(1.0)

    before = trained(start, tmp_path / "before", with_a_number)
    model = trained(before, tmp_path / "model")
    by_key = differences(before, model)
    assert alarms(by_key) == set()
    assert "others" in by_key["weights: change"].model


def test_weights_are_compared_whatever_becomes_of_the_tokenizer(
    start: Path, tmp_path: Path
) -> None:
    def spoil(tensors: Tensors) -> None:
        del tensors[QUERY]
        tensors[EMBEDDING][7] = 0.0
        tensors[EMBEDDING][9] = torch.nan

    model = trained(start, tmp_path / "model", train_a_little, spoil)
    (model / "tokenizer.json").write_text("{")
    by_key = differences(start, model)
    assert alarms(by_key) == {
        "tokenizer",
        "weights: missing",
        "weights: zero rows",
        "weights: NaN or infinite",
    }
    assert QUERY in by_key["weights: missing"].model


def test_a_new_row_that_is_not_finite_is_not_called_zero(start: Path, tmp_path: Path) -> None:
    def append(tensors: Tensors) -> None:
        old = tensors[EMBEDDING]
        row = torch.full((1, old.shape[1]), torch.nan)
        tensors[EMBEDDING] = torch.cat([old, row, torch.zeros(1, old.shape[1]), old[:2] + 1])

    model = trained(start, tmp_path / "model", append)
    with_new_tokens(model)
    by_key = differences(start, model)
    assert by_key["weights: NaN or infinite"].level is BREAKS
    assert by_key[UNTRAINED].model == "zero: <b>"


def test_a_new_row_is_a_copy_of_a_new_or_an_old_one_and_not_of_itself() -> None:
    torch.manual_seed(0)
    old, new = torch.randn(8, 4), torch.randn(4, 4)
    assert untrained_rows(old, new) == {}
    new[1], new[3] = old[2], new[2]
    assert untrained_rows(old, new) == {"copies of another row": [1, 2, 3]}


def test_an_adapter_brings_no_rows_for_its_own_tokens(start: Path, tmp_path: Path) -> None:
    folder = adapter(start, tmp_path / "adapter")
    add_tokens(start, folder)
    by_key = differences(start, start, folder)
    assert alarms(by_key) == {"tokenizer: without a row"}
    assert "<a>" in by_key["tokenizer: without a row"].model


def test_a_head_of_its_own_that_was_lost_or_grown_soundly(start: Path, tmp_path: Path) -> None:
    untied = keys("config.json", tie_word_embeddings=False)

    def near_the_embedding(tensors: Tensors) -> None:
        tensors[HEAD] = tensors[EMBEDDING] + 1e-3

    def far_from_it(tensors: Tensors) -> None:
        tensors[HEAD] = torch.randn_like(tensors[EMBEDDING])

    sound = trained(start, tmp_path / "sound", train_a_little, near_the_embedding)
    untied(sound)
    assert alarms(differences(start, sound)) == set()
    other = trained(start, tmp_path / "other", far_from_it)
    untied(other)
    lost = trained(start, tmp_path / "lost")
    assert differences(other, lost)["weights: head"].level is CHANGES


def test_layers_that_nothing_changed_are_shown(start: Path, tmp_path: Path) -> None:
    before = load_file(start / "model.safetensors")

    def half(tensors: Tensors) -> None:
        for name in tensors:
            if "layers.1." in name:
                tensors[name] = before[name]

    by_key = differences(start, trained(start, tmp_path / "half", train_a_little, half))
    assert by_key["weights: unchanged layers"].model == "1 of 2: 1"
    assert alarms(by_key) == set()


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings")
@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_fault_of_an_adapter_is_a_row_of_its_own(kind: str, start: Path, tmp_path: Path) -> None:
    settings, change, key, level = ADAPTERS[kind]
    folder = adapter(start, tmp_path / "adapter", **settings)
    assert alarms(differences(start, start, folder)) == set()
    change(folder)
    by_key = differences(start, start, folder)
    assert by_key[key].level is level
    assert alarms(by_key) == {key}
