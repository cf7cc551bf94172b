"""Stage `sft`: supervised fine-tuning on the assistant's tokens (TRL's SFTTrainer), and the contract it fixes."""

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel
from trl import SFTConfig
from trl.trainer import disable_dropout_in_model

from stages.config.blocks.training import SFT
from stages.config.choices import Adapter
from stages.config.errors import UserError
from stages.evaluation.intervals import paired
from stages.models import contract, model_card
from stages.models.contract import Contract
from stages.models.loading import context_of, embedding_rows, load_model, load_tokenizer, save_model
from stages.models.packing import pack_segments
from stages.objectives.isolation import Isolation
from stages.objectives.supervised import SupervisedTrainer
from stages.store import atomic_write
from stages.store.records import Example, stream
from stages.store.sealed_json import note
from stages.store.workspace import SCRATCH, Work
from stages.training import adapters, budget
from stages.training.arguments import arguments
from stages.training.batches import Turns, each_alike
from stages.training.callbacks import in_one_line, lower_rate
from stages.training.demonstrations import Row, prepare
from stages.training.end_of_turn import check_end_of_turn
from stages.training.publish import Best, publish, save_trained
from stages.training.run import train
from stages.training.samples import Samples
from stages.training.validation import Course

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
        model_card.write(out / "model", "sft", cfg, inputs, {})
        return {
            "trained": False,
            "end_of_turn": check_end_of_turn(cfg, base, out / "model", terms, out),
            "summary": "not trained: the model is used as it is, under its own contract",
        }

    given = prepare(stream(inputs["data"] / "examples.parquet", Example), terms, cfg, out, context_of(base))
    rows, validation, conversations = given.train, given.validation, len(given.train)
    if cfg.packing:
        rows.pack(cfg.max_length, cfg.batch_size)
    turns = Turns(rows.ids, cfg.batch_size, cfg.seed, cfg.block)

    options = {"packing": cfg.packing, "eval_packing": False, "dataset_kwargs": {"skip_prepare_dataset": True}}
    args = arguments(SFTConfig, cfg, out, **options)
    cfg = budget.fitted(cfg, args, base, out)
    evaluated = each_alike([*range(len(validation))], args.world_size)
    trainer = SupervisedTrainer(
        trainable_model(base, terms, cfg, args.device),
        cfg=cfg,
        out=out,
        turns=turns,
        args=args,
        train_dataset=rows.dataset,
        eval_dataset=validation.dataset.select(evaluated) if evaluated else None,
        processing_class=terms.tokenizer,
    )
    best = Best(trainer, out / SCRATCH / "best")
    samples = Samples(trainer, cfg, given.prompts, terms, out)
    train(trainer, cfg, out, best, samples, *([Isolation(trainer, cfg, given.shown.ids)] if cfg.packing else []))
    losses: list[float] = []
    if best.found:
        course, step = Course(trainer), int(best.found["step"])
        compare(course, step, len(validation), cfg, out)
        losses = course.row_losses(step)
    else:
        save_trained(trainer, best.folder)
    if not out.main:
        return {}

    frozen = lambda weights: under_contract(load_model(base, weights), terms, cfg.seed)
    publish(best.folder, cfg, out, base, frozen)
    terms.save(out / "model")
    show_tokens(given.shown, terms, out / "token_example.json")
    # Several processes may evaluate the first rows again, after the last.
    by_row = [{"id": row, "loss": loss} for row, loss in zip(validation.ids, losses, strict=False)]
    note(out / "held_out.json", by_row)
    figures = {"steps": trainer.state.global_step, **best.found}
    seen = turns.seen(trainer.state.global_step)
    lengths, trained = rows.lengths, rows.trained
    trained_tokens = sum(trained[i] for i in seen)
    if unseen := turns.told(trainer.state.global_step, "packed rows" if cfg.packing else "rows"):
        out.warn(unseen)
    packed = f" in {len(rows)} packed ones" if cfg.packing else ""
    summary = f"{conversations} rows{packed}, {trained_tokens} trained tokens"
    if turns.left_out:
        summary += f", {turns.left_out} of {turns.rows} rows left out of each epoch in turn"
    if "eval_loss" in figures:
        summary += f"; validation loss {figures['eval_loss']:.3f} at step {figures['step']} of {figures['steps']}"
    model_card.write(out / "model", "sft", cfg, inputs, figures)
    return {
        "trained": True,
        "device": str(args.device),
        "processes": args.world_size,
        "rows": len(rows),
        "rows_cut": turns.left_out,
        "rows_unseen": len(rows) - len(seen),
        "rows_dropped": given.dropped,
        "tokens": sum(times * lengths[i] for i, times in seen.items()),
        "trained_tokens": trained_tokens,
        "end_of_turn": check_end_of_turn(cfg, base, out / "model", terms, out),
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


def show_tokens(row: Row, terms: Contract, path: Path) -> None:
    """One training example token by token: its text, whether it is trained or ends the turn, and whether it is of an
    assistant turn that is masked."""
    _, answers = terms.example(row.example.conversation)
    tokens = [
        {"text": terms.tokenizer.decode([i]), "trained": trained, "end_of_turn": i == terms.stop_ids[0]}
        | ({"masked": True} if answer and not trained else {})
        for i, trained, answer in zip(row.ids, row.trained, answers, strict=True)
    ]
    atomic_write.write(path, json.dumps(tokens, ensure_ascii=False))
