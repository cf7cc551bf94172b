"""Differences between the folders of models, key by key: planted ones are named with what they do, and models that were
trained soundly raise no alarm."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.extras.examine.findings.sides import Side
from stages.extras.examine.folders import tensor_keys
from stages.extras.examine.folders.adapter_keys import base_differences
from stages.extras.examine.folders.comparison import folder_differences
from stages.extras.examine.folders.difference import LEVELS, Difference, Level, table_rows
from stages.extras.examine.folders.model_folder import ModelFolder
from stages.pages import glossary
from tests.extras.examine.tiny_folders import (
    Tensors,
    adapter,
    train_a_little,
    trained,
    write_keys,
    write_start,
)

UP = "model.layers.1.mlp.up_proj.weight"
QUERY = "model.layers.0.self_attn.q_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_start(tmp_path_factory.mktemp("folders") / "start")


def differences(start: Path, model: Path, adapter: Path | None = None) -> dict[str, Difference]:
    by_key = folder_differences(ModelFolder("start", start), ModelFolder("model", model, adapter))
    return {each.key: each for each in by_key}


def alarms(by_key: dict[str, Difference]) -> set[str]:
    return {key for key, each in by_key.items() if each.level is not Level.differs}


@pytest.fixture(scope="module")
def settings(start: Path) -> dict[str, Difference]:
    """The differences of a model in whose files many settings are changed."""
    folder = trained(start, start.parent / "settings")
    write_keys(
        folder / "generation_config.json",
        repetition_penalty=3.0,
        max_length=20,
        temperature=2.0,
        eos_token_id=[0],
        top_p=1.0,
    )
    rope = {"rope_theta": 1e6, "rope_type": "default"}
    write_keys(folder / "config.json", rope_parameters=rope, rms_norm_eps=0.5, use_cache=False)
    write_keys(
        folder / "tokenizer_config.json",
        truncation_side="left",
        model_max_length=24,
        bos_token="<|im_start|>",
        eos_token="<|endoftext|>",
    )
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_start|>", "<|pad|>"))
    put_bos_before_texts(folder / "tokenizer.json")
    return differences(start, folder)


def put_bos_before_texts(file: Path) -> None:
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]
    [bos] = [each["id"] for each in content["added_tokens"] if each["content"] == "<|im_start|>"]
    token = {"id": "<|im_start|>", "type_id": 0}
    text = {"id": "A", "type_id": 0}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": token}, {"Sequence": text}],
        "pair": [{"Sequence": text}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            "<|im_start|>": {"id": "<|im_start|>", "ids": [bos], "tokens": ["<|im_start|>"]}
        },
    }
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("key", "before", "after"),
    [
        ("generation.repetition_penalty", "not set", "3.0"),
        ("generation.max_length", "not set", "20"),
        ("generation.temperature", "not set", "2.0"),
        ("config.rope_parameters.rope_theta", "10000.0", "1000000.0"),
        ("config.rms_norm_eps", "1e-06", "0.5"),
        ("tokenizer: truncation_side", "right", "left"),
        ("tokenizer: model_max_length", "not set", "24"),
        ("tokenizer: before a text", "nothing", "<|im_start|>"),
        ("tokenizer: ids", "'a'", "2 tokens"),
        ("tokenizer: reads", "", "("),
        ("template: a prompt", "<|im_start|>user", "<|pad|>user"),
        ("stops", "<|im_end|>", "<|endoftext|>"),
        ("stops: end of turn", "<|im_end|>", "not a stop"),
    ],
)
def test_a_setting_that_changes_answers_is_shown_with_both_values(
    key: str, before: str, after: str, settings: dict[str, Difference]
) -> None:
    assert settings[key].level is Level.changes
    assert before in settings[key].start
    assert after in settings[key].model


def test_bookkeeping_and_defaults_raise_no_alarm(settings: dict[str, Difference]) -> None:
    assert "generation.top_p" not in settings  # 1 is the default
    assert settings["config.use_cache"].level is Level.differs
    assert not {"config.transformers_version", "config._name_or_path"} & settings.keys()


def rounded_to_three_bits(tensors: Tensors) -> None:
    for name, weight in tensors.items():
        if weight.ndim == 2:
            groups = weight.reshape(-1, 32)
            step = groups.abs().amax(1, keepdim=True) / 3
            tensors[name] = ((groups / step).round() * step).reshape(weight.shape)
        tensors[name] = tensors[name].bfloat16()


def with_wrong_rows(tensors: Tensors) -> None:
    tensors[QUERY][3, 5] = float("nan")
    tensors["model.norm.weight"][0] = float("inf")
    tensors[UP][7:9] = 0
    tensors["model.layers.0.mlp.down_proj.weight"][2, 1] = 40.0


def with_a_head_of_its_own(tensors: Tensors) -> None:
    tensors["lm_head.weight"] = torch.randn_like(tensors[EMBEDDING])


def without_a_tensor(tensors: Tensors) -> None:
    tensors["other.weight"] = tensors.pop(UP)


def without_change(tensors: Tensors) -> None:
    """Leave all tensors as they are."""


def of_another_shape(tensors: Tensors) -> None:
    tensors[UP] = tensors[UP][:, :16].contiguous()


def from_elsewhere(tensors: Tensors) -> None:
    tensors[QUERY] = torch.randn_like(tensors[QUERY])


@pytest.mark.parametrize(
    ("change", "levels", "named"),
    [
        (
            with_wrong_rows,
            {
                "weights: NaN or infinite": Level.breaks,
                "weights: zero rows": Level.changes,
                "weights: largest": Level.changes,
                "weights: turned": Level.changes,
            },
            [
                "2 rows in 2 tensors",
                "2 rows in 1 tensor, as 7, 8",
                "40 in model.layers.0.mlp.down",
                "1 of 15 matrices",
            ],
        ),
        (rounded_to_three_bits, {"weights: values side by side": Level.changes}, ["of 32"]),
        (with_a_head_of_its_own, {"weights: head": Level.changes}, ["the file has another"]),
        (
            without_a_tensor,
            {"weights: missing": Level.breaks, "weights: not in the start": Level.changes},
            [UP, "other.weight"],
        ),
        (from_elsewhere, {"weights: turned": Level.changes}, ["1 of 15 matrices"]),
    ],
)
def test_a_difference_of_weights_is_named(
    change: Callable[[Tensors], None],
    levels: dict[str, Level],
    named: list[str],
    start: Path,
    tmp_path: Path,
) -> None:
    by_key = differences(start, trained(start, tmp_path / "model", train_a_little, change))
    assert {key: by_key[key].level for key in levels} == levels
    for key, text in zip(levels, named, strict=True):
        assert text in by_key[key].model
    assert alarms(by_key) - levels.keys() <= {"weights: zeros"}  # small weights round to zero


def norms_alone(tensors: Tensors) -> None:
    for name, weight in tensors.items():
        if "norm" in name:
            weight += 0.05 * torch.randn_like(weight)


def biases_alone(tensors: Tensors) -> None:
    for name, weight in tensors.items():
        if name.endswith("bias"):
            weight += 0.05 * torch.randn_like(weight)


@pytest.mark.parametrize(
    ("change", "size"),
    [(train_a_little, "%"), (norms_alone, "norms"), (biases_alone, "biases from zero")],
)
def test_a_sound_training_raises_no_alarm(
    change: Callable[[Tensors], None], size: str, start: Path, tmp_path: Path
) -> None:
    by_key = differences(start, trained(start, tmp_path / "model", change))
    assert alarms(by_key) == set()
    assert size in by_key["weights: change"].model


def test_weights_in_bf16_are_compared_with_the_rounded_start(start: Path, tmp_path: Path) -> None:
    def cast(tensors: Tensors) -> None:
        for name, weight in tensors.items():
            tensors[name] = weight.bfloat16()

    by_key = differences(start, trained(start, tmp_path / "model", cast))
    assert (by_key["weights: type"].start, by_key["weights: type"].model) == ("F32", "BF16")
    assert alarms(by_key) == {"weights: nothing changed"}


def test_the_directions_of_a_change_are_counted(start: Path, tmp_path: Path) -> None:
    def merge(tensors: Tensors) -> None:
        for name, weight in tensors.items():
            if "proj.weight" in name:
                rows, columns = weight.shape
                weight += 1e-2 * torch.randn(rows, 3) @ torch.randn(3, columns)

    by_key = differences(start, trained(start, tmp_path / "model", merge))
    assert by_key["weights: directions of the change"].model.startswith("3 of ")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_damaged_file_is_a_row_of_the_table(name: str, start: Path, tmp_path: Path) -> None:
    folder = trained(start, tmp_path / "model")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    by_key = differences(start, folder)
    assert Level.breaks in [each.level for each in by_key.values()]
    missing_shard = trained(start, tmp_path / "shards")
    write_keys(missing_shard / "model.safetensors.index.json", weight_map={UP: "2.safetensors"})
    assert "2.safetensors is missing" in differences(start, missing_shard)["weights: files"].model


def test_a_damaged_start_is_no_fault_of_the_model(start: Path, tmp_path: Path) -> None:
    damaged = trained(start, tmp_path / "start")
    for name in ("tokenizer.json", "generation_config.json"):
        (damaged / name).write_text("{")
    by_key = differences(damaged, trained(start, tmp_path / "model"))
    levels = {key: each.level for key, each in by_key.items()}
    assert Level.breaks not in levels.values()
    for key in ("tokenizer", "generation_config.json"):
        assert levels[key] is Level.unknown
    own = trained(start, tmp_path / "own")
    (own / "tokenizer.json").write_text("{")
    assert differences(damaged, own)["tokenizer"].level is Level.breaks
    (own / "model.safetensors.index.json").write_text("[]")
    assert differences(start, own)["weights: files"].level is Level.breaks


def test_an_error_of_the_comparison_is_no_fault_and_keeps_what_was_found(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise IndexError("of the comparison")

    monkeypatch.setattr(tensor_keys, "fit_differences", fails)
    model = trained(start, tmp_path / "model", train_a_little, without_a_tensor)
    by_key = differences(start, model)
    assert by_key["weights: files"].level is Level.unknown
    assert "IndexError" in by_key["weights: files"].model
    assert list(glossary.TEXTS["levels"]) == LEVELS
    assert by_key["weights: missing"].level is Level.breaks


def test_an_adapter_is_read_by_its_own_keys(start: Path, tmp_path: Path) -> None:
    pattern = {"layers.0.self_attn.q_proj": 16}
    folder = adapter(start, tmp_path / "adapter", alpha_pattern=pattern, use_rslora=True)
    by_key = differences(start, start, folder)
    assert alarms(by_key) == set()
    assert by_key["adapter: scale"].model == "alpha 8 / √r 4 = 4; by layer 4 to 8"
    assert by_key["adapter: directions of the change"].model.startswith("4 of ")
    size = float(by_key["adapter: change"].model.partition("%")[0])
    write_keys(folder / "adapter_config.json", lora_alpha=64, alpha_pattern={"nowhere": 2})
    changed = differences(start, start, folder)
    assert "alpha_pattern nowhere" in changed["adapter: patterns"].model
    assert float(changed["adapter: change"].model.partition("%")[0]) > 4 * size


def test_an_adapter_that_adds_nothing_or_contradicts_itself_is_named(
    start: Path, tmp_path: Path
) -> None:
    folder = adapter(start, tmp_path / "adapter", scale_of_b=0.0)
    assert alarms(differences(start, start, folder)) == {"adapter: B"}
    other = trained(start, tmp_path / "other")
    write_keys(folder / "adapter_config.json", base_model_name_or_path=str(other))
    assert "adapter: base" in alarms(differences(start, other, folder))
    write_keys(folder / "adapter_config.json", r=2)
    assert differences(start, start, folder)["adapter"].level is Level.breaks


@pytest.mark.parametrize("kind", ["other shapes", "no weights"])
def test_bases_that_cannot_be_compared_are_not_the_same_weights(
    kind: str, start: Path, tmp_path: Path
) -> None:
    folder = adapter(start, tmp_path / "adapter")
    same = trained(start, tmp_path / "same", without_change)
    other = trained(start, tmp_path / "other", of_another_shape)
    if kind == "no weights":
        for base in (same, other):
            (base / "model.safetensors").unlink()
    write_keys(folder / "adapter_config.json", base_model_name_or_path=str(other))
    rows = base_differences(ModelFolder("start", same), ModelFolder("model", other, folder))
    assert [(each.key, each.level) for each in rows] == [("adapter: base", Level.changes)]


def test_weights_of_another_shape_are_not_called_unchanged(start: Path, tmp_path: Path) -> None:
    before = trained(start, tmp_path / "before", without_change)
    model = trained(start, tmp_path / "model", of_another_shape)
    by_key = differences(before, model)
    assert "weights: nothing changed" not in by_key
    assert {"weights: shape", "weights: change"} <= alarms(by_key)


def test_stops_come_from_config_json_where_no_generation_config_is(
    start: Path, tmp_path: Path
) -> None:
    folder = trained(start, tmp_path / "model")
    (folder / "generation_config.json").unlink()
    write_keys(folder / "config.json", eos_token_id=[2, 5])
    by_key = differences(start, folder)
    side = Side("model", folder, folder, "F32", [])
    assert len(side.stops) == 2
    assert by_key["stops"].model == ", ".join(side.stops)


def test_an_adapter_of_another_size_does_not_fit(start: Path, tmp_path: Path) -> None:
    folder = adapter(start, tmp_path / "adapter")
    tensors = load_file(folder / "adapter_model.safetensors")
    for name, weight in tensors.items():
        if "lora_B" in name:
            tensors[name] = torch.cat([weight, weight])
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    assert differences(start, start, folder)["adapter: shape"].level is Level.breaks


def test_several_models_share_a_table_with_the_worst_row_first() -> None:
    first = Difference("a", "1", "2", "why", Level.differs)
    second = Difference("b", "x", "y", "why", Level.breaks)
    rows = table_rows([[first], [second], []])
    assert [row.values for row in rows] == [["x", "x", "y", "x"], ["1", "2", "1", "1"]]
    assert rows[0].in_words(["start", "A", "B", "C"]) == "b: start x, B y: why"
