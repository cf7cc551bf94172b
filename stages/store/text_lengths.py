"""Mean lengths of a node's texts. The manifest stores them, so that `stage=plan` does not read tables."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

GROUPS = 8  # groups of rows that are read, evenly spaced, as a sample of the table
PAIRS, POOL = "pairs", "pool"  # keys of the lengths; for examples, the keys are the splits


def text_lengths(stage: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Return the mean characters of `prompt` and `answer`, for each split of examples, for pairs or completions, or
    for a pool. Examples also have the share of rows that are `answered`. A pool has the mean `tokens` of an answer, and
    in `texts` the number of prompts by that of their different texts. Return {} for all else."""
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
    table, lengths = read(file, "split", "messages", "reference"), dict[str, dict[str, Any]]()
    for split in pc.unique(table["split"]).to_pylist():
        rows = table.filter(pc.equal(table["split"], split))
        answered = len(rows) - rows["reference"].null_count
        written = pc.sum(pc.utf8_length(rows["reference"])).as_py()
        lengths[split] = {
            "prompt": characters(rows["messages"]) / len(rows),
            "answer": (written or 0) / max(1, answered),
            "answered": answered / len(rows),
        }
    return lengths


def pair_lengths(file: Path, *answers: str) -> dict[str, dict[str, Any]]:
    """Return the lengths of a table of pairs or of single completions, with the columns of its answers."""
    table = read(file, "prompt", *answers)
    written, rows = sum(characters(table[name]) for name in answers), max(1, len(table))
    return {
        PAIRS: {
            "prompt": characters(table["prompt"]) / rows,
            "answer": written / rows / len(answers),
        }
    }


def pool_lengths(folder: Path) -> dict[str, dict[str, Any]]:
    prompts = read(folder / "prompts.parquet", "messages")
    candidates = pq.read_table(
        folder / "candidates.parquet", columns=["prompt_id", "n_tokens", "answer_tokens", "text"]
    )
    lengths = pc.coalesce(candidates["answer_tokens"], candidates["n_tokens"])
    texts = pa.table(
        {"prompt": candidates["prompt_id"], "text": pc.utf8_trim_whitespace(candidates["text"])}
    )
    of_prompt = Counter(
        texts.group_by(["prompt", "text"]).aggregate([])["prompt"].to_pylist()
    ).values()
    return {
        POOL: {
            "prompt": characters(prompts["messages"]) / max(1, len(prompts)),
            "tokens": pc.mean(lengths).as_py() or 0.0,
            "texts": {str(count): number for count, number in sorted(Counter(of_prompt).items())},
        }
    }


def read(file: Path, *columns: str) -> pa.Table:
    """Return a sample of a table's groups of rows."""
    with pq.ParquetFile(file) as table:
        step = max(1, -(-table.num_row_groups // GROUPS))
        return table.read_row_groups([*range(0, table.num_row_groups, step)], columns=[*columns])


def characters(conversations: pa.ChunkedArray) -> int:
    """Return the number of characters in all messages."""
    texts = pc.struct_field(pc.list_flatten(conversations), "content")
    return int(pc.sum(pc.utf8_length(texts)).as_py() or 0)
