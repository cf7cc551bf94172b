"""Train a reward model: rows, TRL's RewardTrainer on token ids, the model, and warnings about its figures.

The difference of two rewards is the log-odds that chosen is better than rejected (Bradley & Terry 1952, Biometrika
39). The loss is -log σ(r(x, y_w) - r(x, y_l)) (arXiv:2203.02155, Eq. 1)."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from trl import RewardTrainer

from stages.config.blocks.training import Reward
from stages.config.choices import Split
from stages.config.errors import UserError
from stages.evaluation.learnt_scores import Scored
from stages.models.contract import Contract
from stages.models.loading import create_reward_model
from stages.models.packing import send_batch
from stages.models.rendering import ContractError
from stages.models.scoring import (
    autocast,
    batches_by_length,
    round_weights_once,
    tokenize_pair,
)
from stages.store.numbers import signed
from stages.store.records import Example, Pair, PairLogProbs, stream
from stages.store.text_units import count_shared_prefix
from stages.store.thoughts import answer_behind, never_ends
from stages.store.workspace import StageDir
from stages.training.adapters import AnyModel, apply_adapter
from stages.training.fit import SplitRows, pack_if_possible
from stages.training.micro_batches import OTHERS, Batch, MicroBatches
from stages.training.token_rows import PreferenceRows, Row

# a correlation of reward and length of at least this size causes a warning
LENGTH_CORRELATION = 0.5


class PairwiseRewardTrainer(MicroBatches, RewardTrainer):
    """TRL's RewardTrainer on rows of `trl_row`."""

    def count_tokens(self, row: Row) -> int:
        chosen = row["chosen_ids"]
        rejected = row["rejected_ids"]
        if self.is_padded:
            return 2 * max(len(chosen), len(rejected))
        # `models/packing.py` shares it
        return len(chosen) + len(rejected) - count_shared_prefix(chosen, rejected)

    def count_terms(self, batch: Batch) -> dict[str, int | torch.Tensor]:
        return {OTHERS: len(batch["input_ids"]) // 2}

    def summarize(self, mode: str) -> dict[str, float]:
        """Return TRL's metrics. The lowest and the highest reward are those of all micro-batches."""
        means = super().summarize(mode)
        noted = self._metrics[mode]
        if "min_reward" in noted:
            means["min_reward"] = min(noted["min_reward"])
            means["max_reward"] = max(noted["max_reward"])
        return means

    @torch.no_grad()
    def rewards(self, rows: Sequence[Row]) -> list[tuple[float, float]]:
        """Return the rewards of chosen and rejected for every row, computed in batches."""
        device = self.args.device
        lengths = [self.count_tokens(row) for row in rows]
        scores = dict[int, tuple[float, float]]()
        self.model.eval()
        with round_weights_once(device), autocast(self.cfg.precision, device):
            for places in batches_by_length(lengths, self.token_budget, device):
                batch = send_batch(self.collate([rows[i] for i in places]), device)
                batch.pop("margin", None)
                chosen, rejected = self.model(**batch, use_cache=False).logits[:, 0].chunk(2)
                pairs = zip(chosen.tolist(), rejected.tolist(), strict=True)
                scores |= zip(places, pairs, strict=True)
        return [scores[i] for i in range(len(rows))]


def trl_row(pair: PairLogProbs, margin: float | None) -> Row:
    """Return the token ids of both sides. `margin`: the least difference of their rewards (TRL's column)."""
    row: Row = {
        "chosen_ids": pair.prompt_ids + pair.chosen_ids,
        "rejected_ids": pair.prompt_ids + pair.rejected_ids,
    }
    if margin is not None:
        row["margin"] = margin
    return row


def without_thoughts(pair: Pair, contract: Contract) -> Pair:
    """Return a pair whose completions are the answers behind their thoughts: the labeler scores these alone. A pair of
    several turns is unchanged."""
    if pair.parts_early:
        return pair
    changed = dict[str, Any]()
    for side, ids in (("chosen", pair.chosen_token_ids), ("rejected", pair.rejected_token_ids)):
        [turn] = getattr(pair, side)
        text = turn["content"]
        is_open = never_ends(text, None if ids is None else contract.thought_end)
        answer = contract.with_empty_thought("" if is_open else answer_behind(text))
        if answer != text:
            changed |= {side: [turn | {"content": answer}], f"{side}_token_ids": None}
    return replace(pair, **changed)


def read_rows(
    pairs: Iterable[Pair],
    contract: Contract,
    cfg: Reward,
    out: StageDir,
    context: int | None = None,
) -> SplitRows[PreferenceRows]:
    """Tokenise the pairs that fit into `max_length` and the model's context, as rows of `trl_row`."""
    rows = SplitRows(PreferenceRows, cfg, out, context)
    for pair in pairs:
        if cfg.margin and pair.margin is None:
            problem = f"pair {pair.id} has no margin, because {pair.labeler} gives no strength of its preferences"
            raise UserError(f"reward.margin=true: {problem}. Set reward.margin=false.")
        try:
            tokens = tokenize_pair(without_thoughts(pair, contract), contract)
            row = trl_row(tokens, pair.margin if cfg.margin else None)
        except ContractError as reason:
            rows.left_out.add(pair.id, reason)
            continue
        length = max(len(row["chosen_ids"]), len(row["rejected_ids"]))
        if rows.fits(pair.id, length):
            rows.add(pair.split, pair.id, row, pair.prompt)
    rows.settle()
    return rows


def trainable_model(
    policy: Path, contract: Contract, cfg: Reward, device: torch.device, out: StageDir
) -> AnyModel:
    """Return the SFT model with a reward head, or with an adapter and the head to train."""
    model = create_reward_model(
        policy, cfg.start_weights, device, contract.tokenizer.pad_token_id, cfg.seed
    )
    return apply_adapter(pack_if_possible(model, cfg, out), cfg, "SEQ_CLS")


def score_held_out(
    inputs: dict[str, Path], rows: PreferenceRows, rewards: list[tuple[float, float]]
) -> list[Scored]:
    """Return the held-out pairs with their rewards, lengths, and their prompts' ids and sources."""
    pairs = stream(inputs["pairs"] / "pairs.parquet", Pair)
    prompts = {pair.id: pair.prompt_id for pair in pairs if pair.split == Split.validation}
    sources = {e.id: e.source for e in stream(inputs["judged"] / "prompts.parquet", Example)}
    lengths = zip(rows.tokens("chosen_ids"), rows.tokens("rejected_ids"), strict=True)
    scores = zip(rows.ids, rewards, lengths, strict=True)
    return [
        Scored(pair, prompts[pair], sources[prompts[pair]], *values, *tokens)
        for pair, values, tokens in scores
    ]


def held_out_warnings(figures: dict[str, Any], pairs: int, key: str = "pairs") -> list[str]:
    """Return warnings if held-out pairs do not show that the model is right, or show that it prefers long answers."""
    if not figures:
        return [
            f"no pair is held out, so the reward model's accuracy is unknown. Raise {key}.validation_fraction."
        ]
    warnings = list[str]()
    mean, low, high = figures["accuracy"].values()
    if low <= 0.5:
        accuracy = f"the reward model is right in {mean:.1%} ({low:.1%} to {high:.1%}) of {pairs} held-out pairs"
        problem = f"{accuracy}, which is not significantly better than random"
        warnings.append(f"{problem}. Add pairs, or raise reward.learning_rate.")
    if abs(figures["length_correlation"] or 0.0) >= LENGTH_CORRELATION:
        matched = figures.get("length_matched")
        accuracy = f"is {matched['mean']:.1%}" if matched else "cannot be measured here"
        warnings.append(
            f"the reward correlates with an answer's length ({signed(figures['length_correlation'], '{:+z.2f}')}). "
            f"The accuracy if chosen were longer in half of the pairs {accuracy}. Set {key}.max_length_ratio=1.2."
        )
    return warnings
