"""Stage `reward`: a model that scores a completion of a prompt, from the SFT model by TRL's RewardTrainer."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from transformers import PreTrainedModel
from trl import RewardConfig

from stages.config.blocks.training import Reward
from stages.config.choices import Adapter, Forward
from stages.config.errors import UserError
from stages.evaluation import pairwise
from stages.evaluation.pairwise import Scored
from stages.models import contract, model_card
from stages.models.contract import Contract
from stages.models.loading import begin_reward_model, context_of
from stages.models.packing import pack_pairs
from stages.models.pair_tokens import tokenized
from stages.models.rendering import ContractError
from stages.objectives.reward import PairwiseRewardTrainer, trl_row
from stages.store.dropped import Dropped
from stages.store.numbers import signed
from stages.store.records import Example, Pair, stream
from stages.store.sealed_json import note
from stages.store.workspace import SCRATCH, Work, last_of, read_curves
from stages.training import adapters, budget
from stages.training.arguments import arguments
from stages.training.batches import Turns, each_alike
from stages.training.pairs import trained_pairs
from stages.training.preference_rows import PreferenceRows
from stages.training.publish import publish, save_trained
from stages.training.run import train
from stages.training.validation import Course, risen

SHOWN = ("loss", "eval_loss", "eval_margin")  # of the curves' last points
BY_LENGTH = 0.5  # the correlation of reward and length from which on it is said


def run(cfg: Reward, inputs: dict[str, Path], out: Work) -> dict[str, Any]:
    """Publish `model/` for sequence classification under the policy's contract, `adapter/` where there is one, and
    `held_out.json` with the rewards of every held-out pair.

    Raises:
        UserError: where too many pairs had to be dropped, a margin is asked for and a pair has none, or training
            diverged.
    """
    policy = inputs["policy"] / "model"
    terms = contract.load(policy)
    given = prepare(stream(inputs["pairs"] / "pairs.parquet", Pair), terms, cfg, out, context_of(policy))
    pairs, held_out = given.train, given.validation
    turns = Turns(pairs.ids, cfg.batch_size, cfg.seed, "reward")

    args = arguments(RewardConfig, cfg, out)
    cfg = budget.fitted(cfg, args, policy, out)
    evaluated = each_alike([*range(len(held_out))], args.world_size)
    trainer = PairwiseRewardTrainer(
        trainable_model(policy, terms, cfg, args.device, out),
        cfg=cfg,
        out=out,
        turns=turns,
        args=args,
        train_dataset=pairs.dataset,
        eval_dataset=held_out.dataset.select(evaluated) if evaluated else None,
        processing_class=terms.tokenizer,
    )
    train(trainer, cfg, out)
    rewards = trainer.rewards(held_out.rows)
    save_trained(trainer, out / SCRATCH / "trained")
    if not out.main:
        return {}
    pad, cpu = terms.tokenizer.pad_token_id, torch.device("cpu")
    publish(
        out / SCRATCH / "trained",
        cfg,
        out,
        policy,
        lambda weights: begin_reward_model(policy, weights, cpu, pad, cfg.seed),
    )
    terms.save(out / "model")

    sources = {p.id: p.source for p in stream(inputs["judged"] / "prompts.parquet", Example)}
    lengths = zip(held_out.tokens("chosen_ids"), held_out.tokens("rejected_ids"), strict=True)
    scored = [
        Scored(pair, sources[prompt], *both, *tokens)
        for pair, prompt, both, tokens in zip(held_out.ids, given.prompts, rewards, lengths, strict=True)
    ]
    note(out / "held_out.json", [asdict(pair) for pair in scored])
    found = pairwise.figures(scored) if scored else {}
    figures = last_of(read_curves(out.path), *SHOWN)
    steps = trainer.state.global_step
    doubted = doubts(found, len(scored), "reward.pairs" if cfg.source.path else "pairs")
    for warning in (*doubted, risen(Course(trainer), len(scored), cfg), turns.told(steps, "pairs")):
        if warning:
            out.warn(warning)
    summary = f"{len(pairs)} pairs × {cfg.epochs:g} epochs, {steps} steps"
    if found:
        mean, low, high = found["accuracy"].values()
        summary += f"; right in {mean:.1%} ({low:.1%} to {high:.1%}) of {len(scored)} held-out pairs"
    model_card.write(out / "model", "reward", cfg, inputs, figures | ({"held-out accuracy": mean} if found else {}))
    return {
        **trained_pairs(trainer, turns, pairs.tokens("chosen_ids", "rejected_ids"), len(held_out), given.dropped),
        **figures,
        **found,
        "summary": summary,
    }


def trainable_model(
    policy: Path, terms: Contract, cfg: Reward, device: torch.device, out: Work
) -> PreTrainedModel | PeftModel:
    """The SFT model with a head for the reward, or an adapter over it beside the head."""
    model = begin_reward_model(policy, cfg.held, device, terms.tokenizer.pad_token_id, cfg.seed)
    if cfg.forward is Forward.shared_prefix and not pack_pairs(model):
        out.warn("this model's attention cannot be packed: pairs are padded, and every prompt is read twice.")
    return model if cfg.adapter is Adapter.none else adapters.attach(model, cfg.lora, cfg.seed, "SEQ_CLS")


class Prepared(NamedTuple):
    """What later work needs of the pairs: the rows of both splits, the prompt of each that is held out, and how many
    pairs were dropped for which reason."""

    train: PreferenceRows
    validation: PreferenceRows
    prompts: list[str]
    dropped: dict[str, int]


def prepare(pairs: Iterable[Pair], terms: Contract, cfg: Reward, out: Work, context: int | None = None) -> Prepared:
    """Tokenise the pairs that fit whole into `max_length` and the model's context, in one pass: of pairs and lists of
    tokens only few are held."""
    longest, reason_too_long = cfg.longest(context)
    splits, prompts = {"train": PreferenceRows(), "validation": PreferenceRows()}, list[str]()
    dropped = Dropped(out, "pairs", cfg.max_dropped, "reward.max_dropped")
    for pair in pairs:
        if cfg.margin and pair.margin is None:
            raise UserError(
                f"reward.margin=true: pair {pair.id} has no margin, as {pair.labeler} says which answer is better and "
                "not by how much. Set it to false."
            )
        try:
            row = trl_row(tokenized(pair, terms), pair.margin if cfg.margin else None)
        except ContractError as reason:
            dropped.add(pair.id, reason)
            continue
        if (tokens := max(len(row["chosen_ids"]), len(row["rejected_ids"]))) > longest:
            dropped.add(pair.id, reason_too_long, tokens)
            continue
        splits[pair.split].add(pair.id, row)
        prompts += [pair.prompt_id] if pair.split == "validation" else []
    train, validation = splits.values()
    kept = len(train) + len(validation)
    told = dropped.settle(kept, len(train))
    return Prepared(train, validation, prompts, told)


def doubts(found: dict[str, Any], pairs: int, key: str = "pairs") -> list[str]:
    """What the held-out pairs do not show, or show that the model goes by. `key`: the block that made the pairs."""
    if not found:
        return [
            f"no pair is held out: nothing says whether the reward model is right. Raise {key}.validation_fraction."
        ]
    told, (mean, low, high) = [], found["accuracy"].values()
    if low <= 0.5:
        told.append(
            f"right in {mean:.1%} ({low:.1%} to {high:.1%}) of {pairs} held-out pairs: no better than a coin, as far "
            "as they tell. More pairs, or a higher reward.learning_rate."
        )
    if abs(found["length_correlation"] or 0.0) >= BY_LENGTH:
        matched, along = "no held-out pair tells whether by more than that", found["length_correlation"]
        if both := found.get("length_matched"):
            matched = f"as if chosen were as often longer as shorter, it is right in {both['mean']:.1%}"
        told.append(
            f"the reward goes with the length of an answer (correlation {signed(along, '{:+z.2f}')}); "
            f"{matched}. {key}.max_length_ratio=1.2 takes pairs of about equal length."
        )
    return told
