"""Stage `sft`: supervised fine-tuning on the assistant's tokens (TRL's SFTTrainer), and the contract it fixes."""

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel
from trl import SFTConfig, pack_dataset
from trl.trainer import disable_dropout_in_model

from stages.config.blocks.training import SFT
from stages.config.choices import Adapter, TrainedTurns
from stages.config.errors import UserError
from stages.evaluation.bootstrap import paired
from stages.models import card, contract
from stages.models.contract import Contract
from stages.models.loading import embedding_rows, load_model, load_tokenizer, save_model
from stages.models.masking import masked
from stages.models.packing import pack_segments
from stages.models.rendering import ContractError
from stages.objectives.isolation import Isolation
from stages.objectives.supervised import SupervisedTrainer
from stages.store.records import Example, content_id, stream
from stages.store.work import SCRATCH, Work
from stages.training import adapters, budget
from stages.training.arguments import arguments
from stages.training.batches import Turns, each_alike, fill
from stages.training.callbacks import in_one_line, lower_rate
from stages.training.dropped import Dropped
from stages.training.publish import Best, publish, save_trained
from stages.training.run import train
from stages.training.samples import Samples
from stages.training.validation import Course

IGNORED = -100  # the label of a token that is not trained
RISE = 0.05  # of the validation loss: more of it than this, and than its noise, and nothing is published


def run(cfg: SFT, inputs: dict[str, Path], out: Work) -> dict[str, Any]:
    """Publish `model/` with its contract, `token_example.json`, and `held_out.json` with the loss of every validation
    row; with an adapter, `adapter/` too.

    Raises:
        ContractError: where the template cannot keep the contract.
        UserError: where too many rows had to be dropped, packed examples would see each other, or training diverged or
            made the model worse.
    """
    base = inputs["base"] / "model"
    if cfg.control:  # it starts from SFT
        terms = contract.load(base)
    else:
        terms = contract.establish(load_tokenizer(base), cfg.template, cfg.train, embedding_rows(base))
    if not cfg.train:
        save_model(under_contract(load_model(base), terms, cfg.seed), out / "model")
        terms.save(out / "model")
        card.write(out / "model", "sft", cfg, inputs, {})
        return {"trained": False, "summary": "not trained: the model is used as it is, under its own contract"}

    answered = [e for e in stream(inputs["data"] / "examples.parquet", Example) if e.reference]
    trainable = [e for e in answered if e.split == "sft"]
    if not trainable:
        raise UserError("the data holds no rows for sft. Raise data.tasks.sft, or add a source with a share for it.")
    dropped = Dropped(out, "rows")
    train_rows = tokenize(trainable, terms, cfg, dropped)
    validation = [e for e in answered if e.split == "validation"]
    validation_rows = tokenize(validation, terms, cfg, dropped)
    count = len(trainable) + len(validation)
    rows_dropped = dropped.settle(count, len(train_rows), cfg.max_dropped, f"{cfg.block}.max_dropped")
    example = shown(trainable, train_rows, cfg)
    rows = pack(train_rows, cfg.max_length, cfg.batch_size) if cfg.packing else train_rows
    turns = Turns([row["id"] for row in rows], cfg.batch_size, cfg.seed, cfg.block)

    options = {"packing": cfg.packing, "eval_packing": False, "dataset_kwargs": {"skip_prepare_dataset": True}}
    args = arguments(SFTConfig, cfg, out, **options)
    cfg = budget.fitted(cfg, args, base, out)
    trainer = SupervisedTrainer(
        trainable_model(base, terms, cfg, args.device),
        cfg=cfg,
        out=out,
        turns=turns,
        args=args,
        train_dataset=columns(rows),
        eval_dataset=columns(each_alike(validation_rows, args.world_size)) if validation_rows else None,
        processing_class=terms.tokenizer,
    )
    best = Best(trainer, out / SCRATCH / "best")
    whole = {row["id"] for row in validation_rows}
    samples = Samples(trainer, cfg, [e.messages for e in validation if e.id in whole], terms, out)
    train(trainer, cfg, out, best, samples, *([Isolation(trainer, cfg, example["input_ids"])] if cfg.packing else []))
    losses: list[float] = []
    if best.found:
        course, step = Course(trainer), int(best.found["step"])
        compare(course, step, len(validation_rows), cfg, out)
        losses = course.row_losses(step)
    else:
        save_trained(trainer, best.folder)
    if not out.main:
        return {}

    frozen = lambda weights: under_contract(load_model(base, weights), terms, cfg.seed)
    publish(best.folder, cfg, out, base, frozen)
    terms.save(out / "model")
    show_tokens(example, trainable, terms, out / "token_example.json")
    # Several processes may evaluate the first rows again, after the last.
    by_row = [{"id": row["id"], "loss": loss} for row, loss in zip(validation_rows, losses, strict=False)]
    (out / "held_out.json").write_text(json.dumps(by_row))
    figures = {"steps": trainer.state.global_step, **best.found}
    seen = turns.seen(trainer.state.global_step)
    trained_tokens = sum(label != IGNORED for i in seen for label in rows[i]["labels"])
    if unseen := turns.told(trainer.state.global_step, "packed rows" if cfg.packing else "rows"):
        out.warn(unseen)
    packed = f" in {len(rows)} packed ones" if cfg.packing else ""
    summary = f"{len(train_rows)} rows{packed}, {trained_tokens} trained tokens"
    if turns.left_out:
        summary += f", {turns.left_out} of {turns.rows} rows left out of each epoch in turn"
    if "eval_loss" in figures:
        summary += f"; validation loss {figures['eval_loss']:.3f} at step {figures['step']} of {figures['steps']}"
    card.write(out / "model", "sft", cfg, inputs, figures)
    return {
        "trained": True,
        "device": str(args.device),
        "processes": args.world_size,
        "rows": len(rows),
        "rows_cut": turns.left_out,
        "rows_unseen": len(rows) - len(seen),
        "rows_dropped": rows_dropped,
        "tokens": sum(times * len(rows[i]["input_ids"]) for i, times in seen.items()),
        "trained_tokens": trained_tokens,
        **figures,
        "summary": summary,
    }


