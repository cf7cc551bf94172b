"""What DPO never optimised: KL(policy ‖ reference), and the log-prob of held-out reference answers."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from stages.config.schema import Eval
from stages.evaluation.bootstrap import interval, resampled_means
from stages.models import contract
from stages.models.loading import device_of, load_model
from stages.models.scoring import autocast
from stages.store.records import Candidate, Example
from stages.store.work import bar

ROLES = {"sft": "reference", "dpo": "policy"}


@torch.no_grad()
def score(
    cfg: Eval, inputs: dict[str, Path], prompts: list[Example], answers: dict[str, Candidate]
) -> dict[str, dict[str, Any]]:
    """`kl`, exact at every position of the policy's own answers, in nats; `references`, in nats per token."""
    device = device_of(cfg.runtime.device)
    models = {
        name: load_model(inputs[role] / "model", device=device)
        for name, role in (("sft", "reference"), ("dpo", "policy"))
    }
    terms = contract.load(inputs["policy"] / "model")
    divergence, tokens, references = [], 0, []
    with bar(len(prompts), "likelihood", "prompt") as progress, autocast(cfg.precision, device):
        for example in prompts:
            prompt, reference = terms.completion(example.messages, example.conversation[-1:])
            answer = answers[example.id].token_ids
            log_p, log_q = (log_probs(models[m], prompt, answer) for m in ("dpo", "sft"))
            divergence.append(float((log_p.exp() * (log_p - log_q)).sum()))
            tokens += len(answer)
            wanted = torch.tensor(reference, device=device)[:, None]
            references.append(
                [float(log_probs(models[m], prompt, reference).gather(-1, wanted).mean()) for m in ("sft", "dpo")]
            )
            progress.update()
    scored = np.array(references)
    tasks = [e.task for e in prompts]
    draws = resampled_means(scored, tasks, cfg.bootstrap_samples, np.random.default_rng(cfg.seed))
    change = interval(scored[:, 1].mean() - scored[:, 0].mean(), draws[:, 1] - draws[:, 0], cfg.confidence, tasks)
    total = sum(divergence)
    return {
        "kl": {"per_token": total / tokens, "per_answer": total / len(prompts), "answers": len(prompts)},
        "references": {
            "prompts": len(prompts),
            "sft": float(scored[:, 0].mean()),
            "dpo": float(scored[:, 1].mean()),
            "dpo-sft": asdict(change),
        },
    }


def log_probs(model: PreTrainedModel, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """(completion tokens, vocabulary), each row the distribution that its token was drawn from."""
    ids = torch.tensor([prompt + completion], device=model.device)
    logits = model(ids, use_cache=False, logits_to_keep=len(completion) + 1).logits
    return logits[0, :-1].float().log_softmax(-1)
