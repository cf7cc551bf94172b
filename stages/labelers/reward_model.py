"""`label=reward_model`: score candidates by a sequence-classification model with one output.

A reward is known up to a constant of its prompt, and has no fixed scale. So a score is the quantile of a reward less
its prompt's mean, among those of all candidates, and a margin is a difference of two quantiles."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from stages.config.blocks.labels import RewardModel
from stages.config.choices import Precision
from stages.config.errors import UserError
from stages.labelers.labeler import Labeler, Pool, with_quantiles
from stages.models import hub, loading
from stages.models.contract import Contract, load_contract
from stages.models.rendering import ContractError, render, token_ids, validate_chat_template
from stages.models.scoring import (
    autocast,
    batches_by_length,
    ids_if_unchanged,
    pad_completions,
    round_weights_once,
)
from stages.store.blocks import cut_blocks
from stages.store.records import Candidate, Example, Judgement
from stages.store.shards import ShardedWork
from stages.store.source_files import locate
from stages.store.templates import TemplateFault
from stages.store.workspace import StageDir

Readable = tuple[Candidate, list[int]]  # a candidate with the token ids of its prompt and answer


class RewardModelLabeler(Labeler):
    """Scores every candidate by a reward model. Rewards are saved in shards, so that a killed run resumes."""

    name = "reward_model"
    learnt = relative = True

    def __init__(self, cfg: RewardModel, out: StageDir):
        self.cfg, self.out = cfg, out
        self.key = f"{cfg.block}.path"
        self.folder = Path()
        self.model_figures = dict[str, Any]()
        if path := self.cfg.path:
            local = locate(path, self.key)
            self.folder = hub.download_model(path, self.cfg.revision) if local is None else local

    def pool(self, inputs: dict[str, Path]) -> Pool:
        if self.cfg.path is None:
            self.folder = inputs["reward"] / "model"
        return super().pool(inputs)

    def figures(self) -> dict[str, Any]:
        """Return the device and, if a model was loaded, its number of parameters: both determine the run time. A score
        is a place among the candidates, so there is no pass rate."""
        device = str(loading.resolve_device(self.cfg.runtime.device))
        return {"device": device, "pass_rate": None, **self.model_figures}

    @cached_property
    def reading(self) -> "Reading":
        """Return the rendering of prompts and answers, once for all steps of a training on draws."""
        return Reading(self.folder, self.key)

    def judge(self, prompt: Example, candidates: list[Candidate]) -> Iterable[Judgement]:
        return self.judge_all(Pool([prompt], candidates))

    def judge_all(self, pool: Pool) -> Iterator[Judgement]:
        """Yield judgements with the reward in `raw`. A candidate that the model cannot read gets an error."""
        score = partial(self.score, {prompt.id: prompt for prompt in pool.prompts})
        size, name = self.cfg.runtime.shard_size, f"label {self.name}"
        key, candidates = lambda c: c.candidate_id, [*pool.answers()]
        blocks = cut_blocks(([c] for c in sorted(candidates, key=key)), key, size)
        judgements = [
            *ShardedWork(candidates, key, score, Judgement, key, name, self.out).in_blocks(blocks)
        ]
        for judgement in judgements:
            judgement.score = None if judgement.raw is None else float(judgement.raw)
        yield from with_quantiles(judgements)

    def judge_rollouts(self, pool: Pool) -> Iterator[Judgement]:
        """Yield judgements whose score is the reward itself. A step's candidates are no pool to compare it with."""
        prompts = {prompt.id: prompt for prompt in pool.prompts}
        for _, [judgement] in self.score(prompts, [*pool.answers()]):
            yield replace(judgement, score=float(judgement.raw)) if judgement.raw else judgement

    def score(
        self, prompts: Mapping[str, Example], candidates: Sequence[Candidate]
    ) -> Iterator[tuple[Candidate, list[Judgement]]]:
        """Yield every candidate with a judgement: the reward in `raw`, or an error. `prompts`: by id."""
        readable = list[Readable]()
        for c in candidates:
            try:
                readable.append((c, self.reading.ids(prompts[c.prompt_id], c)))
            except ContractError as reason:
                yield c, [Judgement(c.prompt_id, self.name, c.candidate_id, error=str(reason))]
        for c, reward in self.rewards(readable):
            raw, fault = (
                (repr(reward), None) if isfinite(reward) else (None, f"the reward is {reward}")
            )
            yield c, [Judgement(c.prompt_id, self.name, c.candidate_id, raw=raw, error=fault)]

    def rewards(self, readable: Sequence[Readable]) -> Iterator[tuple[Candidate, float]]:
        """Yield candidates with rewards, longest first. The batches do not depend on the order of the pool."""
        precision = self.cfg.precision
        device = loading.resolve_device(self.cfg.runtime.device)
        key = self.folder, loading.sampling_weights(precision), device
        # a training on draws asks at every step
        model = self.out.open_resource.get(key, lambda: loading.load_reward_model(*key))
        if not readable:
            return
        if (pad_id := self.reading.pad_id) is None:
            # Any id that no row has, for the reward is read before the padding.
            used = {token for _, ids in readable for token in ids}
            pad_id = min({*range(len(used) + 1)} - used)
        model.config.get_text_config().pad_token_id = pad_id
        self.model_figures["parameters"] = model.num_parameters()
        ordered = sorted(readable, key=lambda each: each[0].candidate_id)
        lengths = [len(ids) for _, ids in ordered]
        with round_weights_once(device):
            for batch in batches_by_length(lengths, self.cfg.runtime.token_budget, device):
                rewards = predict_rewards(model, [ordered[i][1] for i in batch], pad_id, precision)
                yield from zip((ordered[i][0] for i in batch), rewards, strict=True)


