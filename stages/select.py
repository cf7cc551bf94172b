"""Stage `select`: judged candidates become examples. The best of n answers of a model to a prompt is a demonstration
that needs no teacher (rejection sampling: arXiv:2308.01825); the chosen completions of pairs, as demonstrations, are
what DPO is compared with."""

from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from stages.config.blocks.pairs import Select
from stages.config.choices import Split
from stages.config.errors import UserError
from stages.curation import rules
from stages.curation.mending import mended
from stages.pairing.held_out import side
from stages.store.licences import Licences
from stages.store.records import Candidate, Example, Judgement, Pair, content_id, load, save
from stages.store.work import Work


def run(cfg: Select, inputs: dict[str, Path], out: Work) -> dict[str, Any]:
    """Publish `examples.parquet`: of `pairs` the chosen completions, in their order; else the data's examples, its
    unanswered `sft` prompts with the best of their judged candidates.

    Raises:
        UserError: where no candidate is good enough.
    """
    if "pairs" in inputs:
        examples, refused = [chosen(pair) for pair in load(inputs["pairs"] / "pairs.parquet", Pair)], Counter[str]()
    else:
        given = load(inputs["data"] / "examples.parquet", Example)
        found, refused = best(cfg, inputs["judged"])
        examples = [e for e in given if e.split != Split.sft or e.reference is not None] + found
        if not found:
            told = "; ".join(f"{count} {reason}" for reason, count in refused.most_common())
            raise UserError(f"select: no answer is good enough to learn from ({told}). Lower select.min_score.")
    save(out / "examples.parquet", examples, Example)
    licences = Licences()
    for example in examples:
        licences.count(example)
    counts = Counter(e.split for e in examples)
    selected = [e for e in examples if e.source in ("selected", "mended")]
    by_code = sum(e.source == "mended" for e in selected)
    return {
        "examples": dict(counts),
        "selected": len(selected),
        "mended": by_code,
        "tasks": len({e.task for e in selected}),
        "refused": dict(refused),
        **licences.metrics(),
        "summary": f"{len(selected)} answers selected, {by_code} of them mended, of "
        f"{len({e.task for e in selected})} tasks; "
        + ", ".join(f"{counts[split]} {split}" for split in Split if counts[split]),
    }


def chosen(pair: Pair) -> Example:
    """A pair's chosen completion as an example, under the pair's id."""
    split = Split.sft if pair.split == "train" else Split.validation
    return Example(pair.id, pair.prompt, pair.chosen[-1]["content"], "selected", "chosen", split)


def best(cfg: Select, judged: Path) -> tuple[list[Example], Counter[str]]:
    """Prompts with their best candidate as reference, and for which reasons candidates were refused. Of those that are
    good enough, the one that its model found likeliest, per token; where none is, one that could be mended."""
    prompts = {e.id: e for e in load(judged / "prompts.parquet", Example)}
    candidates = {c.candidate_id: c for c in load(judged / "candidates.parquet", Candidate)}
    limits = rules.band(candidates.values())
    good, repaired = defaultdict[str, list[Candidate]](list), defaultdict[str, list[Candidate]](list)
    refused = Counter[str]()
    for judgement in load(judged / "judgements.parquet", Judgement):
        if judgement.score is None:
            continue
        candidate, prompt = candidates[str(judgement.candidate_id)], prompts[judgement.prompt_id]
        low = "scores below select.min_score" if judgement.score < cfg.min_score else None
        odd = None if rules.within(candidate, limits) else "is likelier or less likely than others"
        reason = low or rules.broken(prompt, candidate) or odd
        if not reason:
            good[prompt.id].append(candidate)
            continue
        refused[reason] += 1
        mendable = cfg.max_mended and not odd and (low or reason == rules.UNFINISHED)
        text = mended(prompt, candidate.text) if mendable else None
        whole = replace(candidate, text=text, finish_reason="stop") if text else None
        if whole and not rules.broken(prompt, whole):
            repaired[prompt.id].append(whole)
    found, of_task = list[Example](), Counter[tuple[str, str]]()
    for prompt in sorted((prompts[i] for i in good | repaired), key=lambda e: content_id(e.id)):
        source, most = ("selected", cfg.max_per_task) if good[prompt.id] else ("mended", cfg.max_mended)
        if max(of_task[source, task] for task in prompt.tasks) >= most:
            refused["is of a task that has enough"] += len(good[prompt.id])
            continue
        of_task.update((source, task) for task in prompt.tasks)
        found.append(demonstration(prompt, max(good[prompt.id] or repaired[prompt.id], key=likelihood), source, cfg))
    return found, refused


def demonstration(prompt: Example, answer: Candidate, source: str, cfg: Select) -> Example:
    """The prompt with this answer, held out for the validation loss or not."""
    split = side(prompt.id, cfg.validation_fraction, Split.sft)
    return replace(prompt, reference=answer.text.strip(), source=source, split=split)


def likelihood(candidate: Candidate) -> float:
    """The mean log-prob of a candidate's tokens; 0 where there is none."""
    return (candidate.logprob or 0.0) / max(1, candidate.n_tokens)
