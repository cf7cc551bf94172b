"""From a file to packed token ids, beside TRL's own way: `python -m tests.bench.preparation [KEY=VALUE …]`.

Ours: the nodes of `source` and `data` in a new store, then what `stage=sft` does before its first step. TRL's: rows
through `datasets` into messages, then what SFTTrainer makes of them for the loss on the assistant's tokens, packed
(bfd). Tokenizer and chat template are the same, each way works in one process of its own, with everything imported,
and they alternate. Tells CPU-seconds and seconds of each part, then holds token ids and labels against each other, row
by row, as they are before packing.

`file`: JSON lines of Alpaca's columns or of messages; by default Alpaca's 8,000 rows of the shared data beside the
checkout. `rows`: only its first. A try: `rows=100 repeats=1 run=recipe=tiny`.
"""

import json
import logging
import shlex
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from tests.bench import arms, chains
from tests.budgets import spent
from tests.helpers import DATA, ROOT

ARMS = ("trl", "ours")
PARTS = ("load", "tokenise", "pack")


@dataclass
class Settings:
    file: str = str(DATA / "sft" / "alpaca_8k.jsonl.gz")
    rows: int = 0  # 0: all
    run: str = ""  # what the command line says of the model
    max_length: int = 1024
    repeats: int = 5
    outputs: str = "outputs/bench/preparation"


@dataclass
class Row:
    """A conversation as a trainer would read it."""

    messages: list[dict[str, str]]
    input_ids: list[int]
    labels: list[int]


class Laps:
    """Seconds and CPU-seconds of the parts, one after another."""

    def __init__(self) -> None:
        self.parts: dict[str, dict[str, float]] = {}
        self.at = (time.perf_counter(), spent())

    def __call__(self, part: str) -> None:
        now = (time.perf_counter(), spent())
        wall, cpu = (b - a for a, b in zip(self.at, now, strict=True))
        self.parts[part], self.at = {"seconds": wall, "cpu_seconds": cpu}, now


def main(cfg: Settings) -> None:
    from stages.hardware import process
    from stages.pipeline.build import build

    process.prepare()
    overrides = ["tracker=none", *shlex.split(cfg.run)]
    arguments, store, nodes = chains.prepared(ROOT / cfg.outputs, overrides)
    build([nodes["base"]], store, arguments, overrides)
    rounds_by_arm = arms.alternating(cfg, ARMS)
    for unit in ("cpu_seconds", "seconds"):
        medians = {
            arm: {
                part: statistics.median(parts[part][unit] for parts in results)
                for part in (*PARTS, "all")
            }
            for arm, results in rounds_by_arm.items()
        }
        for part in (*PARTS, "all"):
            our_median, trl_median = medians["ours"][part], medians["trl"][part]
            logging.info(
                "%-12s %-9s ours %6.2f, TRL %6.2f: %.2fx",
                unit,
                part,
                our_median,
                trl_median,
                trl_median / our_median,
            )
    our_median, trl_median = (
        [Row(**row) for row in json.loads(rows_file(cfg, arm).read_text())]
        for arm in ("ours", "trl")
    )
    logging.info("%s", json.dumps(compare_rows(our_median, trl_median)))


def rows_file(cfg: Settings, arm: str) -> Path:
    return ROOT / cfg.outputs / f"{arm}.json"


def measure(cfg: Settings, arm: str) -> dict[str, Any]:
    """Seconds of every part, with the rows as they are before packing left in a file."""
    from stages.models import chat_templates
    from stages.models.loading import count_embedding_rows, load_tokenizer
    from tests.helpers import settings

    block = settings(
        *shlex.split(cfg.run), "sft.packing=true", f"sft.max_length={cfg.max_length}"
    ).sft
    base = (ROOT / cfg.outputs / "latest" / "base").resolve() / "model"
    contract = chat_templates.establish_contract(
        load_tokenizer(base), block.template, True, count_embedding_rows(base)
    )
    with tempfile.TemporaryDirectory() as folder:
        file = (
            chains.first_rows(Path(cfg.file), cfg.rows, Path(folder))
            if cfg.rows
            else Path(cfg.file)
        )
        laps, rows = PREPARE[arm](file, block, contract, Path(folder))
    rows_file(cfg, arm).write_text(json.dumps([vars(row) for row in rows]))
    whole = {unit: sum(part[unit] for part in laps.values()) for unit in ("seconds", "cpu_seconds")}
    return {**laps, "all": whole}


