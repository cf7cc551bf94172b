"""Stage `sample`: prompts with candidates, which the policy samples or a file provides."""

from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from stages.config.blocks.sampling import CandidateFile, DrawnCandidates
from stages.config.choices import Split
from stages.config.errors import UserError
from stages.samplers.asked_prompts import select_round
from stages.samplers.candidate_file import read_candidates
from stages.samplers.sampler import Decoding
from stages.store import plugins
from stages.store.dropped import Dropped
from stages.store.records import Candidate, Example, Records, save, stream
from stages.store.shards import StreamedTable
from stages.store.workspace import StageDir


def run(
    cfg: DrawnCandidates | CandidateFile, inputs: dict[str, Path], out: StageDir
) -> dict[str, Any]:
    """Write `prompts.parquet` and `candidates.parquet`, of candidates that a file has or the policy samples.
    Raise UserError if no prompt is left to sample, or too many candidates are missing."""
    candidates: list[Candidate] | StreamedTable[Candidate] | Records[Candidate]
    if isinstance(cfg, CandidateFile):
        data_prompts = None if cfg.own_prompts else load_split(Split.preference, inputs["data"])
        prompts, candidates = read_candidates(cfg, data_prompts, partial(select_round, cfg), out)
        figures = dict[str, Any]()
    else:
        prompts, candidates, figures = draw_candidates(cfg, inputs, out)
    summary = f"{len(candidates)} candidates for {len(prompts)} prompts"
    if figures:
        summary += f", {figures['stop_rate']:.1%} of them complete"
    save(out / "prompts.parquet", prompts, Example)
    save(out / "candidates.parquet", candidates, Candidate)
    return {
        "prompts": len(prompts),
        "candidates": len(candidates),
        **figures,
        "summary": summary,
    }


def draw_candidates(
    cfg: DrawnCandidates, inputs: dict[str, Path], out: StageDir
) -> tuple[
    list[Example], list[Candidate] | StreamedTable[Candidate] | Records[Candidate], dict[str, Any]
]:
    """Return the prompts of this round, the candidates that the sampler draws, and metrics."""
    # this imports torch, which reading a file does not need
    from stages.models.contract import load_or_derive_contract
    from stages.models.loading import resolve_device
    from stages.samplers.completions import choose_opener, complete, engine_figures
    from stages.samplers.endings import report_endings

    split = cfg.split or Split.preference
    examples = load_split(split, inputs["data"])
    if split is Split.sft:  # only prompts without reference answer
        examples = [e for e in examples if e.reference is None]
    prompts = select_round(cfg, examples)
    if not prompts:
        raise UserError(
            f"sample.split={split}: the data has no such prompts to sample. Raise data.tasks.{split}."
        )
    model = inputs["policy"] / "model"
    contract = load_or_derive_contract(model)  # a base has no contract yet
    dropped = Dropped(out, "prompts", cfg.max_dropped, "sample.max_dropped")
    with plugins.explain_errors(cfg.own, "sample.own", out.path):
        candidates = complete(
            prompts,
            contract,
            model,
            make_decoding(cfg),
            "sample",
            out,
            dropped,
            choose_opener(cfg, out),
            cfg.max_failed,
        )
    tokens = sum(c.n_tokens for c in candidates)
    answered = {c.prompt_id for c in candidates}
    figures = {
        "device": str(resolve_device(cfg.runtime.device)),
        "prompts_dropped": dict(dropped.reasons),
        "tokens": tokens,
        "prompt_tokens": sum(len(contract.prompt(e.messages)) for e in prompts if e.id in answered),
        "stop_rate": sum(c.finish_reason == "stop" for c in candidates) / len(candidates),
        "mean_tokens": tokens / len(candidates),
        **report_endings(cfg, candidates, out),
        **engine_figures(out),
    }
    if out.endpoint_calls:
        figures["calls"] = out.endpoint_calls
    return prompts, candidates, figures


def load_split(split: Split, data: Path) -> list[Example]:
    return [e for e in stream(data / "examples.parquet", Example) if e.split == split]


def make_decoding(cfg: DrawnCandidates) -> Decoding:
    """Return the decoding settings. Candidates of a prompt use the temperatures in turn."""
    return Decoding(
        temperatures=[*islice(cycle(cfg.temperatures), cfg.candidates_per_prompt)],
        max_new_tokens=cfg.max_new_tokens,
        precision=cfg.precision,
        runtime=cfg.runtime,
        top_p=cfg.top_p,
        seed=cfg.seed,
        block=cfg.command_line_block,
    )
