"""A trainer on completions with advantages: a group is packed as one row, in which its prompt is read once."""

from abc import abstractmethod
from collections.abc import Sequence
from functools import wraps
from pathlib import Path
from statistics import fmean
from types import MethodType
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object
from transformers import PreTrainedModel
from trl.trainer import add_fused_lm_head

from stages.config.blocks.draws import Drawing
from stages.models import lm_head
from stages.models.loading import load_model
from stages.models.packing import pack_groups, read_groups, send_batch
from stages.models.scoring import autocast
from stages.training.drawing_trainer import DrawingTrainer
from stages.training.micro_batches import Batch
from stages.training.replay import REPLAYED, as_draw
from stages.training.rollouts import Rollout
from stages.training.token_rows import Row


class Scored(NamedTuple):
    """A completion, its advantage, and each of its tokens' share in the step's loss."""

    draw: Rollout
    advantage: float
    share: float

    @property
    def token_ids(self) -> list[int]:
        return self.draw.token_ids or []


def add_head_at_one(model: PreTrainedModel, plain_forward: Any) -> None:
    """Let the model score replayed rows at temperature 1, as SFT does, and draws at theirs."""
    of_draws = model.forward.__func__
    model.forward = plain_forward
    add_fused_lm_head(model)
    of_replayed = model.forward.__func__

    @wraps(of_draws)
    def forward(self: PreTrainedModel, *args: Any, replayed: bool = False, **kwargs: Any) -> Any:
        of_rows = of_replayed if replayed else of_draws
        return of_rows(self, *args, **kwargs)

    # as a method, a copy of the model has it bound to the copy
    model.forward = MethodType(forward, model)


def divide_group(row: Row, budget: int | None, is_padded: bool = False) -> list[Row]:
    """Return a group in parts of at most `budget` tokens (None: any number), or of one completion, as all parts are if
    they will be padded. Every part has the prompt. Together they have the group's gradient, as advantages and shares
    are those of the step."""
    parts = list[Row]()
    room = 0
    for completion in row["completions"]:
        if not parts or (budget and (is_padded or len(completion.token_ids) > room)):
            parts.append({**row, "completions": []})
            room = (budget or 0) - len(row["prompt_ids"])
        parts[-1]["completions"].append(completion)
        room -= len(completion.token_ids)
    return parts


def count_group_tokens(row: Row) -> int:
    """Return the number of tokens that the model reads of a group: of each completion all except the last."""
    completions = [len(completion.token_ids) - 1 for completion in row["completions"]]
    return len(row["prompt_ids"]) + sum(completions)


def count_trained_tokens(rows: Sequence[Row]) -> int:
    """Return the number of tokens of all completions of some rows."""
    completions = [completion for row in rows for completion in row["completions"]]
    return sum(len(completion.token_ids) for completion in completions)


def reading_options(inputs: Batch) -> dict[str, Any]:
    """Return the arguments with which a model reads a batch of groups."""
    options = {name: inputs[name] for name in ("input_ids", "layout", "scored", "shift_labels")}
    return options | {"use_cache": False, "fused_lm_head": True}