class Reading:
    """Renders prompt and answer as token ids: by the model's contract if it has one, else by its chat template."""

    def __init__(self, folder: Path, key: str):
        """`key`: the setting of the reward model."""
        self.contract: Contract | None = (
            load_contract(folder) if (folder / "contract.json").exists() else None
        )
        self.tokenizer = (
            self.contract.tokenizer if self.contract else loading.load_tokenizer(folder)
        )
        if not self.tokenizer.chat_template:
            problem = "the tokenizer of this model does not have a chat template"
            effect = "so it is unknown how to render a prompt with an answer"
            way_out = "Save the chat template that the model was trained with in its tokenizer_config.json."
            raise UserError(f"{key}={folder}: {problem}, {effect}. {way_out}")
        validate_chat_template(self.tokenizer, str(folder))
        # Not the tokenizer's: the model skips its own padding at the end of a row, which is the end of turn of some.
        self.pad_id: int | None = loading.load_config(folder).get_text_config().pad_token_id
        self.context_length = loading.read_context_length(folder)

    def ids(self, prompt: Example, candidate: Candidate) -> list[int]:
        """Return the token ids of prompt and answer. If the answer was sampled under the same contract, its own token
        ids are used. Raise ContractError if prompt and answer cannot be rendered, or exceed the model's context."""
        answer = [{"role": "assistant", "content": candidate.text}]
        if contract := self.contract:
            answer_ids = ids_if_unchanged(
                candidate.token_ids, candidate.tokenizer, candidate.text, contract
            )
            if answer_ids is None:
                answer[0]["content"] = contract.with_empty_thought(candidate.text)
                _, answer_ids = contract.completion(
                    prompt.messages, answer, candidate.finish_reason == "stop"
                )
            ids = contract.prompt(prompt.messages) + answer_ids
        else:
            try:
                ids = token_ids(self.tokenizer, render(self.tokenizer, [*prompt.messages, *answer]))
            except TemplateFault as error:
                raise ContractError(
                    f"the reward model's chat template rejects the conversation: {error}"
                ) from error
        if self.context_length and len(ids) > self.context_length:
            raise ContractError(
                f"the text exceeds the reward model's context of {self.context_length} tokens"
            )
        return ids


@torch.no_grad()
def predict_rewards(
    model: PreTrainedModel, rows: list[list[int]], pad_id: int, precision: Precision
) -> list[float]:
    """Return the reward of every row of token ids, from one batch that is padded on the right."""
    padded = pad_completions([(row, [], None) for row in rows], pad_id)
    ids, mask = (padded[name].to(model.device) for name in ("input_ids", "attention_mask"))
    with autocast(precision, model.device):
        logits = model(input_ids=ids, attention_mask=mask).logits
    return logits[:, 0].float().tolist()  # type: ignore[no-any-return]
