"""Two measures that preference optimisation does not optimise: KL(model ‖ SFT), and the log-prob of reference answers
to held-out prompts."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from stages.config.blocks.evaluation import Eval
from stages.evaluation.intervals import Means
from stages.evaluation.outcomes import Answers, differences
from stages.models.contract import load_contract
from stages.models.loading import load_model, read_context_length, resolve_device
from stages.models.run_attention import send_tensor
from stages.models.scoring import autocast
from stages.store.records import Candidate, Example
from stages.store.workspace import Progress, StageDir

ROWS = 8  # per forward pass; a row's logits take 200 kB per completion token with a vocabulary of 50,000


def score(
    cfg: Eval, inputs: dict[str, Path], prompts: list[Example], answers: Answers, out: StageDir
) -> dict[str, dict[str, Any]]:
    """Return `kl` and `references` for all models with SFT's template; both are empty without SFT. `kl`: by role, the
    exact KL from SFT in nats at every position of the model's own answers. `references`: the mean log-prob per token
    of the reference answers that fit the context. The base has another template, so it is left out."""
    if "sft" not in cfg.models or not prompts:
        return {"kl": {}, "references": {}}
    sft = load_model(inputs["sft"] / "model", device=resolve_device(cfg.runtime.device))
    kl, references = dict[str, dict[str, float]](), dict[str, list[float]]()
    referenced = readable(prompts, inputs["sft"] / "model", out)
    for role in (role for role in cfg.models if role != "base"):
        references[role], kl[role] = measure(
            cfg, role, inputs[role] / "model", sft, prompts, referenced, answers[role]
        )
    del kl["sft"]  # from itself
    tasks = [e.task for e in referenced]
    return {"kl": kl, "references": compare_references(cfg, references, tasks) if referenced else {}}


def readable(prompts: list[Example], sft: Path, out: StageDir) -> list[Example]:
    """List the prompts whose reference answer fits into the models' context together with the prompt."""
    sft_contract, longest = load_contract(sft), read_context_length(sft)
    referenced = [e for e in prompts if e.reference]
    fit = [e for e in referenced if longest is None or len(sft_contract.example(e.conversation)[0]) <= longest]
    if too_long := len(referenced) - len(fit):
        out.warn(
            f"{too_long} of {len(referenced)} reference answers are not scored: with their prompts they exceed the "
            f"models' context of {longest:,} tokens."
        )
    return fit


@torch.no_grad()
def measure(
    cfg: Eval,
    role: str,
    folder: Path,
    sft: PreTrainedModel,
    prompts: list[Example],
    referenced: list[Example],
    answers: dict[str, Candidate],
) -> tuple[list[float], dict[str, float]]:
    """Return a model's mean log-prob of each answer in `referenced`, and its KL from SFT. At most two models are in
    memory at once."""
    chat_contract, model = (load_contract(folder), sft if role == "sft" else load_model(folder, device=sft.device))
    rows = [chat_contract.completion(e.messages, e.conversation[-1:]) for e in referenced]
    answer_rows = [(chat_contract.prompt(e.messages), answers[e.id].token_ids or []) for e in prompts]
    references = torch.zeros(len(rows), device=sft.device)
    divergence, tokens = torch.zeros((), dtype=torch.float64, device=sft.device), 0
    with Progress(len(rows), f"likelihood {role}", "prompt") as progress, autocast(cfg.precision, sft.device):
        for i, (log_p,) in log_probs([model], rows):
            reference_ids = send_tensor(torch.tensor(rows[i][1]), model.device)[:, None]
            references[i] = log_p.gather(-1, reference_ids).mean()
            progress.update()
        for i, (log_p, log_q) in log_probs([model, sft], answer_rows) if role != "sft" else []:
            divergence += (log_p.exp() * (log_p - log_q)).sum()
            tokens += len(answer_rows[i][1])
    per_token, per_answer = float(divergence) / max(1, tokens), float(divergence) / len(prompts)
    return references.tolist(), {"per_token": per_token, "per_answer": per_answer, "answers": len(prompts)}


def compare_references(cfg: Eval, references: dict[str, list[float]], tasks: list[str]) -> dict[str, Any]:
    """Return mean log-probs of the reference answers by role, and their differences with intervals."""
    roles = list(references)
    scored = np.array([references[role] for role in roles]).T
    means = Means(scored, tasks, shares=False)
    results: dict[str, Any] = {"prompts": len(tasks)}
    results |= {role: float(means.means[i]) for i, role in enumerate(roles)}
    for name, (a, b) in differences(roles).items():
        results[name] = asdict(means.difference(roles.index(a), roles.index(b), cfg.confidence))
    return results


def log_probs(
    models: list[PreTrainedModel], rows: list[tuple[list[int], list[int]]]
) -> Iterator[tuple[int, list[torch.Tensor]]]:
    """Yield each row's index and, for each model, the log-distribution behind every completion token. A row is a
    prompt and a completion; each distribution has the shape (completion tokens, vocabulary). Rows of similar length
    share a batch, padded on the right where causal attention ignores the padding."""
    order = sorted(range(len(rows)), key=lambda i: sum(map(len, rows[i])))
    for indices in (order[start : start + ROWS] for start in range(0, len(order), ROWS)):
        batch = [rows[i] for i in indices]
        padded = pad_sequence([torch.tensor(prompt + completion) for prompt, completion in batch], batch_first=True)
        ids = send_tensor(padded, models[0].device)
        first = min(len(prompt) for prompt, _ in batch) - 1  # the first position whose logits are read
        keep = ids.shape[1] - first
        logits = [model(ids, use_cache=False, logits_to_keep=keep).logits for model in models]
        for row, (i, (prompt, completion)) in enumerate(zip(indices, batch, strict=True)):
            start = len(prompt) - 1 - first
            yield (i, [scores[row, start : start + len(completion)].float().log_softmax(-1) for scores in logits])
