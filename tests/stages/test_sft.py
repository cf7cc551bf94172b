"""SFT on real trainers: what is trained, what runtime may not change, and when it stops."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stages.config.blocks.arguments import SFTArguments
from stages.config.blocks.training import SFT
from stages.config.choices import Precision
from stages.config.errors import UserError
from stages.models.contract import load_contract
from stages.models.loading import load_model
from stages.objectives.sft import read_rows
from stages.sft import run
from stages.store.records import Candidate, Example, load, save
from stages.store.workspace import SCRATCH, StageDir, read_curves
from stages.training.token_rows import IGNORED
from tests.helpers import settings
from tests.rows import work


@pytest.fixture
def inputs(built: Path) -> dict[str, Path]:
    return {
        "base": next((built / "base").glob("*")),
        "data": next((built / "data").glob("*/examples.parquet")).parent,
    }


def block(**changes: Any) -> SFT:
    cfg = settings("recipe=tiny").sft
    return replace(cfg, **{"precision": Precision.fp32, "epochs": 1.0, **changes})


def micro(cfg: SFT, size: int) -> SFT:
    return replace(cfg, runtime=replace(cfg.runtime, micro_batch=size))


def train(
    cfg: SFT, inputs: dict[str, Path], folder: Path
) -> tuple[dict[str, torch.Tensor], dict[str, Any], StageDir]:
    out = work(folder)
    metrics = run(cfg, inputs, out)
    return load_file(folder / "model" / "model.safetensors"), metrics, out


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def test_only_the_answer_and_its_end_are_trained(
    inputs: dict[str, Path], built: Path, tmp_path: Path
) -> None:
    contract = load_contract(next((built / "sft").glob("*/model")))
    examples = [e for e in load(inputs["data"] / "examples.parquet", Example) if e.split == "sft"]
    rows = read_rows(examples, contract, block(), work(tmp_path))
    for row, example in zip(rows.train.dataset, examples, strict=True):
        trained = [i for i in row["labels"] if i != IGNORED]
        assert contract.tokenizer.decode(trained) == f"{example.reference}<|im_end|>"


@pytest.mark.extended
@pytest.mark.parametrize(("packing", "size", "length"), [(False, 8, 1024), (True, 4, 128)])
def test_the_micro_batch_does_not_change_the_weights(
    packing: bool, size: int, length: int, inputs: dict[str, Path], tmp_path: Path
) -> None:
    """Rows that are no multiple of the batch are cut, the normaliser is the step's: equal to 1e-5 in fp32."""
    cfg = block(batch_size=size, packing=packing, max_length=length)
    few_inputs = some_rows(inputs, 45, tmp_path / "data")
    whole, metrics, _ = train(micro(cfg, size), few_inputs, tmp_path / "whole")
    assert (metrics["rows_cut"] > 0) is not packing, "packed rows fill their batches"
    single, _, _ = train(micro(cfg, 1), few_inputs, tmp_path / "single")
    assert distance(whole, single) < 1e-5


def some_rows(inputs: dict[str, Path], count: int, folder: Path) -> dict[str, Path]:
    """The inputs with only so many rows to train on."""
    examples = load(inputs["data"] / "examples.parquet", Example)
    trained = [e for e in examples if e.split == "sft"][:count]
    validated = [e for e in examples if e.split == "validation"]
    shutil.copytree(inputs["data"], folder)
    save(folder / "examples.parquet", [*trained, *validated], Example)
    return {**inputs, "data": folder}


