"""Stage `pool`: candidates of several sources, as one pool to be judged.

Each source is a `sample` node of its own. Here they come together as the policy's: a candidate keeps its token ids
where they were drawn under the policy's own contract; another has its text, and as many tokens as the policy's
tokenizer makes of that, so that lengths can be compared.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from stages.config.blocks.sampling import Pool
from stages.models.contract import Contract, form_of
from stages.store.records import Candidate, Example, load, save
from stages.store.workspace import StageDir


def run(cfg: Pool, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish `prompts.parquet` and `candidates.parquet`, in which `policy` is the name of the source."""
    terms = form_of(inputs["policy"] / "model")
    sources = [folder for role, folder in inputs.items() if role != "policy"]
    found, copies = dict[str, Candidate](), 0
    for name, folder in zip(cfg.members, sources, strict=True):
        for candidate in load(folder / "candidates.parquet", Candidate):
            copies += candidate.candidate_id in found  # the same text or tokens, of the same prompt
            found.setdefault(candidate.candidate_id, of_pool(candidate, name, terms))
    prompts = load(sources[0] / "prompts.parquet", Example)  # every source was asked the same
    save(out / "prompts.parquet", prompts, Example)
    save(out / "candidates.parquet", found.values(), Candidate)
    of_source = Counter(c.policy for c in found.values())
    if copies:
        out.warn(f"{copies} candidates are copies of an earlier source's and left out")
    return {
        "prompts": len(prompts),
        "candidates": len(found),
        "sources": {name: of_source[name] for name in cfg.members},
        "copies_left_out": copies,
        "tokens_kept": sum(c.token_ids is not None for c in found.values()),
        "summary": f"{len(found)} candidates for {len(prompts)} prompts: "
        + ", ".join(f"{of_source[name]} of {name}" for name in cfg.members),
    }


def of_pool(candidate: Candidate, name: str, terms: Contract) -> Candidate:
    """A candidate under the name of its source. A log-prob is of the tokens that were drawn, and goes with them."""
    if candidate.token_ids is not None and candidate.tokenizer == terms.digest:
        return replace(candidate, policy=name)
    n_tokens = terms.length(candidate.text)
    return replace(candidate, policy=name, token_ids=None, tokenizer=None, logprob=None, n_tokens=n_tokens)
