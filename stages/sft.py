"""Stage `sft`: supervised fine-tuning on the assistant's tokens (TRL's SFTTrainer), and the contract it fixes."""

from pathlib import Path
from typing import Any

from stages.config.blocks.training import SFT
from stages.models import contract, model_card
from stages.models.chat_templates import establish
from stages.models.contract import Contract
from stages.models.loading import context_of, embedding_rows, load_model, load_tokenizer, save_model
from stages.objectives.sft import Isolation, SupervisedTrainer, read_rows, show_tokens, trainable_model, under_contract
from stages.store.records import Example, stream
from stages.store.workspace import StageDir
from stages.training.end_of_turn import check_end_of_turn
from stages.training.fit import Fit
from stages.training.trainer import EvalHistory, lowest_losses


def run(cfg: SFT, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish `model/` with its contract, `token_example.json`, and `held_out.json` with the loss of every validation
    row; with an adapter, `adapter/` too.

    Raises:
        ContractError: where the template cannot keep the contract.
        UserError: where too many rows were dropped, packed examples see each other, training diverged or did harm.
    """
    base = inputs["base"] / "model"
    if cfg.control:  # it starts from SFT
        terms = contract.load(base)
    else:
        terms = establish(load_tokenizer(base), cfg.template, cfg.train, embedding_rows(base))
    if not cfg.train:
        return publish_untrained(cfg, base, terms, inputs, out)
    rows = read_rows(stream(inputs["data"] / "examples.parquet", Example), terms, cfg, out, context_of(base))
    conversations = len(rows.train)
    if cfg.packing:
        rows.train.pack(cfg.max_length, cfg.batch_size)

    fit = Fit(SupervisedTrainer, cfg, rows, terms, base, out)
    trainer = fit.trainer_of(trainable_model(base, terms, fit.cfg, fit.args.device))
    best = fit.train_to_best(*([Isolation(trainer, cfg, rows.shown.ids)] if cfg.packing else []))
    losses = lowest_losses(EvalHistory(trainer), int(best["step"]), len(rows.validation), cfg, out) if best else []
    if not out.main:
        return {}
    by_row = [{"id": row, "loss": loss} for row, loss in zip(rows.validation.ids, losses, strict=False)]
    fit.publish(lambda weights: under_contract(load_model(base, weights), terms, cfg.seed), by_row)
    show_tokens(rows.shown, terms, out / "token_example.json")

    figures = {"steps": fit.steps, **best}
    fit.describe(inputs, figures)
    trained_tokens = sum(map(rows.train.trained.__getitem__, fit.seen))
    own: dict[str, Any] = {"trained": True, "trained_tokens": trained_tokens, **figures}
    own["end_of_turn"] = check_end_of_turn(cfg, base, out / "model", terms, out)
    own["summary"] = summary_message(fit, conversations, trained_tokens, best)
    return fit.metrics(rows.train.lengths) | own


def summary_message(fit: Fit[SFT, SupervisedTrainer], rows: int, trained_tokens: int, best: dict[str, float]) -> str:
    """Return on how much was trained, and with which loss: in one line."""
    packed = f" in {fit.turns.rows} packed ones" if fit.cfg.packing else ""
    message = f"{rows} rows{packed}, {trained_tokens} trained tokens"
    if fit.turns.left_out:
        message += f", {fit.turns.left_out} of {fit.turns.rows} rows left out of each epoch in turn"
    if best:
        message += f"; validation loss {best['eval_loss']:.3f} at step {best['step']} of {fit.steps}"
    return message


def publish_untrained(cfg: SFT, base: Path, terms: Contract, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish the base model as it is, under its own contract."""
    save_model(under_contract(load_model(base), terms, cfg.seed), out / "model")
    terms.save(out / "model")
    model_card.write(out / "model", cfg, inputs, {})
    return {
        "trained": False,
        "end_of_turn": check_end_of_turn(cfg, base, out / "model", terms, out),
        "summary": "not trained: the model is used as it is, under its own contract",
    }
