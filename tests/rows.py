"""Rows that tests make by hand: prompts, candidates and pools, as they are or judged, and folders for stages to work in."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stages.labelers.labeler import Pool
from stages.store.records import Candidate, Example, Judgement, content_id, save
from stages.store.workspace import StageDir


def work(folder: Path) -> StageDir:
    """A folder in which a stage works, tracked by nobody."""
    folder.mkdir(parents=True, exist_ok=True)
    return StageDir(folder, lambda metrics, step: None)


def work_with_calls(folder: Path) -> StageDir:
    """The same for a stage that asks servers or people: `node`, and beside it what they said, in `cache/calls`."""
    return StageDir(
        work(folder / "node").path,
        lambda metrics, step: None,
        call_folder=folder / "cache" / "calls",
    )


def prompt(name: str, request: str = "", **fields: Any) -> Example:
    """A request; its text is its name if none is given."""
    messages = [{"role": "user", "content": request or name}]
    return replace(Example(name, messages, None, "s", "t", "preference"), **fields)


def candidate(
    prompt_id: str, text: str, tokens: int = 3, finished: bool = True, **fields: Any
) -> Candidate:
    """A candidate whose id follows from its other arguments."""
    reason = "stop" if finished else "length"
    name = f"{prompt_id}-{text}-{tokens}-{reason}"
    drawn = Candidate(prompt_id, name, "p", "hf", 1.0, 0, text, [], reason, -1.0, tokens)
    return replace(drawn, **fields)


def pool(*texts: list[str]) -> Pool:
    """A prompt for each list of texts, and a candidate for each text, of as many tokens as words."""
    prompts, candidates = list[Example](), list[Candidate]()
    for i, answers in enumerate(texts):
        prompts.append(prompt(f"p{i}", f"request {i}"))
        for j, text in enumerate(answers):
            words, name = len(text.split()), content_id(i, j)
            candidates.append(
                candidate(f"p{i}", text, words, candidate_id=name, token_ids=None, logprob=None)
            )
    return Pool(prompts, candidates)


def save_pool(
    folder: Path,
    prompts: Sequence[Example],
    candidates: Sequence[Candidate],
    judgements: Sequence[Judgement] | None = None,
) -> Path:
    """Write a pool, as its node holds it; with judgements, as the node of its labels does."""
    folder.mkdir(parents=True, exist_ok=True)
    save(folder / "prompts.parquet", prompts, Example)
    save(folder / "candidates.parquet", candidates, Candidate)
    if judgements is not None:
        save(folder / "judgements.parquet", judgements, Judgement)
    return folder


def judged_pool(folder: Path, answers: dict[str, list[tuple[Candidate, float | None]]]) -> Path:
    """Write a judged pool: by prompt, candidates with their scores; None where judging failed."""
    candidates, judgements = list[Candidate](), list[Judgement]()
    for name, scored in answers.items():
        for each, score in scored:
            error = "failed" if score is None else None
            candidates.append(each)
            judgements.append(
                Judgement(name, "verifier", each.candidate_id, score=score, error=error)
            )
    return save_pool(folder, [*map(prompt, answers)], candidates, judgements)
