"""Stage `select`: examples from judged candidates or from pairs. The best of n answers of a model to a prompt is a
demonstration without a teacher (rejection sampling: arXiv:2308.01825). Chosen completions are a baseline for DPO."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from stages.config.blocks.pairs import Select
from stages.config.choices import Split
from stages.config.errors import UserError
from stages.curation import answer_rules
from stages.curation.mend import mend_answer
from stages.store.judged_pool import TokenCount, read_judged_prompts, sort_on_disk
from stages.store.licences import provenance_of
from stages.store.numbers import count_clauses
from stages.store.records import Candidate, Example, Pair, Records, content_id, save, stream
from stages.store.splits import draw_side
from stages.store.table_schema import Int32
from stages.store.text_units import count_shared_prefix
from stages.store.truncation import ending_advice, share_ended
from stages.store.workspace import SCRATCH, StageDir

LOW_SCORE = "scores below select.min_score"
MENDABLE = (LOW_SCORE, answer_rules.UNFINISHED)  # reasons to refuse a candidate that code may mend


def run(cfg: Select, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Write `examples.parquet`: of `pairs` the chosen completions in the order of the pairs, else the data's examples,
    where unanswered `sft` prompts have their best candidate. Raise UserError if no candidate is good enough."""
    refused = Counter[str]()
    if "pairs" in inputs:
        pairs = stream(inputs["pairs"] / "pairs.parquet", Pair)
        examples: Iterable[Example] = map(example_of_chosen, pairs)
    else:
        demonstrations = best_answers_within_limits(
            cfg, inputs["judged"], refused, out / SCRATCH / "answers"
        )
        first = next(demonstrations, None)
        if first is None:
            raise no_answer_error(cfg, inputs["judged"], refused)
        data = stream(inputs["data"] / "examples.parquet", Example)
        kept_examples = (e for e in data if e.split != Split.sft or e.reference is not None)
        examples = chain(kept_examples, [first], demonstrations)
    file = out / "examples.parquet"
    save(file, examples, Example)
    written = Records(file, Example)
    sources = Counter(written.column("source"))
    selected = sources["selected"] + sources["mended"]
    return {
        "examples": dict(Counter(written.column("split"))),
        "selected": selected,
        "mended": sources["mended"],
        "refused": dict(refused),
        **provenance_of(file),
        "summary": f"{selected} answers selected, {sources['mended']} of them mended",
    }


def no_answer_error(cfg: Select, pool: Path, refused: Counter[str]) -> UserError:
    """Return the error for a pool without a good candidate, with advice to get some."""
    reasons = "; ".join(count_clauses(dict(refused.most_common())))
    advice = ending_advice(share_ended(pool), "select") or "Lower select.min_score"
    return UserError(
        f"select.min_score={cfg.min_score:g}: no candidate is good enough ({reasons}). {advice}."
    )


def example_of_chosen(pair: Pair) -> Example:
    """Return a pair's chosen completion as an example with the pair's id, trained from where it and rejected part."""
    split = Split.sft if pair.split == "train" else Split.validation
    messages = [*pair.prompt, *pair.chosen]
    example = Example(
        pair.id, messages[:-1], pair.chosen[-1]["content"], "selected", "chosen", split
    )
    if pair.parts_early:
        first_different_turn = len(pair.prompt) + count_shared_prefix(pair.chosen, pair.rejected)
        example.trained = [
            place >= first_different_turn
            for place, turn in enumerate(messages)
            if turn["role"] == "assistant"
        ]
    return example


@dataclass
class BestAnswer(Example):
    """A prompt with its best answer as reference, its number of good candidates, and its tasks with a limit."""

    good_candidates: Int32 = 0
    limited: list[str] = field(default_factory=list)


def best_answers_within_limits(
    cfg: Select, pool: Path, refused: Counter[str], sorting_folder: Path
) -> Iterator[Example]:
    """Yield prompts with their best candidate as reference, in the order of hashes, and count the refused candidates
    by reason. If a task has more than its limit, the first ones count. Answers are sorted in `sorting_folder`."""
    count_by_task = Counter[tuple[str, str]]()
    answers = sort_on_disk(
        best_answers(cfg, pool, refused), BestAnswer, lambda e: content_id(e.id), sorting_folder
    )
    for answer in answers:
        task_limit = cfg.max_per_task if answer.good_candidates else cfg.max_mended
        if any(count_by_task[answer.source, task] >= task_limit for task in answer.limited):
            refused["is of a task that has enough"] += answer.good_candidates
            continue
        count_by_task.update((answer.source, task) for task in answer.limited)
        yield answer


def best_answers(cfg: Select, pool: Path, refused: Counter[str]) -> Iterator[BestAnswer]:
    """Yield each prompt that has a usable candidate with the best one: the good candidate with the highest score, and
    among equal scores the one with the highest mean log-prob. Without a good candidate, a mended one is used."""
    limits = answer_rules.logprob_limits(Records(pool / "candidates.parquet", TokenCount))
    for prompt, candidates, judgements in read_judged_prompts(pool):
        candidate_by_id = {c.candidate_id: c for c in candidates}
        scores = dict[str, float]()
        good = list[Candidate]()
        mended = list[Candidate]()
        for judgement in judgements:
            if judgement.score is None:
                continue
            candidate = candidate_by_id[str(judgement.candidate_id)]
            reason = reason_to_refuse(cfg, prompt, candidate, judgement.score, limits)
            if not reason:
                good.append(candidate)
                scores[candidate.candidate_id] = judgement.score
                continue
            refused[reason] += 1
            # code cannot mend a thought
            is_mendable = reason in MENDABLE and not candidate.has_thought
            if cfg.max_mended and is_mendable and answer_rules.is_within(candidate, limits):
                mended += mend_candidate(prompt, candidate)
        if good or mended:
            answer = max(good or mended, key=partial(score_and_mean_log_prob, scores))
            source = "selected" if good else "mended"
            split = draw_side(prompt, cfg.validation_fraction, Split.sft)
            example = replace(prompt, reference=answer.text.strip(), source=source, split=split)
            yield BestAnswer(
                **vars(example), good_candidates=len(good), limited=prompt.limited_tasks
            )


def reason_to_refuse(
    cfg: Select,
    prompt: Example,
    candidate: Candidate,
    score: float,
    limits: tuple[float, float],
) -> str | None:
    """Return the reason why a candidate is no demonstration; None if it is a good one."""
    if score < cfg.min_score:
        return LOW_SCORE
    broken = answer_rules.find_broken_rule(prompt, candidate)
    if broken or answer_rules.is_within(candidate, limits):
        return broken
    return "is likelier or less likely than others"


def mend_candidate(prompt: Example, candidate: Candidate) -> list[Candidate]:
    """Return a candidate that code has mended, if it breaks no rule then."""
    text = mend_answer(prompt, candidate.text)
    if not text:
        return []
    ended = replace(candidate, text=text, finish_reason="stop")
    return [] if answer_rules.find_broken_rule(prompt, ended) else [ended]


def score_and_mean_log_prob(
    scores: Mapping[str, float], candidate: Candidate
) -> tuple[float, float, str]:
    """Return a candidate's score, then the mean log-prob of its tokens. A mended candidate has no score of its own."""
    score = scores.get(candidate.candidate_id, 0.0)
    return score, mean_log_prob(candidate), candidate.candidate_id


def mean_log_prob(candidate: Candidate) -> float:
    """Return the mean log-prob of a candidate's tokens, or 0 without a log-prob."""
    return (candidate.logprob or 0.0) / max(1, candidate.n_tokens)
