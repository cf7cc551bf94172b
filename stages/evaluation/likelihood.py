"""Two measures that preference optimisation does not optimise: KL(model ‖ SFT), and the log-prob of reference answers
to held-out prompts.

One model is in memory at a time. What stays of it are its hidden states at the scored tokens and its LM head, which
turns them into distributions over the vocabulary, a chunk of tokens at a time."""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers.utils import ModelOutput

from stages.config.blocks.evaluation import Eval
from stages.evaluation.estimate import Means
from stages.evaluation.intervals import Interval
from stages.evaluation.outcomes import Answers, differences
from stages.evaluation.results import Divergence, References
from stages.models.contract import load_contract
from stages.models.loading import (
    count_embedding_rows,
    load_model,
    read_context_length,
    resolve_device,
    sampling_weights,
)
from stages.models.rendering import ContractError
from stages.models.run_attention import send_tensor
from stages.models.scoring import batches_by_length
from stages.store.records import Example
from stages.store.workspace import Progress, StageDir

# tokens whose distributions are in memory: 150 MB per model with a vocabulary of 150,000
CHUNK = 256
# the name of the rows with reference answers; a model's own answers have its role's name
REFERENCES = "references"

Rows = list[tuple[list[int], list[int]]]  # the token ids of a prompt and of a completion


@torch.no_grad()
def score(
    cfg: Eval, inputs: dict[str, Path], prompts: list[Example], answers: Answers, out: StageDir
) -> tuple[dict[str, Divergence], References | None]:
    """Return `kl` and `references` for all models with SFT's template; neither without SFT. `kl`: by role, the
    exact KL from SFT in nats at every position of the model's own answers. `references`: the mean log-prob per token
    of the reference answers that fit the context. The base has another template, so it is left out."""
    if "sft" not in cfg.models or not prompts:
        return {}, None
    roles = [role for role in cfg.models if role != "base"]
    tokens_read = count_embedding_rows(inputs["sft"] / "model")
    referenced = readable(prompts, inputs["sft"] / "model", out)
    rows: dict[str, dict[str, Rows]] = {}
    for role in roles:
        contract = load_contract(inputs[role] / "model")
        rows[role] = {
            REFERENCES: [contract.completion(e.messages, e.conversation[-1:]) for e in referenced],
            role: [
                (contract.prompt(e.messages), answers[role][e.id].token_ids or []) for e in prompts
            ],
        }
    del rows["sft"]["sft"]  # SFT's KL from itself is 0
    others = [role for role in roles if role != "sft"]
    compared = {
        role: rows[role][role] for role in others if highest_token(rows[role][role]) < tokens_read
    }
    for role in others:
        if role not in compared:  # it has tokens that SFT has not
            title = cfg.models[role]
            out.warn(f"{cfg.models['sft']} cannot read the answers of {title}: no KL from it.")
    sft = Distributions(cfg, "sft", inputs["sft"] / "model", rows["sft"] | compared)
    kl = dict[str, Divergence]()
    references = {"sft": sft.mean_log_probs(REFERENCES)}
    for role in others:
        model = Distributions(cfg, role, inputs[role] / "model", rows[role])
        references[role] = model.mean_log_probs(REFERENCES)
        if role not in compared:
            continue
        divergence = model.divergence(sft, role)
        tokens = sum(len(completion) for _, completion in compared[role])
        kl[role] = Divergence(
            per_token=divergence / max(1, tokens),
            per_answer=divergence / len(prompts),
            answers=len(prompts),
        )
    tasks = [e.task for e in referenced]
    return kl, compare_references(cfg, references, tasks) if referenced else None


def highest_token(rows: Rows) -> int:
    return max(
        (token for prompt, completion in rows for token in (*prompt, *completion)), default=0
    )


def readable(prompts: list[Example], sft: Path, out: StageDir) -> list[Example]:
    """List the prompts whose reference answer the template can render after the prompt, within the models' context."""
    sft_contract, longest = load_contract(sft), read_context_length(sft) or sys.maxsize
    referenced, fit, unscored = [e for e in prompts if e.reference], list[Example](), Counter[str]()
    for e, rendered in zip(
        referenced, sft_contract.all_stretches(e.conversation for e in referenced), strict=True
    ):
        if isinstance(rendered, ContractError):
            unscored[str(rendered)] += 1
        elif len(rendered[-1].ids) > longest:
            unscored[
                f"with their prompts they exceed the models' context of {longest:,} tokens"
            ] += 1
        else:
            fit.append(e)
    for reason, count in unscored.items():
        out.warn(f"{count} of {len(referenced)} reference answers are not scored: {reason}.")
    return fit


