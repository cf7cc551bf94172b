"""What preference optimisation never optimised: KL(model ‖ SFT), and the log-prob of held-out reference answers."""

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
from stages.models import contract
from stages.models.loading import context_of, device_of, load_model
from stages.models.scoring import autocast
from stages.store.records import Candidate, Example
from stages.store.workspace import Progress, StageDir

ROWS = 8  # in a forward; each holds the logits of its completion, 200 kB a token where the vocabulary has 50,000


def score(
    cfg: Eval, inputs: dict[str, Path], prompts: list[Example], answers: Answers, out: StageDir
) -> dict[str, dict[str, Any]]:
    """Of all models that speak SFT's template: `kl` by role, exact at every position of the model's own answers, in
    nats; `references`, in nats per token, of the prompts that have one which the model can read. A base is asked
    otherwise, so its log-probs would not compare. Nothing where there is no SFT to compare with."""
    if "sft" not in cfg.models or not prompts:
        return {"kl": {}, "references": {}}
    sft = load_model(inputs["sft"] / "model", device=device_of(cfg.runtime.device))
    kl, references = dict[str, dict[str, float]](), dict[str, list[float]]()
    referenced = readable(prompts, inputs["sft"] / "model", out)
    for role in (role for role in cfg.models if role != "base"):
        references[role], kl[role] = measure(
            cfg, role, inputs[role] / "model", sft, prompts, referenced, answers[role]
        )
    del kl["sft"]  # from itself
    return {"kl": kl, "references": compared(cfg, references, [e.task for e in referenced]) if referenced else {}}


def readable(prompts: list[Example], sft: Path, out: StageDir) -> list[Example]:
    """The prompts with a reference answer that fits into the models' context beside the prompt."""
    terms, most = contract.load(sft), context_of(sft)
    referenced = [e for e in prompts if e.reference]
    fit = [e for e in referenced if most is None or len(terms.example(e.conversation)[0]) <= most]
    if long := len(referenced) - len(fit):
        out.warn(
            f"{long} of {len(referenced)} reference answers are not scored: with their prompts they are longer than "
            f"the {most:,} tokens that the models read."
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
    """The mean log-prob under a model of the answers to `referenced`, and the model's KL from SFT. Two models are
    in memory at once, however many there are."""
    terms, model = contract.load(folder), sft if role == "sft" else load_model(folder, device=sft.device)
    divergence, tokens = 0.0, 0
    asked = [terms.completion(e.messages, e.conversation[-1:]) for e in referenced]
    answered = [(terms.prompt(e.messages), answers[e.id].token_ids or []) for e in prompts]
    references = [0.0] * len(asked)
    with Progress(len(asked), f"likelihood {role}", "prompt") as progress, autocast(cfg.precision, sft.device):
        for i, (log_p,) in log_probs([model], asked):
            wanted = torch.tensor(asked[i][1], device=model.device)[:, None]
            references[i] = float(log_p.gather(-1, wanted).mean())
            progress.update()
        for i, (log_p, log_q) in log_probs([model, sft], answered) if role != "sft" else []:
            divergence += float((log_p.exp() * (log_p - log_q)).sum())
            tokens += len(answered[i][1])
    per_token, per_answer = divergence / max(1, tokens), divergence / len(prompts)
    return references, {"per_token": per_token, "per_answer": per_answer, "answers": len(prompts)}


def compared(cfg: Eval, references: dict[str, list[float]], tasks: list[str]) -> dict[str, Any]:
    """Mean log-probs of the reference answers by role, and their differences with intervals."""
    roles = list(references)
    scored = np.array([references[role] for role in roles]).T
    means = Means(scored, tasks, shares=False)
    found: dict[str, Any] = {"prompts": len(tasks)}
    found |= {role: float(means.means[i]) for i, role in enumerate(roles)}
    for name, (a, b) in differences(roles).items():
        found[name] = asdict(means.difference(roles.index(a), roles.index(b), cfg.confidence))
    return found


def log_probs(
    models: list[PreTrainedModel], asked: list[tuple[list[int], list[int]]]
) -> Iterator[tuple[int, list[torch.Tensor]]]:
    """For every prompt and completion, in any order: its index, and by model (completion tokens, vocabulary), each row
    the distribution that its token was drawn from. Rows of like length go through a model together, padded on the
    right, where causal attention never looks."""
    order = sorted(range(len(asked)), key=lambda i: sum(map(len, asked[i])))
    for places in (order[start : start + ROWS] for start in range(0, len(order), ROWS)):
        rows = [asked[i] for i in places]
        ids = pad_sequence([torch.tensor(prompt + completion) for prompt, completion in rows], batch_first=True)
        first = min(len(prompt) for prompt, _ in rows) - 1  # the first position whose logits are read
        keep = ids.shape[1] - first
        logits = [model(ids.to(model.device), use_cache=False, logits_to_keep=keep).logits for model in models]
        for row, (i, (prompt, completion)) in enumerate(zip(places, rows, strict=True)):
            start = len(prompt) - 1 - first
            yield i, [of[row, start : start + len(completion)].float().log_softmax(-1) for of in logits]