class CompletionTrainer(DrawingTrainer):
    """A trainer on completions with advantages and shares: a row is a prompt with the `Scored` ones of its group."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.loss_is_scaled_for_ga = True  # shares are those of the whole step

    @classmethod
    def load_start(cls, policy: Path, cfg: Drawing, device: torch.device) -> PreTrainedModel:
        model = load_model(policy, cfg.start_weights, device)
        read_groups(model)
        lm_head.install_cpu_head()
        plain_forward = model.forward
        add_fused_lm_head(model, cfg.temperature, outputs=("log_probs", "entropy"))
        if cfg.replay and cfg.temperature != 1:
            add_head_at_one(model, plain_forward)
        return model

    @property
    def reads_old_log_probs(self) -> bool:
        return True

    def count_tokens(self, row: Row) -> int:
        if self.is_padded:
            longest = max(len(completion.token_ids) for completion in row["completions"])
            return len(row["completions"]) * (len(row["prompt_ids"]) + longest - 1)
        return count_group_tokens(row)

    def collate(self, rows: list[Row]) -> Batch:
        """Return groups as one row on the CPU, with the advantage and the share of every completion token, the index
        of its completion, and the sampler's log-prob of every completion."""
        groups = list[tuple[list[int], list[list[int]]]]()
        completions = list[Scored]()
        for row in rows:
            groups.append((row["prompt_ids"], [c.token_ids for c in row["completions"]]))
            completions += row["completions"]
        lengths = torch.tensor([len(c.token_ids) for c in completions])
        advantages = torch.tensor([c.advantage for c in completions])
        shares = torch.tensor([c.share for c in completions])
        log_probs = torch.tensor([c.draw.logprob or 0.0 for c in completions])
        batch = pack_groups(groups)
        if all(c.draw.old_logprobs for c in completions):
            older = [value for c in completions for value in c.draw.old_logprobs or ()]
            batch["old_log_probs"] = torch.tensor(older)
        if rows[0].get(REPLAYED):
            batch[REPLAYED] = True
        return batch | {
            "advantages": advantages.repeat_interleave(lengths),
            "shares": shares.repeat_interleave(lengths),
            "completion": torch.arange(len(lengths)).repeat_interleave(lengths),
            "sampled": torch.where(shares > 0, log_probs, 0.0),
        }

    @torch.no_grad()
    def remember_log_probs(self, groups: Sequence[list[Rollout]]) -> None:
        """Add to completions the log-probs of their tokens by the weights of now."""
        rows = list[Row]()
        for group in groups:
            completions = [Scored(draw, 0.0, 1.0) for draw in group]
            prompt_ids = self.rollouts.token_ids[group[0].prompt_id]
            rows.append({"prompt_ids": prompt_ids, "completions": completions})
        for part in self.micro_batches(rows):
            batch = send_batch(self.collate(part), self.args.device)
            with autocast(self.cfg.precision, self.args.device):
                log_probs = self.model(**reading_options(batch)).log_probs[0].float()
            completions = [each for row in part for each in row["completions"]]
            lengths = [len(each.token_ids) for each in completions]
            for each, values in zip(completions, log_probs.split(lengths), strict=True):
                each.draw.old_logprobs = values.tolist()

    def finish_rows(self, rows: list[Row], of_step: list[Row]) -> list[Row]:
        """Return the rows of this process, and behind them its part of the step's replayed rows."""
        replayed = self.replayed_rows(of_step)
        if replayed:
            tokens = count_trained_tokens(replayed)
            share = tokens / (tokens + count_trained_tokens(of_step))
            self._metrics["train"]["replayed"] = [share]
        return rows + self.rows_here(replayed)

    def replayed_rows(self, live: list[Row]) -> list[Row]:
        """Return the demonstrations that are trained beside a step's groups. Their tokens have the weight of the groups'
        on average."""
        if not self.replay:
            return []
        shares = list[float]()
        for row in live:
            for completion in row["completions"]:
                shares += [completion.share] * len(completion.token_ids)
        rows = list[Row]()
        for row in self.replay.rows(self.state.global_step, len(shares)):
            completion = Scored(as_draw(row["completion_ids"]), 1.0, fmean(shares))
            prompt_ids = row["prompt_ids"]
            rows.append({REPLAYED: True, "prompt_ids": prompt_ids, "completions": [completion]})
        return rows

    def micro_batches(self, rows: list[Row]) -> list[list[Row]]:
        """Return the groups in micro-batches, and then the replayed rows, whose loss is another."""
        replayed = [row for row in rows if row.get(REPLAYED)]
        batches = self.divide_evenly([row for row in rows if not row.get(REPLAYED)])
        if replayed:
            batches += self.divide_evenly(replayed)
        return batches

    def divide_evenly(self, rows: list[Row]) -> list[list[Row]]:
        """Divide rows by the budget, which may have fallen by now, into equally many parts in each process."""
        parts = list[Row]()
        for row in rows:
            parts += divide_group(row, self.token_budget, self.is_padded)
        most = max(gather_object([len(parts)]))
        idle = [self.idle_row(rows[0])] * (most - len(parts))
        return super().micro_batches(parts + idle)

    @abstractmethod
    def loss_of_draws(self, model: Any, inputs: Batch) -> torch.Tensor:
        """Return the loss of some groups, times the number of processes, which average their gradients."""

    def compute_loss(self, model: Any, inputs: Batch, **_: Any) -> Any:
        """Return the loss of a micro-batch: of draws, or the cross-entropy of replayed rows."""
        if REPLAYED not in inputs:
            return self.loss_of_draws(model, inputs)
        options = reading_options(inputs)
        if self.cfg.temperature != 1:
            options[REPLAYED] = True
        log_probs = model(**options).log_probs[0]
        counts = inputs["shares"] > 0
        self.note("replay_loss", -torch.where(counts, log_probs, 0).sum(), counts.sum())
        return -(inputs["shares"] * log_probs).sum() * self.args.world_size

    def idle_row(self, row: Row) -> Row:
        return {**row, "completions": [row["completions"][0]._replace(share=0.0)]}

    def count_rows(self, rows: list[Row]) -> None:
        self._total_train_tokens += sum(map(count_group_tokens, rows))

    def is_divisible(self, rows: list[Row]) -> bool:
        return super().is_divisible(rows) or len(rows[0]["completions"]) > 1

    def note_draws(self, inputs: Batch, log_probs: torch.Tensor, entropy: torch.Tensor) -> None:
        """Note the policy's entropy, and how far its log-probs are from those of the sampler of the same weights, if both
        are at one temperature."""
        counts = inputs["shares"] > 0
        is_at_one_temperature = self.cfg.temperature == self.rollouts.logprob_temperature
        if is_at_one_temperature and not self.learns_from_older_draws:
            counted = torch.where(counts, log_probs, 0).float()
            sums = torch.zeros_like(inputs["sampled"]).index_add_(0, inputs["completion"], counted)
            self.note("sampler_gap", (sums - inputs["sampled"]).abs().sum(), counts.sum())
        self.note("entropy", torch.where(counts, entropy, 0).sum(), counts.sum())

    @torch.no_grad()
    def reference_log_probs(self, options: dict[str, Any]) -> torch.Tensor:
        """Return the log-probs under the SFT model."""
        with autocast(self.cfg.precision, self.args.device), self.reference_model() as reference:
            return reference(**options).log_probs[0]  # type: ignore[no-any-return]
