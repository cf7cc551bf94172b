"""Stage `dpo`: direct preference optimization (arXiv:2305.18290) by TRL's DPOTrainer, its reference stored."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from transformers import PreTrainedModel
from trl import DPOConfig

from stages.config.blocks.training import DPO
from stages.config.choices import Adapter, Forward
from stages.evaluation.displacement import displacement
from stages.models import contract, model_card
from stages.models.contract import Contract
from stages.models.loading import load_model
from stages.models.packing import pack_pairs
from stages.models.scoring import rounded_once
from stages.objectives.first_step import PAIRS, FirstStep
from stages.objectives.preference import StoredReferenceTrainer, beside, refuse_other_tokens, trl_row
from stages.store.dropped import Dropped
from stages.store.records import Pair, PairLogProbs, stream
from stages.store.sealed_json import note
from stages.store.workspace import SCRATCH, Work, last_of, read_curves
from stages.training import adapters, budget
from stages.training.arguments import arguments
from stages.training.batches import Turns, each_alike
from stages.training.pairs import trained_pairs
from stages.training.preference_rows import PreferenceRows
from stages.training.publish import publish, save_trained
from stages.training.run import train
from stages.training.samples import FirstPrompts, Samples
from stages.training.validation import Course, risen


def run(cfg: DPO, inputs: dict[str, Path], out: Work) -> dict[str, Any]:
    """Publish `model/` under the policy's contract, `adapter/` where there is one, and `held_out.json` with the margin
    of every held-out pair.

    Raises:
        UserError: where the policy or a pair's tokens are not what the reference scored, the loss does not start
            where it must, too many pairs are too long, or training diverged.
    """
    terms = contract.load(inputs["policy"] / "model")
    log_probs = inputs["reference"] / "logprobs.parquet"
    scored = beside(stream(inputs["pairs"] / "pairs.parquet", Pair), stream(log_probs, PairLogProbs))
    given = prepare(scored, terms, cfg, out)
    pairs, held_out = given.train, given.validation
    turns = Turns(pairs.ids, cfg.batch_size, cfg.seed, "dpo")

    frozen = inputs.get("frozen", inputs["policy"]) / "model"
    options = {"beta": cfg.beta, "loss_type": list(cfg.loss_type), "loss_weights": cfg.loss_weights}
    args = arguments(DPOConfig, cfg, out, **options, precompute_ref_log_probs=True)
    cfg = budget.fitted(cfg, args, frozen, out)
    evaluated = each_alike([*range(len(held_out))], args.world_size)
    trainer = StoredReferenceTrainer(
        trainable_model(frozen, inputs["policy"] / "adapter", cfg, args.device, out),
        cfg=cfg,
        out=out,
        turns=turns,
        args=args,
        train_dataset=pairs.dataset,
        eval_dataset=held_out.dataset.select(evaluated) if evaluated else None,
        processing_class=terms.tokenizer,
    )
    start = FirstStep(trainer, cfg, inputs, given.first, out)
    train(trainer, cfg, out, start, Samples(trainer, cfg, given.prompts, terms, out))
    aside = {*held_out.ids}
    found = margins(trainer, cfg, [p for p in stream(log_probs, PairLogProbs) if p.id in aside])
    save_trained(trainer, out / SCRATCH / "trained")
    if not out.main:
        return {}
    publish(out / SCRATCH / "trained", cfg, out, frozen, lambda weights: load_model(frozen, weights))
    terms.save(out / "model")
    note(out / "held_out.json", found)

    curve = read_curves(out.path)
    figures = {
        **start.found,
        **last_of(curve, "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected"),
    }
    figures |= last_of(curve, "eval_loss", "eval_rewards/accuracies", "eval_rewards/margins")
    figures |= last_of(curve, "eval_logps/chosen", "eval_logps/rejected")
    displaced, steps = displacement(figures, held_out.rows), trainer.state.global_step
    for warning in (displaced, risen(Course(trainer), len(held_out), cfg), turns.told(steps, "pairs")):
        if warning:
            out.warn(warning)
    summary = f"{len(pairs)} pairs × {cfg.epochs:g} epochs, {steps} steps"
    if turns.left_out:
        summary += f", {turns.left_out} pairs left out of each epoch in turn"
    if "eval_rewards/accuracies" in figures:
        summary += f"; held-out pair accuracy {figures['eval_rewards/accuracies']:.1%} of {len(held_out)}"
    model_card.write(out / "model", "dpo", cfg, inputs, figures)
    lengths = pairs.tokens("prompt_ids", "chosen_ids", "prompt_ids", "rejected_ids")
    return {
        **trained_pairs(trainer, turns, lengths, len(held_out), given.dropped),
        "displacement": bool(displaced),
        **figures,
        "summary": summary,
    }


def trainable_model(
    frozen: Path, adapter: Path, cfg: DPO, device: torch.device, out: Work
) -> PreTrainedModel | PeftModel:
    """The policy as `dpo.adapter` has it trained: all its weights, a fresh adapter over them, or the SFT's adapter
    over the weights below it. Before the first step each of these computes what the reference does."""
    model = load_model(frozen, cfg.held, device)
    if cfg.forward is Forward.shared_prefix and not pack_pairs(model):
        out.warn("this model's attention cannot be packed: pairs are padded, and every prompt is read twice.")
    if cfg.adapter is Adapter.none:
        return model
    if cfg.adapter is Adapter.continued:
        return adapters.attach_trained(model, adapter)
    return adapters.attach(model, cfg.lora, cfg.seed)


class Prepared(NamedTuple):
    """What later work needs of the pairs: the rows of both splits; the reference's log-probs of the first to train on;
    the first held-out prompts; how many pairs were dropped for which reason."""

    train: PreferenceRows
    validation: PreferenceRows
    first: list[PairLogProbs]
    prompts: FirstPrompts
    dropped: dict[str, int]


def prepare(scored: Iterable[tuple[Pair, PairLogProbs | None]], terms: Contract, cfg: DPO, out: Work) -> Prepared:
    """The pairs whose completions fit whole into `max_length`, in one pass: of pairs and lists of tokens only few are
    held."""
    train, validation = PreferenceRows(), PreferenceRows()
    dropped = Dropped(out, "pairs", cfg.max_dropped, "dpo.max_dropped")
    first, prompts = list[PairLogProbs](), FirstPrompts(cfg.runtime.samples)
    for pair, known in scored:
        if not known:
            dropped.add(pair.id, "not scored by the reference")
            continue
        tokens = len(known.prompt_ids) + max(len(known.chosen_ids), len(known.rejected_ids))
        if tokens > cfg.max_length:
            dropped.add(pair.id, f"longer than dpo.max_length={cfg.max_length} tokens", tokens)
            continue
        refuse_other_tokens(pair, known, terms)
        row = trl_row(known, cfg.trainer.get("ld_alpha"))
        if pair.split == "validation":
            validation.add(pair.id, row)
            prompts.add(pair.prompt)
        else:
            train.add(pair.id, row)
            first += [known] if len(first) < PAIRS else []
    kept = len(train) + len(validation)
    told = dropped.settle(kept, len(train))
    return Prepared(train, validation, first, prompts, told)


def margins(trainer: StoredReferenceTrainer, cfg: DPO, held_out: list[PairLogProbs]) -> list[dict[str, Any]]:
    """The trained policy's reward margin of every held-out pair, in nats: beta times how much further the log-ratio
    of chosen is above the reference than that of rejected (TRL's rewards/margins, pair by pair)."""
    found = []
    trainer.model.eval()
    with rounded_once(trainer.args.device):
        for p, (chosen, rejected) in zip(held_out, trainer.log_probs(held_out), strict=True):
            ratios = sum(chosen) - sum(p.chosen_logps), sum(rejected) - sum(p.rejected_logps)
            found.append({"id": p.id, "margin": cfg.beta * (ratios[0] - ratios[1])})
    return found
