"""Stage `sample`: the policy answers preference prompts several times. The node holds prompts and candidates."""

from pathlib import Path
from typing import Any

from stages.config.blocks.sampling import Sample
from stages.config.choices import Split
from stages.config.errors import UserError
from stages.models.loading import device_of
from stages.models.prompt_format import form_of
from stages.samplers.completions import chosen, complete, sampler_of
from stages.samplers.given import given
from stages.samplers.probe import watch_endings
from stages.samplers.sampler import Decoding
from stages.store import parts
from stages.store.dropped import DROPPED, Dropped
from stages.store.records import Candidate, Example, content_id, save, stream
from stages.store.shards import Held
from stages.store.work import Work


def run(cfg: Sample, inputs: dict[str, Path], out: Work) -> dict[str, Any]:
    """Publish `prompts.parquet` and `candidates.parquet`; (prompt_id, candidate_id) is unique.

    Raises:
        UserError: where no prompt is left to sample, or too many candidates are missing.
    """
    split = cfg.split or Split.preference
    examples = [e for e in stream(inputs["data"] / "examples.parquet", Example) if e.split == split]
    if split is Split.sft:  # only those that nobody has answered
        examples = [e for e in examples if e.reference is None]
    mine = [e for e in examples if int(e.id, 16) % cfg.rounds == cfg.round]
    prompts = sorted(mine, key=lambda e: content_id(e.id))[: cfg.prompts]
    if not prompts:
        raise UserError(f"the data holds no {split} prompts to sample. Raise data.tasks, or add a source.")
    model = inputs["policy"] / "model"
    terms = form_of(model)  # a base has no contract yet
    candidates: list[Candidate] | Held[Candidate]
    dropped = Dropped(out, "prompts", DROPPED if cfg.max_dropped is None else cfg.max_dropped, "sample.max_dropped")
    if cfg.file:
        candidates, endings = given(cfg, prompts, {e.id for e in examples}, terms, out), dict[str, Any]()
    else:
        with parts.told(cfg.own, "sample.own", out.path):
            opened, decoding = chosen(cfg, out), decoding_of(cfg)
            candidates = complete(prompts, terms, model, decoding, "sample", out, dropped, opened, cfg.max_failed)
            sampler = lambda: sampler_of(model, terms, decoding, opened, out)
            endings = watch_endings(cfg, candidates, prompts, terms, sampler, out)
    save(out / "prompts.parquet", prompts, Example)
    save(out / "candidates.parquet", candidates, Candidate)
    tokens = sum(c.n_tokens for c in candidates)
    stopped = sum(c.finish_reason == "stop" for c in candidates) / len(candidates)
    return {
        "device": str(device_of(cfg.runtime.device)),
        "prompts": len(prompts),
        "prompts_dropped": dict(dropped.reasons),
        "candidates": len(candidates),
        "tokens": tokens,
        "stop_rate": stopped,
        **endings,
        "mean_tokens": tokens / len(candidates),
        **({"calls": out.asked} if out.asked else {}),
        "summary": f"{len(candidates)} candidates for {len(prompts)} prompts, {tokens} tokens, {stopped:.1%} stopped",
    }


def decoding_of(cfg: Sample) -> Decoding:
    """How each candidate of a prompt is drawn; temperatures are taken in turn."""
    return Decoding(
        temperatures=[cfg.temperatures[i % len(cfg.temperatures)] for i in range(cfg.candidates_per_prompt)],
        max_new_tokens=cfg.max_new_tokens,
        precision=cfg.precision,
        runtime=cfg.runtime,
        top_p=cfg.top_p,
        seed=cfg.seed,
        block=cfg.drawn_by,
    )
