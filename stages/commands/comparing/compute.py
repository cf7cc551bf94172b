"""The compute that a model took: the floating-point operations of its training and of what it was trained on."""

from stages.config.blocks.training import OBJECTIVES
from stages.store.manifest import Manifest

FORWARD, BACKWARD, ADAPTER_BACKWARD = 2, 4, 2  # operations per parameter and token
ELSEWHERE = "openai"  # the sampler whose model runs on a server


def training_flops(manifests: list[Manifest]) -> float:
    """Return the operations of the trainings, samples and stored log-probs among the nodes that a model came from.

    A token costs 2 operations per parameter forward and 4 backward (Kaplan et al. 2020, arXiv:2001.08361, section
    2.1), or 2 backward where only adapters are trained. GRPO also samples the completions that it trains on. Attention
    over earlier tokens, labels by models, and endpoints are not counted. The result is nan if a base is deleted."""
    parameters = {m["fingerprint"]: float(m["metrics"]["parameters"]) for m in manifests if m["stage"] == "base"}
    total = 0.0
    for m in manifests:
        if per_token := operations(m):
            tokens = m["metrics"]["tokens"] + m["metrics"].get("prompt_tokens", 0)
            total += per_token * tokens * parameters.get(m["roots"].get("base", ""), float("nan"))
    return total


def operations(m: Manifest) -> int:
    """Return the operations per parameter and token of a node; 0 if it runs no model here."""
    stage, settings = m["stage"], m["settings"]
    if "tokens" not in m["metrics"] or settings.get("sampler") == ELSEWHERE:
        return 0
    if stage in ("sample", "reference"):
        return FORWARD
    if stage not in OBJECTIVES:
        return 0
    backward = BACKWARD if settings.get("adapter", "none") == "none" else ADAPTER_BACKWARD
    trained = 2 if stage == "kto" else 1  # half of KTO's tokens are of mismatched completions, which are only read
    return FORWARD + backward // trained + (FORWARD if stage == "grpo" else 0)
