"""Stage `answer`: one model answers the held-out prompts, greedily. A node per model, so sweeps share."""

from pathlib import Path
from typing import Any

from stages.config.blocks.evaluation import Answer
from stages.config.errors import UserError
from stages.models.contract import form_of
from stages.models.loading import device_of
from stages.samplers.completions import complete
from stages.samplers.sampler import Decoding
from stages.store.dropped import Dropped
from stages.store.records import Candidate, Example, save, stream
from stages.store.workspace import Work


def run(cfg: Answer, inputs: dict[str, Path], out: Work) -> dict[str, Any]:
    """Publish `answers.parquet`, one per prompt of the split that has checks and that the model can read.

    Raises:
        UserError: where there is no such prompt, or too many are too long.
    """
    examples = stream(inputs["data"] / "examples.parquet", Example)
    prompts = [e for e in examples if e.split == cfg.split and e.checks]
    if not prompts:
        raise UserError(f"the data holds no {cfg.split} prompts with checks, so nothing can be evaluated on them.")
    model = inputs["model"] / "model"
    terms = form_of(model)
    decoding = Decoding([0.0], cfg.max_new_tokens, cfg.precision, cfg.runtime, block="answer")
    dropped = Dropped(out, "prompts", cfg.max_dropped, "answer.max_dropped")
    answers = complete(prompts, terms, model, decoding, "answer", out, dropped)
    save(out / "answers.parquet", answers, Candidate)
    tokens = sum(a.n_tokens for a in answers)
    stopped = sum(a.finish_reason == "stop" for a in answers) / len(answers)
    return {
        "device": str(device_of(cfg.runtime.device)),
        "prompts": len(answers),
        "prompts_dropped": dict(dropped.reasons),
        "tokens": tokens,
        "stop_rate": stopped,
        "form": type(terms).__name__,
        "summary": f"{len(answers)} prompts answered, {tokens / len(answers):.1f} tokens each, {stopped:.1%} ended",
    }
