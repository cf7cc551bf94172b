"""The tables of texts that every tracker gets of a published node."""

from pathlib import Path
from typing import Any

from stages.store.text_units import transcript
from stages.store.workspace import read_samples

ROWS = 50  # of a table

Table = tuple[list[str], list[list[Any]]]  # columns, rows


def read_tables(stage: str, folder: Path) -> dict[str, Table]:
    """Return a node's tables by name: candidates of `label`, pairs of `pairs`, or the samples of a training."""
    read = {"label": candidates, "pairs": pairs}.get(stage, samples)
    table = read(folder)
    return {read.__name__: table} if table[1] else {}


def candidates(folder: Path) -> Table:
    """Return the table of candidates with a score: prompt, completion, score."""
    # imported here, as a plan loads this file and reads no table
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    scored = pq.read_table(
        folder / "judgements.parquet", filters=pc.field("score").is_valid()
    ).slice(0, ROWS)
    texts = by_id(folder / "candidates.parquet", "candidate_id", "text", scored["candidate_id"])
    prompts = by_id(folder / "prompts.parquet", "id", "messages", scored["prompt_id"])
    rows = [
        [transcript(prompts[j["prompt_id"]]), texts[j["candidate_id"]], j["score"]]
        for j in scored.to_pylist()
    ]
    return ["prompt", "completion", "score"], rows


def pairs(folder: Path) -> Table:
    """Return the table of pairs: prompt, chosen, rejected, margin."""
    import pyarrow.parquet as pq

    columns = ["prompt", "chosen", "rejected", "margin"]
    first = pq.read_table(folder / "pairs.parquet", columns=columns).slice(0, ROWS).to_pylist()
    return columns, [[*(transcript(p[name]) for name in columns[:3]), p["margin"]] for p in first]


def samples(folder: Path) -> Table:
    """Return the table of sample answers: step, prompt, answer before training, answer."""
    answers = read_samples(folder)
    before = {sample.id: sample.answer for sample in answers if sample.step == 0}
    rows = [[s.step, transcript(s.prompt), before.get(s.id, ""), s.answer] for s in answers]
    return ["step", "prompt", "before training", "answer"], rows


def by_id(path: Path, key: str, value: str, ids: Any) -> dict[str, Any]:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    rows = pq.read_table(
        path, columns=[key, value], filters=pc.field(key).isin(ids.combine_chunks())
    )
    return dict(zip(rows[key].to_pylist(), rows[value].to_pylist(), strict=True))
