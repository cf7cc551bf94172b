"""Pools for labelers to judge, and a folder for what comes of it; no more of the house than those need."""

from pathlib import Path

from stages.labelers.labeler import Pool
from stages.store.records import Candidate, Example, content_id
from stages.store.workspace import StageDir


def pool(*texts: list[str]) -> Pool:
    """A prompt for every list of texts, with a candidate for each of them."""
    prompts = [
        Example(f"p{i}", [{"role": "user", "content": f"request {i}"}], None, "", "t", "preference")
        for i in range(len(texts))
    ]
    candidates = [
        Candidate(f"p{i}", content_id(i, j), "x", "x", 1.0, 0, text, None, "stop", None, len(text.split()))
        for i, answers in enumerate(texts)
        for j, text in enumerate(answers)
    ]
    return Pool(prompts, candidates)


def work(folder: Path) -> StageDir:
    (folder / "node").mkdir(parents=True, exist_ok=True)
    return StageDir(folder / "node", lambda metrics, step: None, calls=folder / "cache" / "calls")
