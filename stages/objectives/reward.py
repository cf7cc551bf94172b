"""A reward model: rows, TRL's RewardTrainer on token ids, model, and what its figures leave in doubt.

The log-odds that chosen is better than rejected are the difference of their rewards (Bradley & Terry 1952, Biometrika
39; as a loss, arXiv:2203.02155, Eq. 1).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutputWithPast
from trl import RewardTrainer

from stages.config.blocks.training import Reward
from stages.config.choices import Split
from stages.config.errors import UserError
from stages.evaluation.pairwise import Scored
from stages.models.contract import Contract
from stages.models.loading import create_reward_model
from stages.models.packing import ATTENTION, attention_name
from stages.models.rendering import ContractError
from stages.models.scoring import autocast, round_weights_once, tokenize_pair
from stages.store.numbers import signed
from stages.store.records import Example, Pair, PairLogProbs, stream
from stages.store.workspace import StageDir
from stages.training import adapters
from stages.training.fit import SplitRows, pack_if_possible
from stages.training.micro_batches import Batch, MicroBatches, select_row
from stages.training.token_rows import PreferenceRows, Row

EXTREMES = ("min_reward", "max_reward")
LENGTH_CORRELATION = 0.5  # the correlation of reward and length from which on it is said


class PairwiseRewardTrainer(MicroBatches, RewardTrainer):
    """`train_dataset` and `eval_dataset` hold rows of `trl_row`."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        """TRL leaves rows out here and says nothing: all that it is given fit."""
        return dataset

    @property
    def is_padded(self) -> bool:
        return attention_name(self.model) != ATTENTION

    def count_tokens(self, row: Row) -> int:
        chosen, rejected = row["chosen_ids"], row["rejected_ids"]
        if self.is_padded:
            return 2 * max(len(chosen), len(rejected))
        return len(chosen) + len(rejected) - count_shared_prefix(chosen, rejected)

    def count_items(self, metric: str, batch: Batch) -> int:
        return len(batch["input_ids"]) // 2

    def row_outputs(self, model: torch.nn.Module, rows: list[Row]) -> list[SequenceClassifierOutputWithPast]:
        batch = self._prepare_inputs(self.data_collator(rows))
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
        return [select_row(output, ([i, len(rows) + i],)) for i in range(len(rows))]

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's, without the extremes of the rewards: their mean over micro-batches would depend on the division."""
        loss = super().compute_loss(*args, **kwargs)
        for name in EXTREMES:
            del self._metrics["train" if self.model.training else "eval"][name]
        return loss

    @torch.no_grad()
    def rewards(self, rows: Sequence[Row]) -> list[tuple[float, float]]:
        """The rewards of chosen and of rejected for every row, many to a forward."""
        by_row, device = dict[int, tuple[float, float]](), self.args.device
        self.model.eval()
        with round_weights_once(device), autocast(self.cfg.precision, device):
            for part in self.evaluation_batches([*rows]):
                for row, output in zip(part, self.row_outputs(self.model, part), strict=True):
                    chosen, rejected = output.logits[:, 0].tolist()
                    by_row[id(row)] = chosen, rejected
        return [by_row[id(row)] for row in rows]


def count_shared_prefix(chosen_ids: list[int], rejected_ids: list[int]) -> int:
    """Return the number of tokens that two sequences begin with alike: what `models/packing.py` reads once."""
    return next(
        (i for i, (x, y) in enumerate(zip(chosen_ids, rejected_ids, strict=False)) if x != y),
        min(len(chosen_ids), len(rejected_ids)),
    )


def trl_row(pair: PairLogProbs, margin: float | None) -> Row:
    """The token ids of prompt and completion; and by how much more the rewards are to differ, where that is asked. TRL
    would take a column `margin` wherever there is one."""
    row: Row = {"chosen_ids": pair.prompt_ids + pair.chosen_ids, "rejected_ids": pair.prompt_ids + pair.rejected_ids}
    return row if margin is None else {**row, "margin": margin}


def read_rows(
    pairs: Iterable[Pair], contract: Contract, cfg: Reward, out: StageDir, context: int | None = None
) -> SplitRows[PreferenceRows]:
    """Tokenise the pairs that fit whole into `max_length` and the model's context, as rows of `trl_row`."""
    longest, reason_too_long = cfg.longest(context)
    rows = SplitRows(PreferenceRows, cfg, out)
    for pair in pairs:
        if cfg.margin and pair.margin is None:
            raise UserError(
                f"reward.margin=true: pair {pair.id} has no margin, as {pair.labeler} says which answer is better and "
                "not by how much. Set it to false."
            )
        try:
            row = trl_row(tokenize_pair(pair, contract), pair.margin if cfg.margin else None)
        except ContractError as reason:
            rows.left_out.add(pair.id, reason)
            continue
        if (tokens := max(len(row["chosen_ids"]), len(row["rejected_ids"]))) > longest:
            rows.left_out.add(pair.id, reason_too_long, tokens)
            continue
        rows.add(pair.split, pair.id, row, pair.prompt)
    rows.settle()
    return rows


def trainable_model(
    policy: Path, contract: Contract, cfg: Reward, device: torch.device, out: StageDir
) -> PreTrainedModel | PeftModel:
    """Return the SFT model with a head for the reward, or an adapter over it beside the head."""
    model = create_reward_model(policy, cfg.held, device, contract.tokenizer.pad_token_id, cfg.seed)
    return adapters.apply_adapter(pack_if_possible(model, cfg, out), cfg, "SEQ_CLS")


def score_held_out(
    inputs: dict[str, Path], held_out: PreferenceRows, rewards: Iterable[tuple[float, float]]
) -> list[Scored]:
    """Return the held-out pairs with their rewards, lengths, and the source of their prompts."""
    pairs = stream(inputs["pairs"] / "pairs.parquet", Pair)
    prompts = {pair.id: pair.prompt_id for pair in pairs if pair.split == Split.validation}
    sources = {e.id: e.source for e in stream(inputs["judged"] / "prompts.parquet", Example)}
    lengths = zip(held_out.tokens("chosen_ids"), held_out.tokens("rejected_ids"), strict=True)
    rows = zip(held_out.ids, rewards, lengths, strict=True)
    return [Scored(pair, sources[prompts[pair]], *both, *tokens) for pair, both, tokens in rows]


def held_out_warnings(figures: dict[str, Any], pairs: int, key: str = "pairs") -> list[str]:
    """Warnings of what the held-out pairs do not show, or show that the model goes by. `key`: the pairs' block."""
    if not figures:
        problem = "no pair is held out: nothing says whether the reward model is right."
        return [f"{problem} Raise {key}.validation_fraction."]
    warnings, (mean, low, high) = [], figures["accuracy"].values()
    if low <= 0.5:
        warnings.append(
            f"right in {mean:.1%} ({low:.1%} to {high:.1%}) of {pairs} held-out pairs: no better than a coin, as far "
            "as they tell. More pairs, or a higher reward.learning_rate."
        )
    if abs(figures["length_correlation"] or 0.0) >= LENGTH_CORRELATION:
        length_matched, correlation = "no held-out pair tells whether by more than that", figures["length_correlation"]
        if matched_accuracy := figures.get("length_matched"):
            length_matched = (
                f"as if chosen were as often longer as shorter, it is right in {matched_accuracy['mean']:.1%}"
            )
        warnings.append(
            f"the reward goes with the length of an answer (correlation {signed(correlation, '{:+z.2f}')}); "
            f"{length_matched}. {key}.max_length_ratio=1.2 takes pairs of about equal length."
        )
    return warnings
