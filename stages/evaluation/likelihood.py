"""What preference optimisation never optimised: KL(model ‖ SFT), and the log-prob of held-out reference answers."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from stages.config.schema import Eval
from stages.evaluation.bootstrap import interval, resampled_means
from stages.evaluation.outcomes import Answers, differences
from stages.models import contract
from stages.models.loading import device_of, load_model
from stages.models.scoring import autocast
from stages.store.records import Candidate, Example
from stages.store.work import Progress


def score(cfg: Eval, inputs: dict[str, Path], prompts: list[Example], answers: Answers) -> dict[str, dict[str, Any]]:
    """Of all models that speak SFT's template: `kl` by role, exact at every position of the model's own answers, in
    nats; `references`, in nats per token. A base is asked otherwise, so its log-probs would not compare."""
    sft = load_model(inputs["sft"] / "model", device=device_of(cfg.runtime.device))
    kl, references = dict[str, dict[str, float]](), dict[str, list[float]]()
    for role in (role for role in cfg.models if role != "base"):
        references[role], kl[role] = measure(cfg, role, inputs[role] / "model", sft, prompts, answers[role])
    del kl["sft"]  # from itself
    return {"kl": kl, "references": compared(cfg, references, [e.task for e in prompts])}


@torch.no_grad()
def measure(
    cfg: Eval, role: str, folder: Path, sft: PreTrainedModel, prompts: list[Example], answers: dict[str, Candidate]
) -> tuple[list[float], dict[str, float]]:
    """The mean log-prob of every reference answer under a model, and the model's KL from SFT. Two models are in memory
    at once, however many there are."""
    terms, model = contract.load(folder), sft if role == "sft" else load_model(folder, device=sft.device)
    references, divergence, tokens = list[float](), 0.0, 0
    with Progress(len(prompts), f"likelihood {role}", "prompt") as progress, autocast(cfg.precision, sft.device):
        for example in prompts:
            prompt, reference = terms.completion(example.messages, example.conversation[-1:])
            wanted = torch.tensor(reference, device=model.device)[:, None]
            references.append(float(log_probs(model, prompt, reference).gather(-1, wanted).mean()))
            if role != "sft":
                answer = answers[example.id].token_ids or []
                log_p, log_q = (log_probs(m, prompt, answer) for m in (model, sft))
                divergence += float((log_p.exp() * (log_p - log_q)).sum())
                tokens += len(answer)
            progress.update()
    per_token, per_answer = divergence / max(1, tokens), divergence / len(prompts)
    return references, {"per_token": per_token, "per_answer": per_answer, "answers": len(prompts)}


def compared(cfg: Eval, references: dict[str, list[float]], tasks: list[str]) -> dict[str, Any]:
    """Mean log-probs of the reference answers by role, and their differences with intervals."""
    roles = list(references)
    scored = np.array([references[role] for role in roles]).T
    draws = resampled_means(scored, tasks, cfg.bootstrap_samples, np.random.default_rng(cfg.seed))
    found: dict[str, Any] = {"prompts": len(tasks)}
    found |= {role: float(scored[:, i].mean()) for i, role in enumerate(roles)}
    for name, (a, b) in differences(roles).items():
        i, j = roles.index(a), roles.index(b)
        change = scored[:, i].mean() - scored[:, j].mean()
        found[name] = asdict(interval(change, draws[:, i] - draws[:, j], cfg.confidence, tasks))
    return found


def log_probs(model: PreTrainedModel, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """(completion tokens, vocabulary), each row the distribution that its token was drawn from."""
    ids = torch.tensor([prompt + completion], device=model.device)
    logits = model(ids, use_cache=False, logits_to_keep=len(completion) + 1).logits
    return logits[0, :-1].float().log_softmax(-1)
