"""SFT on real trainers: what is trained, what runtime may not change, and when it stops."""

import json
import math
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.config.blocks.arguments import SFTArguments
from stages.config.blocks.models import Template
from stages.config.blocks.training import SFT, Untrained
from stages.config.choices import Precision
from stages.config.errors import UserError
from stages.models.contract import load_contract
from stages.models.loading import load_model
from stages.objectives.sft import read_rows
from stages.sft import run
from stages.store.records import Candidate, Example, load, save
from stages.store.workspace import SCRATCH, StageDir, read_curves
from stages.training import callbacks, saving
from stages.training.saving import link_or_copy
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


def test_every_parameter_moves(inputs: dict[str, Path], tmp_path: Path) -> None:
    trained, metrics, _ = train(block(), inputs, tmp_path / "sft")
    before = load_file(inputs["base"] / "model" / "model.safetensors")
    assert all(not torch.equal(trained[name], before[name]) for name in before)
    assert metrics["rows"] == 256
    assert metrics["steps"] == 16


def test_only_the_answer_and_its_end_are_trained(
    inputs: dict[str, Path], built: Path, tmp_path: Path
) -> None:
    contract = load_contract(next((built / "sft").glob("*/model")))
    examples = [e for e in load(inputs["data"] / "examples.parquet", Example) if e.split == "sft"]
    rows = read_rows(examples, contract, block(), work(tmp_path))
    assert not rows.dropped
    for row, example in zip(rows.train.dataset, examples, strict=True):
        trained = [i for i in row["labels"] if i != IGNORED]
        assert contract.tokenizer.decode(trained) == f"{example.reference}<|im_end|>"


@pytest.mark.extended
@pytest.mark.parametrize(("packing", "sizes"), [(False, (8, 1)), (True, (4, 2))])
def test_the_micro_batch_does_not_change_the_weights(
    packing: bool, sizes: tuple[int, ...], inputs: dict[str, Path], tmp_path: Path
) -> None:
    """Rows that are no multiple of the batch are cut, the normaliser is the step's: equal to 1e-5 in fp32."""
    cfg = block(batch_size=sizes[0], packing=packing, max_length=128 if packing else 1024)
    few_inputs = some_rows(inputs, 45, tmp_path / "data")
    reference, metrics, _ = train(micro(cfg, sizes[0]), few_inputs, tmp_path / "whole")
    assert (metrics["rows_cut"] > 0) is not packing, "packed rows fill their batches"
    for size in sizes[1:]:
        weights, _, _ = train(micro(cfg, size), few_inputs, tmp_path / f"micro-{size}")
        assert distance(weights, reference) < 1e-5


def test_packed_examples_do_not_see_each_other(inputs: dict[str, Path], built: Path) -> None:
    """The loss of a packed row is that of its examples alone."""
    contract = load_contract(next((built / "sft").glob("*/model")))
    examples = [e for e in load(inputs["data"] / "examples.parquet", Example) if e.split == "sft"][
        :12
    ]
    tokenised = read_rows(
        examples, contract, block(), StageDir(Path("."), lambda m, s: None, is_main=False)
    ).train
    rows = list(tokenised.dataset)
    tokenised.pack(128, 1)
    bins = list(tokenised.dataset)
    assert 1 < len(bins) < len(rows)
    assert sorted(n for b in bins for n in b["seq_lengths"]) == sorted(
        len(r["input_ids"]) for r in rows
    )
    model = load_model(next((built / "sft").glob("*/model")))

    def nll(ids: list[int], labels: list[int], positions: list[int]) -> float:
        with torch.no_grad():
            logits = model(
                torch.tensor([ids]), position_ids=torch.tensor([positions]), use_cache=False
            ).logits[0, :-1]
        target = torch.tensor(labels[1:])
        return float(
            torch.nn.functional.cross_entropy(logits, target, ignore_index=IGNORED, reduction="sum")
        )

    alone = sum(nll(r["input_ids"], r["labels"], list(range(len(r["input_ids"])))) for r in rows)
    packed = sum(
        nll(b["input_ids"], b["labels"], [i for n in b["seq_lengths"] for i in range(n)])
        for b in bins
    )
    # Sums of about 30 tokens' fp32 losses
    assert packed == pytest.approx(alone, abs=1e-3)


