"""Stage `pool`: the candidates of several sources, each a `sample` node, as one pool to be judged. A candidate keeps
token ids that were drawn under the policy's contract; others have text, and their length in the policy's tokens."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from stages.config.blocks.sampling import Pool
from stages.models.contract import Contract, load_or_derive_contract
from stages.store.records import Candidate, Example, load, save
from stages.store.workspace import StageDir


def run(cfg: Pool, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Write `prompts.parquet` and `candidates.parquet`, where column `policy` names the source."""
    contract = load_or_derive_contract(inputs["policy"] / "model")
    source_folders = [folder for role, folder in inputs.items() if role != "policy"]
    candidates = dict[str, Candidate]()
    copies = 0
    for source, folder in zip(cfg.members, source_folders, strict=True):
        for candidate in load(folder / "candidates.parquet", Candidate):
            # equal ids mean the same prompt and text or tokens
            copies += candidate.candidate_id in candidates
            candidates.setdefault(
                candidate.candidate_id, with_source_as_policy(candidate, source, contract)
            )
    # all sources answer the same prompts
    prompts = load(source_folders[0] / "prompts.parquet", Example)
    save(out / "prompts.parquet", prompts, Example)
    save(out / "candidates.parquet", candidates.values(), Candidate)
    count_by_source = dict.fromkeys(cfg.members, 0)
    for candidate in candidates.values():
        count_by_source[candidate.policy] += 1
    return {
        "prompts": len(prompts),
        "candidates": len(candidates),
        "sources": count_by_source,
        "copies_left_out": copies,
        "summary": f"{len(candidates)} candidates for {len(prompts)} prompts, {copies} copies left out",
    }


def with_source_as_policy(candidate: Candidate, source: str, contract: Contract) -> Candidate:
    """Return a candidate with its source as policy. A log-prob belongs to token ids, and is dropped with them."""
    has_token_ids_of_policy = (
        candidate.token_ids is not None and candidate.tokenizer == contract.digest
    )
    if has_token_ids_of_policy:
        return replace(candidate, policy=source)
    measured = contract.measure(candidate)
    return replace(measured, policy=source, token_ids=None, tokenizer=None, logprob=None)