def under_contract(model: PreTrainedModel, terms: Contract, seed: int) -> PreTrainedModel:
    """The model with a row for every token of the contract, and the contract's tokens in its generation config."""
    if len(terms.tokenizer) > model.get_input_embeddings().num_embeddings:
        torch.manual_seed(seed)
        model.resize_token_embeddings(len(terms.tokenizer))  # asked for by template.resize
    model.generation_config.eos_token_id = terms.stop_ids
    model.generation_config.pad_token_id = terms.tokenizer.pad_token_id
    return model


def trainable_model(base: Path, terms: Contract, cfg: SFT, device: torch.device) -> PreTrainedModel | PeftModel:
    """The base model, or a fresh adapter over it, as it is trained."""
    model = under_contract(load_model(base, cfg.held, device), terms, cfg.seed)
    if cfg.packing:
        pack_segments(model)
    disable_dropout_in_model(model)  # dropout draws a mask per micro-batch: the division of a step would change it
    return model if cfg.adapter is Adapter.none else adapters.attach(model, cfg.lora, cfg.seed)


def columns(rows: list[dict[str, Any]]) -> Dataset:
    """Tokenised rows as the trainer reads them: all columns but the id."""
    return Dataset.from_list([{k: v for k, v in row.items() if k != "id"} for row in rows])


def tokenize(examples: list[Example], terms: Contract, cfg: SFT, dropped: Dropped) -> list[dict[str, Any]]:
    """`id`, `input_ids` and `labels` of every example that the template can render and that fits whole."""
    rows = []
    for example, found in zip(examples, terms.examples(e.conversation for e in examples), strict=True):
        try:
            if isinstance(found, ContractError):
                raise found
            ids, trained = found
            if masks(example, cfg):
                last = cfg.trained_turns is TrainedTurns.last
                trained = masked(ids, trained, terms.stop_ids[0], example.trained, last)
        except ContractError as reason:
            dropped.add(example.id, reason)
            continue
        if len(ids) > cfg.max_length:
            dropped.add(example.id, f"longer than {cfg.block}.max_length={cfg.max_length} tokens", len(ids))
            continue
        labels = [i if t else IGNORED for i, t in zip(ids, trained, strict=True)]
        rows.append({"id": example.id, "input_ids": ids, "labels": labels})
    return rows


def masks(example: Example, cfg: SFT) -> bool:
    """Whether an assistant turn of a conversation is not trained."""
    turns = sum(turn["role"] == "assistant" for turn in example.conversation)
    return not all(example.trained or []) or (cfg.trained_turns is TrainedTurns.last and turns > 1)


def shown(examples: list[Example], rows: list[dict[str, Any]], cfg: SFT) -> dict[str, Any]:
    """The row that the report shows: the first, or the first with a turn that is not trained."""
    told = {example.id for example in examples if masks(example, cfg)}
    return next((row for row in rows if row["id"] in told), rows[0])


def compare(course: Course, step: int, rows: int, cfg: SFT, out: Work) -> None:
    """Compare the validation rows' losses at the step that is published with those before the first.

    Raises:
        UserError: where they rose by more than RISE, and by more than their noise. A smaller rise only warns: rows
            that the model itself wrote start where it is hardly to be bettered.
    """
    before, after = course.row_losses(0)[:rows], course.row_losses(step)[:rows]
    change, start = paired(before, after), fmean(before)
    if change.mean <= 0:
        return
    told = (
        f"validation loss {in_one_line(course.losses)}: at its best, after step {step}, it is higher than before the "
        f"first step, by {change.per('row')}"
    )
    if change.mean > RISE * start and change.low > 0:
        raise UserError(f"{told}: training made the model worse, and nothing is published. {lower_rate(cfg)}.")
    out.warn(f"{told}. {lower_rate(cfg)}, unless these rows are the model's own.")


def pack(rows: list[dict[str, Any]], length: int, batch_size: int) -> list[dict[str, Any]]:
    """Best-fit decreasing bins of `length` tokens, in one process and a fixed order (arXiv:2404.10830), that fill
    whole batches."""
    ordered = sorted(rows, key=lambda row: row["id"])
    columns = {name: [row[name] for row in ordered] for name in ("input_ids", "labels")}
    packed = pack_dataset(Dataset.from_dict(columns), length, "bfd").to_list()
    return [{"id": content_id(row["input_ids"]), **row} for row in fill(packed, batch_size)]


def show_tokens(row: dict[str, Any], examples: list[Example], terms: Contract, path: Path) -> None:
    """One training example token by token: its text, whether it is trained or ends the turn, and whether it is of an
    assistant turn that is masked."""
    example = next(example for example in examples if example.id == row["id"])
    _, answers = terms.example(example.conversation)
    tokens = [
        {"text": terms.tokenizer.decode([i]), "trained": label != IGNORED, "end_of_turn": i == terms.stop_ids[0]}
        | ({"masked": True} if answer and label == IGNORED else {})
        for i, label, answer in zip(row["input_ids"], row["labels"], answers, strict=True)
    ]
    path.write_text(json.dumps(tokens, ensure_ascii=False))