def test_the_best_checkpoint_by_validation_is_published(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    """Trained long on few rows, the model forgets how to answer others: the published weights are from before."""
    few_inputs = some_rows(inputs, 16, tmp_path / "data")  # a step an epoch
    trl = SFTArguments(lr_scheduler_type="constant", warmup_steps=0)
    cfg = block(epochs=24.0, learning_rate=1e-2, evaluations=6, trainer=trl)
    weights, metrics, out = train(cfg, few_inputs, tmp_path / "sft")
    losses = {p["step"]: p["eval_loss"] for p in read_curves(out.path) if "eval_loss" in p}
    assert len(losses) == 1 + 6, "one before the first step"
    assert metrics["eval_loss"] == min(losses.values())
    assert metrics["step"] == min(losses, key=losses.__getitem__) < metrics["steps"]
    shorter = replace(cfg, epochs=float(metrics["step"]), evaluations=1)
    assert distance(weights, train(shorter, few_inputs, tmp_path / "shorter")[0]) < 1e-5


def test_diverging_training_stops_and_names_the_step(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"at step 2: .*sft\.learning_rate "):
        train(
            block(learning_rate=1e30, trainer=SFTArguments(warmup_steps=0)),
            inputs,
            tmp_path / "sft",
        )
    assert not (tmp_path / "sft" / "model").exists()


def test_a_short_wrecked_training_stops_before_its_last_checkpoint(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    """Five packed rows at a rate far too high: the loss climbs, finite, and no gradient explodes."""
    cfg = block(packing=True, batch_size=1, max_length=2048, learning_rate=2.0)
    with pytest.raises(UserError, match=r"by step 5: .*learning_rate"):
        train(cfg, inputs, tmp_path / "sft")
    assert not (tmp_path / "sft" / "model").exists()
    assert not [*(tmp_path / "sft" / SCRATCH / "checkpoints").glob("checkpoint-*")]


@pytest.fixture
def trained(built: Path, inputs: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """SFT's inputs, its base the model that SFT made of it before."""
    base = shutil.copytree(
        inputs["base"], tmp_path / "base", ignore=shutil.ignore_patterns("model")
    )
    shutil.copytree(next((built / "sft").glob("*/model")), base / "model")
    return {**inputs, "base": base}


@pytest.mark.extended
def test_a_training_that_made_the_model_worse_publishes_nothing(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    """It ends with a lower loss than the worst, far above what it began with."""
    for _ in range(2):  # the same command again says the same again
        with pytest.raises(UserError, match=r"nothing is published.* sft\.learning_rate"):
            run(block(learning_rate=0.05), trained, work(tmp_path / "sft"))
    assert not (tmp_path / "sft" / "model").exists()


@pytest.mark.extended
def test_rows_that_the_model_itself_wrote_are_trained_on(
    trained: dict[str, Path], built: Path, tmp_path: Path
) -> None:
    """They start where the loss can hardly fall: as far as it rises, that is told, and the model published."""
    prompts = {e.id: e for e in load(trained["data"] / "examples.parquet", Example)}
    candidates = load(next((built / "sample").glob("*/candidates.parquet")), Candidate)
    rows = list[Example]()
    for i, c in enumerate(candidates):
        split = "sft" if i % 4 else "validation"
        rows.append(replace(prompts[c.prompt_id], id=f"{i:04}", reference=c.text, split=split))
    data = shutil.copytree(trained["data"], tmp_path / "data")
    save(data / "examples.parquet", rows, Example)
    cfg = block(batch_size=16, learning_rate=3e-4, epochs=2.0)
    _, metrics, out = train(cfg, {**trained, "data": data}, tmp_path / "sft")
    first_loss = next(p["eval_loss"] for p in read_curves(out.path) if "eval_loss" in p)
    assert first_loss < 1, "near the optimum"
    is_warned = any("lowest value" in warning for warning in out.warnings)
    assert is_warned == (metrics["eval_loss"] > first_loss)


def test_a_row_too_long_is_dropped_whole_and_named_and_too_many_stop(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    examples = load(inputs["data"] / "examples.parquet", Example)
    ids = {e.id for e in examples if e.reference and e.split in ("sft", "validation")}
    with pytest.raises(UserError, match=r"sft\.max_dropped=0"):
        train(block(max_length=30, max_dropped=0.0), inputs, tmp_path / "strict")
    _, metrics, out = train(block(max_length=30, max_dropped=1.0), inputs, tmp_path / "some")
    [(reason, count)] = metrics["rows_dropped"].items()
    dropped = [json.loads(line) for line in (out / "dropped.jsonl").read_text().splitlines()]
    assert 0 < count < len(ids)
    assert len({row["id"] for row in dropped} & ids) == len(dropped) == count
    assert {row["reason"] for row in dropped} == {reason}
    longest = max(row["tokens"] for row in dropped)
    assert f"sft.max_length={longest} keeps 100%" in out.warnings[0]


def test_the_perplexity_of_held_out_running_text_is_measured_over_its_tokens(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    """Beside conversations, which do not count."""
    examples = load(inputs["data"] / "examples.parquet", Example)
    rows = [e for e in examples if e.split == "sft"][:8]
    rows += [e for e in examples if e.split == "validation"][:4]
    for i, length in enumerate((5, 9, 2, 30, 1, 12)):
        text = " ".join(["the lamp is useful"] * length)
        split = "validation" if i % 2 else "sft"
        rows.append(Example(f"text {i}", [], f"{text} {i}.", "s", "t", split))
    data = shutil.copytree(inputs["data"], tmp_path / "data")
    save(data / "examples.parquet", rows, Example)
    trl = SFTArguments(label_smoothing_factor=0.2)
    cfg = block(batch_size=2, epochs=2.0, max_dropped=1.0, trainer=trl)
    _, metrics, out = train(cfg, {**inputs, "data": data}, tmp_path / "sft")
    contract = load_contract(out / "model")
    model = load_model(out / "model")
    nats = list[float]()
    for row in rows:
        if not row.messages and row.split == "validation":
            ids = torch.tensor([contract.example(row.conversation)[0]])
            log_p = model(ids).logits[0, :-1].log_softmax(-1)
            nats += (-log_p.gather(-1, ids[0, 1:, None])).flatten().tolist()
    expected = math.exp(sum(nats) / len(nats))
    assert metrics["eval_text_perplexity"] == pytest.approx(expected, rel=1e-4)
    assert f"{expected:.4g}" in metrics["summary"]
    assert metrics["texts"] == 3
    assert metrics["texts"] < metrics["rows"]


def test_the_token_example_of_running_text_says_so(inputs: dict[str, Path], tmp_path: Path) -> None:
    data = shutil.copytree(inputs["data"], tmp_path / "data")
    texts = [Example(f"text {i}", [], f"Lamp {i}.", "s", "t", "sft") for i in range(2)]
    save(data / "examples.parquet", texts, Example)
    _, metrics, out = train(block(batch_size=2), {**inputs, "data": data}, tmp_path / "sft")
    *text, end = json.loads((out / "token_example.json").read_text())
    assert "".join(token["text"] for token in text) == "Lamp 0."
    assert all(token["trained"] for token in (*text, end))
    assert end == {"text": "<|endoftext|>", "trained": True, "end_of_text": True}
    assert "eval_text_perplexity" not in metrics, "nothing is held out"


def test_the_published_folder_loads_as_it_is(built: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = next((built / "sft").glob("*/model"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    question = "Is this review positive or negative? Answer with one word: I love the hat."
    chat = [{"role": "user", "content": question}]
    options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    answer = model.generate(**tokenizer.apply_chat_template(chat, **options), max_new_tokens=8)
    assert answer[0, -1] == tokenizer.eos_token_id, "by the folder's own generation config"
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
