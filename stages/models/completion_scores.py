"""Log-probs of given completions, such as the choices of a benchmark's question."""

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from trl.trainer import add_fused_lm_head

from stages.models.lm_head import install_cpu_head
from stages.models.run_attention import send_tensor

Row = tuple[list[int], list[int]]  # the token ids of a prompt and of a completion


def install_completion_scoring(model: PreTrainedModel) -> PreTrainedModel:
    """Give the model TRL's fused LM head, which computes log-probs without the logits of all positions in memory."""
    install_cpu_head()
    add_fused_lm_head(model, outputs=("log_probs", "is_top1"))
    return model


@torch.no_grad()
def completion_scores(model: PreTrainedModel, rows: Sequence[Row]) -> list[tuple[float, bool]]:
    """Return each completion's log-prob in nats, and whether the model finds each of its tokens the likeliest."""
    ids = pad_sequence([torch.tensor(prompt + completion) for prompt, completion in rows], batch_first=True)
    labels = torch.full_like(ids, -100)
    for i, (prompt, completion) in enumerate(rows):
        labels[i, len(prompt) : len(prompt) + len(completion)] = torch.tensor(completion)
    # Causal attention ignores the padding on the right.
    batch = {"input_ids": send_tensor(ids, model.device), "labels": send_tensor(labels, model.device)}
    output = model(**batch, use_cache=False, fused_lm_head=True)
    sums, hits = output.log_probs.float().sum(-1).tolist(), output.is_top1.sum(-1).tolist()
    return [(total, hit == len(row[1])) for total, hit, row in zip(sums, hits, rows, strict=True)]