def prepare_by_plumbline(
    file: Path, block: Any, contract: Any, folder: Path
) -> tuple[dict[str, Any], list[Row]]:
    """Prepare a file by our stages. Return seconds by part, and the rows before packing."""
    from stages import data, source  # noqa: F401  the pipeline imports them by name
    from stages.objectives.sft import read_rows
    from stages.pipeline.build import build
    from stages.store.records import Example, stream
    from stages.store.workspace import StageDir

    overrides = [
        "stage=sft",
        "tracker=none",
        "data=file",
        f"data.sources=[{{path: '{file}', splits: {{sft: 1.0}}}}]",
    ]
    arguments, store, nodes = chains.prepared(folder / "outputs", overrides)
    folder.mkdir(exist_ok=True)
    out, laps = StageDir(folder, lambda metrics, step: None), Laps()
    build([nodes["data"]], store, arguments, overrides)
    examples = store.folder(nodes["data"]) / "examples.parquet"
    laps("load")
    rows = read_rows(stream(examples, Example), contract, block, out).train
    laps("tokenise")
    alone = zip(rows.ids, rows.dataset, strict=True)
    rows.pack(block.max_length, block.batch_size)
    laps("pack")
    conversations = {example.id: example.conversation for example in stream(examples, Example)}
    return laps.parts, [
        Row(conversations[name], row["input_ids"], row["labels"]) for name, row in alone
    ]


def trl(file: Path, block: Any, contract: Any, folder: Path) -> tuple[dict[str, Any], list[Row]]:
    """Prepare a file by `datasets` and TRL's SFTTrainer."""
    from datasets import load_dataset
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    size = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(contract.tokenizer), **size))
    args = SFTConfig(
        str(folder / "trainer"),
        packing=True,
        max_length=block.max_length,
        assistant_only_loss=True,
        use_cpu=True,
        bf16=False,
        report_to="none",
    )
    laps = Laps()
    rows = load_dataset(
        "json", data_files=str(file), split="train", cache_dir=str(folder / "cache")
    )
    rows = rows.map(
        as_messages, remove_columns=[name for name in rows.column_names if name != "messages"]
    )
    laps("load")
    with laps_of_trl(laps) as packed:
        SFTTrainer(model, args, train_dataset=rows, processing_class=contract.tokenizer)
    read = zip(rows["messages"], packed[0]["input_ids"], packed[0]["labels"], strict=True)
    return laps.parts, [Row(messages, ids, labels) for messages, ids, labels in read]


def as_messages(row: dict[str, Any]) -> dict[str, Any]:
    """A conversation of an Alpaca row; messages as they are."""
    if "messages" in row:
        return {"messages": row["messages"]}
    request = "\n\n".join(filter(None, (row["instruction"], row["input"])))
    return {
        "messages": [
            {"role": "user", "content": request},
            {"role": "assistant", "content": row["output"]},
        ]
    }


@contextmanager
def laps_of_trl(laps: Laps) -> Iterator[list[Any]]:
    """Within, SFTTrainer's preparation is divided where it begins to pack; gives the dataset that it packs."""
    from trl.trainer import sft_trainer

    packed, prepare, pack = (
        list[Any](),
        sft_trainer.SFTTrainer._prepare_dataset,
        sft_trainer.pack_dataset,
    )

    def prepared(*args: Any) -> Any:
        laps.at = (time.perf_counter(), spent())  # what a trainer does before is no preparation
        prepared = prepare(*args)
        laps("pack")
        return prepared

    def divided(dataset: Any, *args: Any) -> Any:
        packed.append(dataset)
        laps("tokenise")
        return pack(dataset, *args)

    own = mock.patch.object(sft_trainer.SFTTrainer, "_prepare_dataset", prepared)
    with own, mock.patch.object(sft_trainer, "pack_dataset", divided):
        yield packed


PREPARE: dict[str, Callable[..., tuple[dict[str, Any], list[Row]]]] = {
    "ours": prepare_by_plumbline,
    "trl": trl,
}


def compare_rows(our_rows: list[Row], trl_rows: list[Row]) -> dict[str, int]:
    """Count TRL's rows that our rows equal in token ids and labels; that differ by TRL's untrained end; that
    differ otherwise; and how many we have not (copies of a prompt, rows that are refused or too long)."""

    def key_of(row):
        return json.dumps([[turn["role"], turn["content"]] for turn in row.messages])

    our_row_by_text, counts = {key_of(row): row for row in our_rows}, Counter[str]()
    for row in trl_rows:
        our_row = our_row_by_text.get(key_of(row))
        counts[relation(our_row, row) if our_row else "left out"] += 1
    return dict(counts)


def relation(our_row: Row, trl_row: Row) -> str:
    end = len(our_row.input_ids)
    if trl_row.input_ids[:end] != our_row.input_ids:
        return "other token ids"
    if trl_row.labels[:end] != our_row.labels or any(
        label != -100 for label in trl_row.labels[end:]
    ):
        return "other labels"
    return "equal" if len(trl_row.input_ids) == end else "equal up to the last end of turn"


if __name__ == "__main__":
    arms.run(Settings, main, measure)
