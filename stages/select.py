"""Stage `select`: judged candidates become examples. The best of n answers of a model to a prompt is a demonstration
that needs no teacher (rejection sampling: arXiv:2308.01825); the chosen completions of pairs, as demonstrations, are
what DPO is compared with."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from stages.config.blocks.pairs import Select
from stages.config.choices import Split
from stages.config.errors import UserError
from stages.curation import answer_rules
from stages.curation.mend import mended
from stages.store.judged_pool import judged
from stages.store.licences import Licences
from stages.store.records import Candidate, Example, Pair, Records, content_id, save, stream
from stages.store.splits import side
from stages.store.truncation import ending_advice, share_ended
from stages.store.workspace import StageDir

MADE = ("selected", "mended")  # what this stage calls the source of its examples


def run(cfg: Select, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish `examples.parquet`: of `pairs` the chosen completions, in their order; else the data's examples, its
    unanswered `sft` prompts with the best of their judged candidates.

    Raises:
        UserError: where no candidate is good enough.
    """
    examples: Iterable[Example]
    if "pairs" in inputs:
        examples, refused = map(chosen, stream(inputs["pairs"] / "pairs.parquet", Pair)), Counter[str]()
    else:
        found, refused = best(cfg, inputs["judged"])
        if not found:
            told = "; ".join(f"{count} {reason}" for reason, count in refused.most_common())
            advice = ending_advice(share_ended(inputs["judged"]), "select") or "Lower select.min_score"
            raise UserError(f"select: no answer is good enough to learn from ({told}). {advice}.")
        given = stream(inputs["data"] / "examples.parquet", Example)
        examples = chain((e for e in given if e.split != Split.sft or e.reference is not None), found)
    licences, counts, sources, tasks = Licences(), Counter[str](), Counter[str](), set[str]()

    def counted() -> Iterator[Example]:
        for example in examples:
            licences.count(example)
            counts[example.split] += 1
            sources[example.source] += 1
            tasks.update([example.task] if example.source in MADE else [])
            yield example

    save(out / "examples.parquet", counted(), Example)
    selected, by_code = sum(sources[source] for source in MADE), sources["mended"]
    return {
        "examples": dict(counts),
        "selected": selected,
        "mended": by_code,
        "tasks": len(tasks),
        "refused": dict(refused),
        **licences.metrics(),
        "summary": f"{selected} answers selected, {by_code} of them mended, of {len(tasks)} tasks; "
        + ", ".join(f"{counts[split]} {split}" for split in Split if counts[split]),
    }


def chosen(pair: Pair) -> Example:
    """A pair's chosen completion as an example, under the pair's id."""
    split = Split.sft if pair.split == "train" else Split.validation
    return Example(pair.id, pair.prompt, pair.chosen[-1]["content"], "selected", "chosen", split)


def best(cfg: Select, pool: Path) -> tuple[list[Example], Counter[str]]:
    """Prompts with their best candidate as reference, and for which reasons candidates were refused. Of those that are
    good enough, the one that its model found likeliest, per token; where none is, one that could be mended."""
    limits = answer_rules.band(Records(pool / "candidates.parquet", Candidate))
    # With how many good ones there were, and the tasks of which only so many are taken.
    refused, answered = Counter[str](), list[tuple[int, list[str], Example]]()
    for prompt, candidates, judgements in judged(pool):
        by_id, good, repaired = {c.candidate_id: c for c in candidates}, list[Candidate](), list[Candidate]()
        for judgement in judgements:
            if judgement.score is None:
                continue
            candidate = by_id[str(judgement.candidate_id)]
            low = "scores below select.min_score" if judgement.score < cfg.min_score else None
            odd = None if answer_rules.within(candidate, limits) else "is likelier or less likely than others"
            reason = low or answer_rules.broken(prompt, candidate) or odd
            if not reason:
                good.append(candidate)
                continue
            refused[reason] += 1
            mendable = cfg.max_mended and not odd and (low or reason == answer_rules.UNFINISHED)
            text = mended(prompt, candidate.text) if mendable else None
            whole = replace(candidate, text=text, finish_reason="stop") if text else None
            if whole and not answer_rules.broken(prompt, whole):
                repaired.append(whole)
        if good or repaired:
            answer = max(good or repaired, key=lambda c: (likelihood(c), c.candidate_id))
            example = demonstration(prompt, answer, "selected" if good else "mended", cfg)
            answered.append((len(good), prompt.limited_tasks, example))
    found, of_task = list[Example](), Counter[tuple[str, str]]()
    for several, tasks, example in sorted(answered, key=lambda each: content_id(each[2].id)):
        most = cfg.max_per_task if several else cfg.max_mended
        if any(of_task[example.source, task] >= most for task in tasks):
            refused["is of a task that has enough"] += several
            continue
        of_task.update((example.source, task) for task in tasks)
        found.append(example)
    return found, refused


def demonstration(prompt: Example, answer: Candidate, source: str, cfg: Select) -> Example:
    """The prompt with this answer, held out for the validation loss or not."""
    split = side(prompt.id, cfg.validation_fraction, Split.sft)
    return replace(prompt, reference=answer.text.strip(), source=source, split=split)


def likelihood(candidate: Candidate) -> float:
    """The mean log-prob of a candidate's tokens; 0 where there is none."""
    return (candidate.logprob or 0.0) / max(1, candidate.n_tokens)
