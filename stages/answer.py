"""Stage `answer`: one model answers the held-out prompts, greedily. A node per model, so sweeps share."""

from pathlib import Path
from typing import Any

from stages.config.blocks.evaluation import Answer
from stages.config.errors import UserError
from stages.evaluation.asked import HELD_OUT, prompts_of
from stages.models.contract import form_of
from stages.models.loading import device_of
from stages.samplers.completions import complete
from stages.samplers.sampler import Decoding
from stages.store.dropped import Dropped
from stages.store.records import Candidate, save
from stages.store.workspace import StageDir


def run(cfg: Answer, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish `answers.parquet`, one per prompt that is asked and that the model can read: of the split, or of
    held-out pairs. All with checks are asked, and of the others `open`, drawn by their ids.

    Raises:
        UserError: where there is no such prompt, or too many are too long.
    """
    every = [*prompts_of(inputs, cfg.split)]
    without = sorted(e.id for e in every if not e.checks)
    drawn = {*without[: cfg.open]}
    prompts = [e for e in every if e.checks or e.id in drawn]
    if not prompts:
        whose = HELD_OUT if "pairs" in inputs else f"the {cfg.split} split"
        raise UserError(f"{whose} has no prompt to ask (answer.open={cfg.open} allows so many without checks).")
    model = inputs["model"] / "model"
    terms = form_of(model)
    decoding = Decoding([0.0], cfg.max_new_tokens, cfg.precision, cfg.runtime, block="answer")
    dropped = Dropped(out, "prompts", cfg.max_dropped, "answer.max_dropped")
    answers = complete(prompts, terms, model, decoding, "answer", out, dropped)
    save(out / "answers.parquet", answers, Candidate)
    tokens = sum(a.n_tokens for a in answers)
    stopped = sum(a.finish_reason == "stop" for a in answers) / len(answers)
    summary = f"{len(answers)} prompts answered, {tokens / len(answers):.1f} tokens each, {stopped:.1%} ended"
    if without:
        summary += f"; {len(drawn)} of {len(without)} prompts without checks were asked"
    return {
        "device": str(device_of(cfg.runtime.device)),
        "prompts": len(answers),
        "prompts_dropped": dict(dropped.reasons),
        "without_checks": {"asked": len(drawn), "of": len(without)},
        "tokens": tokens,
        "stop_rate": stopped,
        "form": type(terms).__name__,
        "summary": summary,
    }
