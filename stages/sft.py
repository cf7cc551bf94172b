"""Stage `sft`: supervised fine-tuning on the assistant's tokens with TRL's SFTTrainer. It fixes the chat contract."""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from stages.config.blocks.training import SFT, Untrained
from stages.models import model_card, rounding
from stages.models.chat_templates import establish_contract, replaced_message
from stages.models.contract import Contract, generation_stops, load_contract
from stages.models.loading import (
    count_embedding_rows,
    load_model,
    load_tokenizer,
    read_context_length,
    save_model,
)
from stages.objectives import sft as objective
from stages.store.records import Example, stream
from stages.store.workspace import StageDir
from stages.training.end_of_turn import check_end_of_turn
from stages.training.fit import Fit
from stages.training.trainer import validate_best_loss

log = logging.getLogger(__name__)


def run(cfg: SFT | Untrained, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish `model/` with its contract, any `adapter/`, `token_example.json`, and `held_out.json`: the
    validation rows.

    Raises:
        ContractError: if the template breaks the contract.
        UserError: for too many dropped rows, packed examples that meet, training that diverged or raised the loss."""
    base = inputs["base"] / "model"
    data = inputs["data"] / "examples.parquet"
    template_message = None
    if isinstance(cfg, SFT) and cfg.control:  # DPO's control run continues the SFT model
        contract = load_contract(base)
    else:
        contract, template_message = choose_contract(cfg, inputs, out)
    # of a template that is not the base's own
    template_figure = {"template": template_message} if template_message else {}
    if isinstance(cfg, Untrained):
        return publish_base(cfg, base, contract, inputs, out, template_figure)
    if cfg.turns is None:
        cfg = replace(cfg, turns=objective.choose_turns(stream(data, Example), contract, out))
    examples = stream(data, Example)
    rows = objective.read_rows(examples, contract, cfg, out, read_context_length(base))
    if cfg.packing:
        rows.train.pack(cfg.max_length, cfg.batch_size)

    fit = Fit(objective.SupervisedTrainer, cfg, rows, contract, base, out)
    trainer = fit.build_trainer(objective.trainable_model(base, contract, fit.cfg, fit.args.device))
    checks = []
    if cfg.packing:
        checks.append(objective.IsolationCheck(trainer, cfg, rows.report_row.ids))
    best = fit.train_to_best(*checks)
    if best:
        validate_best_loss(trainer, best, cfg, out)
    if not out.is_main:
        return {}
    held_out = [{"id": name} for name in rows.validation.ids]
    fit.publish(partial(objective.load_start, base, contract, cfg), held_out)
    objective.write_token_example(rows.report_row, contract, out / "token_example.json")

    figures = {"steps": fit.steps, **best, **template_figure}
    fit.describe(inputs, figures)
    metrics = fit.metrics(rows.train.lengths)
    if rows.texts:
        metrics["texts"] = rows.texts
        metrics["summary"] += f"; {rows.texts} running texts, without chat marks"
    if best:
        metrics["summary"] += f"; validation loss {best['eval_loss']:.3f} at step {best['step']}"
    if "eval_text_perplexity" in best:
        perplexity = best["eval_text_perplexity"]
        metrics["summary"] += f"; perplexity of held-out running text {perplexity:.4g}"
    return metrics | {
        "trained": True,
        "trained_tokens": sum(rows.train.trained_counts[i] for i in fit.times_seen),
        **figures,
        "end_of_turn": check_end_of_turn(cfg, base, out / "model", contract, out),
    }


def choose_contract(
    cfg: SFT | Untrained, inputs: dict[str, Path], out: StageDir
) -> tuple[Contract, str | None]:
    """Return the contract of the model and, if its template is not the base's own, a message that says so."""
    base = inputs["base"] / "model"
    tokenizer = load_tokenizer(base)
    embeddings = count_embedding_rows(base)
    own_template = tokenizer.chat_template
    # of two models that are compared, one may have no template
    if "given" in inputs and not own_template:
        tokenizer.chat_template = load_tokenizer(inputs["given"] / "model").chat_template
    examples = stream(inputs["data"] / "examples.parquet", Example)
    contract = establish_contract(
        tokenizer,
        cfg.template,
        cfg.train,
        embeddings,
        generation_stops(base, tokenizer),
        thinks=cfg.train and objective.think(examples),
        warn=out.warn,
    )
    if isinstance(cfg, SFT):
        objective.require_trained_rows(contract, cfg, embeddings)
    template_message = replaced_message(contract, own_template, cfg.template.kind)
    if template_message:
        log.info("%s", template_message)
    return contract, template_message


def publish_base(
    cfg: Untrained,
    base: Path,
    contract: Contract,
    inputs: dict[str, Path],
    out: StageDir,
    template_figure: dict[str, Any],
) -> dict[str, Any]:
    """Publish the base model without training, under its contract. `template_figure` says which if its
    template is replaced."""
    save_model(objective.apply_contract(load_model(base), contract, cfg.seed), out / "model")
    if rounding.is_rounded(base):
        rounding.round_model(out / "model")
    contract.save(out / "model")
    model_card.write_card(out / "model", cfg, inputs, template_figure)
    return {
        "trained": False,
        "end_of_turn": check_end_of_turn(cfg, base, out / "model", contract, out),
        "summary": "not trained",
        **template_figure,
    }