def some_rows(inputs: dict[str, Path], count: int, folder: Path) -> dict[str, Path]:
    """The inputs with only so many rows to train on."""
    examples = load(inputs["data"] / "examples.parquet", Example)
    shutil.copytree(inputs["data"], folder)
    rows = [e for e in examples if e.split == "sft"][:count] + [
        e for e in examples if e.split == "validation"
    ]
    save(folder / "examples.parquet", rows, Example)
    return {**inputs, "data": folder}


def test_the_best_checkpoint_by_validation_is_published(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    """Trained long on few rows, the model forgets how to answer others: the published weights are from before."""
    few_inputs = some_rows(inputs, 16, tmp_path / "data")  # a step an epoch
    trl = SFTArguments(lr_scheduler_type="constant", warmup_steps=0)
    cfg = block(epochs=60.0, learning_rate=1e-2, evaluations=6, trainer=trl)
    weights, metrics, out = train(cfg, few_inputs, tmp_path / "sft")
    losses = {p["step"]: p["eval_loss"] for p in read_curves(out.path) if "eval_loss" in p}
    assert metrics["step"] == min(losses, key=losses.__getitem__) < metrics["steps"]
    assert metrics["eval_loss"] == min(losses.values())
    assert len(losses) == 1 + 6, "one before the first step"
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


def test_a_base_without_numbers_is_told_by_its_first_validation(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    base = Path(shutil.copytree(inputs["base"], tmp_path / "base"))
    weights = load_file(file := base / "model" / "model.safetensors")
    save_file(
        {name: tensor.float() * math.nan for name, tensor in weights.items()},
        file,
        {"format": "pt"},
    )
    with pytest.raises(UserError, match=r"the validation loss is nan"):
        train(block(), inputs | {"base": base}, tmp_path / "sft")


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
@pytest.mark.parametrize("interrupted", [False, True])
def test_a_training_that_made_the_model_worse_publishes_nothing(
    interrupted: bool, trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends with a lower loss than the worst, far above what it began with. After a kill that is known as well."""
    cfg = block(learning_rate=0.05)
    pattern = r"validation loss [\d.]+ → [\d.]+ → [\d.]+: .*higher than .*nothing is published. Lower sft.learning_rate"
    if interrupted:
        cfg = replace(cfg, runtime=replace(cfg.runtime, save_steps=9))
        saved = saving.Checkpoints.on_save

        def stop(*args: Any, **kwargs: Any) -> None:
            saved(*args, **kwargs)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(saving.Checkpoints, "on_save", stop)
            train(cfg, trained, tmp_path / "sft")
    for _ in range(2):  # the same command again says the same again
        (tmp_path / "sft").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=pattern):
            run(cfg, trained, work(tmp_path / "sft"))
    assert not (tmp_path / "sft" / "model").exists()


@pytest.mark.extended
@pytest.mark.parametrize("packing", [False, True])
def test_rows_that_the_model_itself_wrote_are_trained_on(
    packing: bool, trained: dict[str, Path], built: Path, tmp_path: Path
) -> None:
    """They start where the loss can hardly fall: as far as it rises, that is told, and the model published."""
    prompts = {e.id: e for e in load(trained["data"] / "examples.parquet", Example)}
    wrote = load(next((built / "sample").glob("*/candidates.parquet")), Candidate)
    rows = [
        replace(
            prompts[c.prompt_id],
            id=f"{i:04}",
            reference=c.text,
            split="validation" if i % 4 == 0 else "sft",
        )
        for i, c in enumerate(wrote)
    ]
    data = shutil.copytree(trained["data"], tmp_path / "data")
    save(data / "examples.parquet", rows, Example)
    cfg = block(
        packing=packing,
        max_length=512,
        batch_size=1 if packing else 16,
        learning_rate=3e-4,
        epochs=2.0,
    )
    weights, metrics, out = train(cfg, {**trained, "data": data}, tmp_path / "sft")
    assert distance(weights, load_file(trained["base"] / "model" / "model.safetensors")) > 1e-4, (
        "it trained"
    )
    assert 0 < metrics["step"] <= metrics["steps"]
    losses = [p["eval_loss"] for p in read_curves(out.path) if "eval_loss" in p]
    assert losses[0] < 1, "near the optimum"
    assert ["lowest value" in warning for warning in out.warnings] == [True] * (
        metrics["eval_loss"] > losses[0]
    )


def test_a_training_as_it_should_be_is_not_watched_to_death(built: Path) -> None:
    """The tiny chain's losses, and those of its DPO, all together far from where one is stopped."""
    for stage in ("sft", "dpo"):
        watch, points = (
            callbacks.DivergenceCheck(block()),
            read_curves(next((built / stage).glob("*/curves.jsonl")).parent),
        )
        assert sum("grad_norm" in point for point in points) > callbacks.BEGINNING
        for point in points:
            watch.record(point)
            assert not watch.has_climbed(len(points))
        began = max(watch.start_loss, *watch.losses[: callbacks.BEGINNING])
        watch.losses += [
            1.01 * max(callbacks.RISE * began, began + callbacks.NATS)
        ] * callbacks.RECENT
        assert watch.has_climbed(len(points))


def test_a_row_too_long_is_dropped_whole_and_named_and_too_many_stop(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    answered = [e for e in load(inputs["data"] / "examples.parquet", Example) if e.reference]
    ids = {e.id for e in answered if e.split in ("sft", "validation")}
    with pytest.raises(UserError, match=rf"{len(ids)} longer than sft.max_length=8 "):
        train(block(max_length=8), inputs, tmp_path / "none")
    with pytest.raises(UserError, match=r"sft\.max_dropped=0"):
        train(block(max_length=30, max_dropped=0.0), inputs, tmp_path / "strict")
    _, metrics, out = train(block(max_length=30, max_dropped=1.0), inputs, tmp_path / "some")
    ((reason, count),) = metrics["rows_dropped"].items()
    named = [json.loads(line) for line in (out / "dropped.jsonl").read_text().splitlines()]
    assert 0 < count < len(ids)
    assert len({row["id"] for row in named} & ids) == len(named) == count
    assert all(row["reason"] == reason == "longer than sft.max_length=30 tokens" for row in named)
    longest = max(row["tokens"] for row in named)
    dropped = (
        f"{count} of {len(ids)} rows are dropped: {count} {reason} (the longest has {longest})."
    )
    assert out.warnings[0].startswith(dropped)
    assert f"sft.max_length={longest} keeps 100%. dropped.jsonl lists them." in out.warnings[0]


def test_no_training_keeps_the_weights_and_fixes_the_contract(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    weights, metrics, out = train(
        Untrained(seed=0, template=Template("chatml")), inputs, tmp_path / "sft"
    )
    before = load_file(inputs["base"] / "model" / "model.safetensors")
    assert metrics["trained"] is False
    assert all(torch.equal(weights[name], before[name]) for name in before)
    load_contract(out / "model")


def test_the_published_folder_loads_as_it_is(built: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = next((built / "sft").glob("*/model"))
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    chat = [
        {
            "role": "user",
            "content": "Is this review positive or negative? Answer with one word: I love the hat.",
        }
    ]
    ids = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**ids, max_new_tokens=8)[0, ids["input_ids"].shape[1] :]
    assert answer[-1] == tokenizer.eos_token_id, (
        "generation stops by the folder's own generation config"
    )
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id


def test_a_torn_checkpoint_is_not_trusted(inputs: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for step in (5, 10):
        checkpoint = folder / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "optimizer.pt").write_text("state")
        state = type("State", (), {"global_step": step})
        checkpoints = list(folder.glob("checkpoint-*"))
        saving.Checkpoints(300).on_save(type("Args", (), {"output_dir": str(folder)}), state, None)
        assert [p.name for p in folder.glob("checkpoint-*")] == [checkpoint.name], checkpoints
    assert saving.newest_complete(folder) == folder / "checkpoint-10"
    (folder / "checkpoint-10" / "optimizer.pt").write_text("stat\0")
    assert saving.newest_complete(folder) is None
    (folder / "checkpoint-12").mkdir()
    assert saving.newest_complete(folder) is None, "without a marker it was never finished"


def test_weights_are_copied_where_the_file_system_makes_no_hard_links(tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system to link from")
    with tempfile.NamedTemporaryFile(dir=memory) as source:
        Path(source.name).write_text("weights")
        link_or_copy(source.name, str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_text() == "weights"
