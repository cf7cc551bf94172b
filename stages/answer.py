"""Stage `answer`: one model answers the held-out prompts greedily. Each model has a node, which sweeps share.

With `answer.samples` it also draws answers, which show what it can do in several tries."""

from pathlib import Path
from typing import Any

from stages.config.blocks.evaluation import Answer
from stages.config.errors import UserError
from stages.evaluation.asked import read_prompts
from stages.evaluation.coverage import SAMPLES
from stages.models.chat_templates import in_form
from stages.models.contract import load_or_derive_contract
from stages.models.loading import resolve_device
from stages.samplers.completions import complete, engine_figures
from stages.samplers.sampler import Decoding, Sampler
from stages.store import plugins
from stages.store.dropped import Dropped
from stages.store.records import Candidate, Records, save
from stages.store.splits import draw_order
from stages.store.workspace import StageDir


def run(cfg: Answer, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish `answers.parquet`, with one answer per prompt of the split, or of the held-out pairs. With `answer.samples`
    also publish `samples.parquet`, with so many drawn answers per prompt.

    All prompts with checks are asked, and `open` of the others, drawn by their ids.
    Raise UserError if there is no prompt, or too many are longer than the model's context."""
    available_prompts = [
        prompt
        for prompt in read_prompts(inputs, cfg.split)
        if not cfg.form or prompt.task == "templates"
    ]
    ids_without_checks = sorted(
        (prompt.id for prompt in available_prompts if not prompt.checks), key=draw_order
    )
    drawn_ids = {*ids_without_checks[: cfg.open]}
    prompts = [prompt for prompt in available_prompts if prompt.checks or prompt.id in drawn_ids]
    if not prompts:
        key = "answer.open"
        if not available_prompts and "data" not in inputs:
            block = "unpaired" if "unpaired" in inputs else "pairs"
            key = f"{block}.validation_fraction"
        raise UserError(
            f"answer.open={cfg.open}: none of {len(available_prompts)} prompts has checks. Raise {key}."
        )
    model = inputs["model"] / "model"
    contract = load_or_derive_contract(model)
    if cfg.form:
        contract = in_form(contract, cfg.form)
    decoding = Decoding(
        cfg.temperatures, cfg.max_new_tokens, cfg.precision, cfg.runtime, block="answer"
    )
    dropped = Dropped(out, "prompts", cfg.max_dropped, "answer.max_dropped")
    open_sampler = plugins.load_class("samplers", cfg.sampler or "hf", Sampler).open  # type: ignore[type-abstract]
    drawn = complete(prompts, contract, model, decoding, "answer", out, dropped, open_sampler)
    save(out / "answers.parquet", (each for each in drawn if not each.temperature), Candidate)
    answers = Records(out / "answers.parquet", Candidate)
    if cfg.samples:
        save(out / SAMPLES, (each for each in drawn if each.temperature), Candidate)
    tokens = sum(answer.n_tokens for answer in answers)
    stop_rate = sum(answer.finish_reason == "stop" for answer in answers) / len(answers)
    return {
        "device": str(resolve_device(cfg.runtime.device)),
        "prompts": len(answers),
        "prompts_dropped": dict(dropped.reasons),
        "tokens": tokens,
        **({"samples": cfg.samples} if cfg.samples else {}),
        "stop_rate": stop_rate,
        "form": cfg.form or type(contract).__name__,
        **engine_figures(out),
        "summary": f"{len(answers)} prompts answered with {tokens / len(answers):.1f} tokens each, {stop_rate:.1%} ended",
    }
