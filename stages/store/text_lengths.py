"""Mean lengths of a node's texts. The manifest stores them, so that `stage=plan` does not read tables."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

GROUPS = 8  # groups of rows that are read, evenly spaced, as a sample of the table
PAIRS, POOL = "pairs", "pool"  # keys of the lengths; for examples, the keys are the splits


def text_lengths(stage: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Return the mean characters of `prompt` and `answer`, for each split of examples, for pairs or completions, or
    for a pool. Examples also have the share of rows that are `answered`. A pool has the mean `tokens` of a candidate,
    and in `texts` the number of prompts by the number of their different texts. Return {} for other stages and
    unreadable tables."""
    try:
        match stage:
            case "data" | "source" | "select":
                return example_lengths(folder / "examples.parquet")
            case "pairs":
                return pair_lengths(folder / "pairs.parquet", "chosen", "rejected")
            case "unpaired":
                return pair_lengths(folder / "unpaired.parquet", "completion")
            case "sample" | "pool" | "versus":
                return pool_lengths(folder)
    except (pa.ArrowException, OSError):
        pass
    return {}


def example_lengths(file: Path) -> dict[str, dict[str, Any]]:
    totals: dict[str, Counter[str]] = {}
    for table in read(file, "split", "messages", "reference"):
        for split in pc.unique(table["split"]).to_pylist():
            rows = table.filter(pc.equal(table["split"], split))
            totals.setdefault(split, Counter()).update(
                rows=len(rows),
                prompt=characters(rows["messages"]),
                answer=pc.sum(pc.utf8_length(rows["reference"])).as_py() or 0,
                answered=len(rows) - rows["reference"].null_count,
            )
    return {
        split: {
            "prompt": total["prompt"] / total["rows"],
            "answer": total["answer"] / max(1, total["answered"]),
            "answered": total["answered"] / total["rows"],
        }
        for split, total in totals.items()
    }


def pair_lengths(file: Path, *answers: str) -> dict[str, dict[str, Any]]:
    """Return the lengths of a table of pairs or of single completions, with the columns of its answers."""
    total = Counter[str]()
    for table in read(file, "prompt", *answers):
        written = sum(characters(table[name]) for name in answers)
        total.update(rows=len(table), prompt=characters(table["prompt"]), answer=written)
    rows = max(1, total["rows"])
    return {PAIRS: {"prompt": total["prompt"] / rows, "answer": total["answer"] / rows / len(answers)}}


def pool_lengths(folder: Path) -> dict[str, dict[str, Any]]:
    prompts = Counter[str]()
    for table in read(folder / "prompts.parquet", "messages"):
        prompts.update(rows=len(table), prompt=characters(table["messages"]))
    candidates = pq.read_table(folder / "candidates.parquet", columns=["prompt_id", "n_tokens", "text"])
    texts = pa.table({"prompt": candidates["prompt_id"], "text": pc.utf8_trim_whitespace(candidates["text"])})
    of_prompt = Counter(texts.group_by(["prompt", "text"]).aggregate([])["prompt"].to_pylist()).values()
    return {
        POOL: {
            "prompt": prompts["prompt"] / max(1, prompts["rows"]),
            "tokens": pc.mean(candidates["n_tokens"]).as_py() or 0.0,
            "texts": {str(count): prompts for count, prompts in sorted(Counter(of_prompt).items())},
        }
    }


def read(file: Path, *columns: str) -> Iterator[pa.Table]:
    """Yield a sample of a table's groups of rows."""
    with pq.ParquetFile(file) as table:
        step = -(-table.num_row_groups // GROUPS)
        for group in range(0, table.num_row_groups, step or 1):
            yield table.read_row_group(group, columns=[*columns])


def characters(conversations: pa.ChunkedArray) -> int:
    """Return the number of characters in all messages."""
    texts = pc.struct_field(pc.list_flatten(conversations), "content")
    return int(pc.sum(pc.utf8_length(texts)).as_py() or 0)
