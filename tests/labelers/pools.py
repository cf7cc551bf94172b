"""Pools for labelers to judge, and folders for their results."""

from pathlib import Path

from stages.labelers.labeler import Pool
from stages.store.records import Candidate, Example, content_id
from stages.store.workspace import StageDir


def pool(*texts: list[str]) -> Pool:
    """Return a pool with a prompt for each list of texts, and a candidate for each text."""
    prompts = [
        Example(f"p{i}", [{"role": "user", "content": f"request {i}"}], None, "", "t", "preference")
        for i in range(len(texts))
    ]
    candidates = [
        Candidate(
            f"p{i}", content_id(i, j), "x", "x", 1.0, 0, text, None, "stop", None, len(text.split())
        )
        for i, answers in enumerate(texts)
        for j, text in enumerate(answers)
    ]
    return Pool(prompts, candidates)


def work(folder: Path) -> StageDir:
    (folder / "node").mkdir(parents=True, exist_ok=True)
    return StageDir(
        folder / "node", lambda metrics, step: None, call_folder=folder / "cache" / "calls"
    )