def compare_references(
    cfg: Eval, references: dict[str, list[float]], tasks: list[str]
) -> References:
    """Return mean log-probs of the reference answers by role, and their differences with intervals."""
    roles, means = [*references], Means(np.array([*references.values()]).T, tasks, shares=False)
    values = dict[str, float | Interval](zip(roles, map(float, means.means), strict=True))
    for name, (a, b) in differences(roles).items():
        values[name] = means.difference(roles.index(a), roles.index(b), cfg.confidence)
    return References(len(tasks), values)


class KnownStates(torch.nn.Module):
    """Layers that return hidden states computed before, of type `output`: the model computes their logits alone."""

    output: type[ModelOutput]
    states: torch.Tensor

    def forward(self, *_: Any, **__: Any) -> ModelOutput:
        return self.output(last_hidden_state=self.states)


class Distributions:
    """A model's distributions behind every completion token of named lists of rows. The model reads all rows at once
    and then keeps its LM head; its weights have the type of the precision."""

    def __init__(self, cfg: Eval, role: str, folder: Path, rows: dict[str, Rows]):
        self.rows, self.device = rows, resolve_device(cfg.runtime.device)
        self.model = load_model(folder, sampling_weights(cfg.precision), self.device)
        self.layers = KnownStates()
        with Progress(sum(map(len, rows.values())), f"likelihood {role}", "answer") as progress:
            self.states = {
                name: self.hidden_states(named, progress) for name, named in rows.items()
            }
        self.model.set_submodule(self.model.base_model_prefix, self.layers)

    def hidden_states(self, rows: Rows, progress: Progress) -> list[torch.Tensor]:
        """Return the states behind which every completion token of these rows is predicted: (tokens, hidden size)."""
        hidden_states = [torch.empty(0)] * len(rows)
        for batch in batches_by_length(
            [len(prompt) + len(ids) for prompt, ids in rows], None, self.device
        ):
            padded = pad_sequence(
                [torch.tensor([*rows[i][0], *rows[i][1]]) for i in batch], batch_first=True
            )
            # Causal attention ignores the padding on the right.
            output = self.model.base_model(send_tensor(padded, self.device), use_cache=False)
            self.layers.output = type(output)
            for i, states in zip(batch, output.last_hidden_state, strict=True):
                start = len(rows[i][0]) - 1
                hidden_states[i] = states[start : start + len(rows[i][1])].clone()
            progress.update(len(batch))
        return hidden_states

    def log_probs(self, name: str, i: int) -> Iterator[torch.Tensor]:
        """Yield the log-distributions of row `i`, in order, in chunks of shape (tokens, vocabulary)."""
        for states in chunks(self.states[name][i]):
            self.layers.states = states[None]
            # The layers ignore their input, but Gemma 4 counts the tokens of it.
            output = self.model(inputs_embeds=states[None])
            yield output.logits[0].float().log_softmax(-1)

    def mean_log_probs(self, name: str) -> list[float]:
        """Return the mean log-prob per token of each row's completion."""
        means = torch.zeros(len(self.rows[name]), device=self.device)
        for i, (_, completion) in enumerate(self.rows[name]):
            completion_ids = send_tensor(torch.tensor(completion), self.device)[:, None]
            for log_p, ids in zip(self.log_probs(name, i), chunks(completion_ids), strict=True):
                means[i] += log_p.gather(-1, ids).sum() / len(completion)
        return means.tolist()  # type: ignore[no-any-return]

    def divergence(self, other: "Distributions", name: str) -> float:
        """Return the sum of KL(self ‖ other) in nats over all completion tokens of these rows."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for i in range(len(self.rows[name])):
            for log_p, log_q in zip(self.log_probs(name, i), other.log_probs(name, i), strict=True):
                shared = min(log_p.shape[-1], log_q.shape[-1])  # one of them may have more tokens
                gaps = log_p[:, :shared] - log_q[:, :shared]
                total += (log_p[:, :shared].exp() * gaps).sum()
        return float(total)


def chunks(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Divide a tensor into parts of at most CHUNK rows."""
    return [tensor[start : start + CHUNK] for start in range(0, len(tensor), CHUNK)]
