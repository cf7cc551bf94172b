"""Stage `sample`: prompts, and the candidates that the policy answers with, or somebody's that are there already."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from stages.config.blocks.sampling import CandidateFile, Sample
from stages.config.choices import Split
from stages.config.errors import UserError
from stages.samplers.candidate_file import read_candidates
from stages.samplers.sampler import Decoding
from stages.store import plugins
from stages.store.dropped import Dropped
from stages.store.records import Candidate, Example, content_id, save, stream
from stages.store.shards import StreamedTable
from stages.store.workspace import StageDir


def run(cfg: Sample | CandidateFile, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish `prompts.parquet` and `candidates.parquet`; (prompt_id, candidate_id) is unique.

    Raises:
        UserError: where no prompt is left to sample, or too many candidates are missing.
    """
    candidates: list[Candidate] | StreamedTable[Candidate]
    if isinstance(cfg, CandidateFile):
        of_data = None if cfg.own_prompts else examples_of(Split.preference, inputs["data"])
        prompts, candidates = read_candidates(cfg, of_data, partial(of_round, cfg), out)
        figures, source = dict[str, Any](), f"from {Path(cfg.file).name}"
    else:
        prompts, candidates, figures = draw(cfg, inputs, out)
        source = f"{figures['tokens']} tokens, {figures['stop_rate']:.1%} stopped"
    save(out / "prompts.parquet", prompts, Example)
    save(out / "candidates.parquet", candidates, Candidate)
    return {
        "prompts": len(prompts),
        "candidates": len(candidates),
        **figures,
        "summary": f"{len(candidates)} candidates for {len(prompts)} prompts, {source}",
    }


def draw(
    cfg: Sample, inputs: dict[str, Path], out: StageDir
) -> tuple[list[Example], StreamedTable[Candidate], dict[str, Any]]:
    """Return the data's prompts of this round, what the sampler answers to them, and its figures."""
    from stages.models.contract import form_of
    from stages.models.loading import device_of  # with torch, which reading a file is spared
    from stages.samplers.completions import chosen, complete, sampler_of
    from stages.samplers.probe import watch_endings

    split = cfg.split or Split.preference
    examples = examples_of(split, inputs["data"])
    if split is Split.sft:  # only those that nobody has answered
        examples = [e for e in examples if e.reference is None]
    prompts = of_round(cfg, examples)
    if not prompts:
        raise UserError(f"the data holds no {split} prompts to sample. Raise data.tasks, or add a source.")
    model = inputs["policy"] / "model"
    terms = form_of(model)  # a base has no contract yet
    dropped = Dropped(out, "prompts", cfg.max_dropped, "sample.max_dropped")
    with plugins.told(cfg.own, "sample.own", out.path):
        opened, decoding = chosen(cfg, out), decoding_of(cfg)
        candidates = complete(prompts, terms, model, decoding, "sample", out, dropped, opened, cfg.max_failed)
        again = lambda: sampler_of(model, terms, decoding, opened, out)
        endings = watch_endings(cfg, candidates, prompts, terms, again, out)
    tokens = sum(c.n_tokens for c in candidates)
    figures = {
        "device": str(device_of(cfg.runtime.device)),
        "prompts_dropped": dict(dropped.reasons),
        "tokens": tokens,
        "stop_rate": sum(c.finish_reason == "stop" for c in candidates) / len(candidates),
        "mean_tokens": tokens / len(candidates),
        **endings,
        **({"calls": out.asked} if out.asked else {}),
    }
    return prompts, candidates, figures


def examples_of(split: Split, data: Path) -> list[Example]:
    return [e for e in stream(data / "examples.parquet", Example) if e.split == split]


def of_round(cfg: Sample | CandidateFile, examples: Iterable[Example]) -> list[Example]:
    """Return the prompts that a round asks: its share of them all, as far as `sample.prompts` allows."""
    share = [e for e in examples if int(e.id, 16) % cfg.rounds == cfg.round]
    return sorted(share, key=lambda e: content_id(e.id))[: cfg.prompts]


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
