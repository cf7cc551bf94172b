"""`label=reward_model`: a sequence-classification model with one output scores candidates.

A reward is a number without a scale. So the score of a candidate is where its reward stands among those of all
candidates: a quantile, and a margin is a difference of two.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.config.blocks.labels import Label
from stages.config.choices import Precision
from stages.config.errors import UserError
from stages.labelers.labeler import Labeler, Pool
from stages.models import hub
from stages.models.contract import Contract, load_contract
from stages.models.loading import (
    load_reward_model,
    load_tokenizer,
    read_context_length,
    resolve_device,
    sampling_weights,
)
from stages.models.rendering import ContractError, Conversation, tokenize_conversations, validate_chat_template
from stages.models.scoring import autocast, ids_if_unchanged, round_weights_once
from stages.sandbox.jinja_process import TemplateFault
from stages.store.records import Candidate, Example, Judgement
from stages.store.shards import in_shards
from stages.store.source_files import locate
from stages.store.workspace import StageDir

Readable = tuple[Candidate, list[int]]


class RewardModel(Labeler):
    """Scores every candidate by one model, the rewards of which are kept over a kill."""

    name = "reward_model"
    learnt = True

    def __init__(self, cfg: Label, out: StageDir):
        self.cfg, self.out, self.folder, self.model_figures = cfg.reward_model, out, Path(), dict[str, Any]()
        if path := self.cfg.path:
            local = locate(path, "label.reward_model.path")
            self.folder = hub.download_model(path, self.cfg.revision) if local is None else local

    @classmethod
    def of(cls, cfg: Label, out: StageDir) -> "RewardModel":
        return cls(cfg, out)

    def pool(self, inputs: dict[str, Path]) -> Pool:
        if self.cfg.path is None:
            self.folder = inputs["reward"] / "model"
        return super().pool(inputs)

    def figures(self) -> dict[str, Any]:
        """The device, and the model's size where one was loaded: what the time depended on."""
        return {"device": str(resolve_device(self.cfg.runtime.device)), **self.model_figures}

    def judge(self, prompt: Example, candidates: list[Candidate]) -> Iterable[Judgement]:
        return self.judge_all(Pool([prompt], candidates))

    def judge_all(self, pool: Pool) -> Iterator[Judgement]:
        """Judgements with the reward in `raw`. A candidate that the model cannot read is missing."""
        reading = Reading(self.folder)
        prompts = {prompt.id: prompt for prompt in pool.prompts}

        def score_shard(waiting: Sequence[Candidate]) -> Iterator[tuple[Candidate, list[Judgement]]]:
            readable = list[Readable]()
            for c in waiting:
                try:
                    readable.append((c, reading.ids(prompts[c.prompt_id], c)))
                except ContractError as reason:
                    yield c, [Judgement(c.prompt_id, self.name, c.candidate_id, error=str(reason))]
            for c, reward in self.rewards(readable, reading.pad_id):
                yield c, [Judgement(c.prompt_id, self.name, c.candidate_id, raw=repr(reward))]

        size, name = self.cfg.runtime.shard_size, f"label {self.name}"
        key = lambda c: c.candidate_id
        judgements = [*in_shards([*pool.candidates], key, score_shard, Judgement, key, size, name, self.out)]
        rewards = sorted(float(j.raw) for j in judgements if j.raw is not None)
        for j in judgements:
            if j.raw is not None:
                j.score = quantile(float(j.raw), rewards)
        yield from judgements

    def rewards(self, readable: Sequence[Readable], pad_id: int) -> Iterator[tuple[Candidate, float]]:
        """Yield rewards, the longest candidates first, batched alike whatever the order of the pool."""
        if not readable:
            return
        precision, device = self.cfg.precision or Precision.fp32, resolve_device(self.cfg.runtime.device)
        model = load_reward_model(self.folder, sampling_weights(precision), device)
        model.config.get_text_config().pad_token_id = pad_id
        self.model_figures["parameters"] = model.num_parameters()
        ordered = sorted(readable, key=lambda each: (-len(each[1]), each[0].candidate_id))
        batches = range(0, len(ordered), self.cfg.runtime.batch_size)
        with round_weights_once(device):
            for part in (ordered[start : start + self.cfg.runtime.batch_size] for start in batches):
                rewards = predict_rewards(model, [ids for _, ids in part], pad_id, precision)
                yield from zip((c for c, _ in part), rewards, strict=True)


class Reading:
    """How a model is shown a prompt with an answer: under our contract where it has one, else by its chat template."""

    def __init__(self, folder: Path):
        self.contract: Contract | None = load_contract(folder) if (folder / "contract.json").exists() else None
        self.tokenizer: PreTrainedTokenizerBase = self.contract.tokenizer if self.contract else load_tokenizer(folder)
        if not self.tokenizer.chat_template:
            raise UserError(
                f"{folder}: its tokenizer has no chat template, so nothing says how it reads a prompt with an answer. "
                "Save the one that it was trained with into tokenizer_config.json."
            )
        validate_chat_template(self.tokenizer, str(folder))
        pad, end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        self.pad_id = int(end if pad is None else pad)
        self.context_length = read_context_length(folder)

    def ids(self, prompt: Example, candidate: Candidate) -> list[int]:
        """Token ids of both; what was drawn under the same contract is not tokenised anew.

        Raises:
            ContractError: where they cannot be rendered, or are longer than the model reads.
        """
        answer = [{"role": "assistant", "content": candidate.text}]
        if contract := self.contract:
            answer_ids = ids_if_unchanged(candidate.token_ids, candidate.tokenizer, candidate.text, contract)
            if answer_ids is None:
                _, answer_ids = contract.completion(prompt.messages, answer, candidate.finish_reason == "stop")
            ids = contract.prompt(prompt.messages) + answer_ids
        else:
            try:
                [(ids, _)] = tokenize_conversations(self.tokenizer, [Conversation([*prompt.messages, *answer])])
            except TemplateFault as error:
                raise ContractError(f"the reward model's chat template refuses it: {error}") from error
        if self.context_length and len(ids) > self.context_length:
            raise ContractError(f"longer than the {self.context_length} tokens that the reward model reads")
        return ids


@torch.no_grad()
def predict_rewards(
    model: PreTrainedModel, rows: Sequence[list[int]], pad_id: int, precision: Precision
) -> list[float]:
    """The reward of every row, from one batch that is padded on the right."""
    width = max(map(len, rows))
    ids, mask = torch.full((len(rows), width), pad_id), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
    with autocast(precision, model.device):
        logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits
    return logits[:, 0].float().tolist()  # type: ignore[no-any-return]


def quantile(reward: float, ordered: Sequence[float]) -> float:
    """The share of all rewards that lie below, half of those that are equal counted: from above 0 to below 1."""
    return (bisect_left(ordered, reward) + bisect_right(ordered, reward)) / (2 * len(ordered))
